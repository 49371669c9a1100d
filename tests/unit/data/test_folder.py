import numpy as np
import pytest
from formats import encoded, noise, write_files, write_tar, write_zip
from PIL import Image

from fewstep.checks import DataError
from fewstep.data.engine import prepare_source
from fewstep.data.folder import folder_source
from fewstep.data.manifest import verify
from fewstep.data.packed import load_dataset

FILES = {
    f"{split}/{name}/{i}.png": encoded(noise(8, 8, 3, seed=seed))
    for seed, (split, name, i) in enumerate(
        (split, name, i) for split in ("test", "train") for name in ("dog", "cat") for i in range(4)
    )
}


def pack(source, out, **options):
    settings = {k: options.pop(k) for k in ("size", "grey", "test_fraction") if k in options}
    return prepare_source(
        folder_source(source, **settings), out, **{"workers": 1, "shard_items": 3, **options}
    )


def make(kind, folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        return write_files(folder / "raw", files)
    if kind == "zip":
        return write_zip(folder / "raw.zip", files)
    suffix, mode = {
        "tar": (".tar", "w"),
        "gz": (".tar.gz", "w:gz"),
        "xz": (".tar.xz", "w:xz"),
        "bz2": (".tar.bz2", "w:bz2"),
    }[kind]
    return write_tar(folder / f"raw{suffix}", files, mode)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "gz", "xz", "bz2"])
def test_every_container_gives_the_same_bytes(kind, tmp_path):
    shuffled = dict(sorted(FILES.items(), key=lambda file: file[0][::-1]))
    manifest = pack(make(kind, tmp_path / "in", shuffled), tmp_path / "out")
    data = load_dataset(tmp_path / "out")
    order = [name for split in ("train", "test") for name in sorted(FILES) if name.startswith(split)]
    expected = pack(write_files(tmp_path / "plain", FILES), tmp_path / "plain-out")
    assert manifest["sha256"] == expected["sha256"]
    assert manifest["splits"] == {"train": [0, 8], "test": [8, 16]}
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [int("dog" in name) for name in order]
    first = np.array(Image.open(tmp_path / "plain" / order[0]))
    assert np.array_equal(data.images[0], first)
    assert data.name == "raw"
    verify(tmp_path / "out")


def test_shared_folders_are_ignored_and_hidden_files_skipped(tmp_path):
    files = {f"project-main/images/{name}": data for name, data in FILES.items()}
    files |= {
        "project-main/images/__MACOSX/x.png": b"no image",
        "project-main/.cache/y.png": b"no image",
        "project-main/LICENSE": b"text",
    }
    assert (
        pack(write_zip(tmp_path / "a.zip", files), tmp_path / "a")["sha256"]
        == (pack(write_zip(tmp_path / "b.zip", FILES), tmp_path / "b")["sha256"])
    )


def test_without_split_folders_a_hash_of_the_name_decides(tmp_path):
    files = {f"{'ab'[i % 2]}/{i}.png": encoded(noise(4, 4, 3, seed=i)) for i in range(200)}
    source = folder_source(write_files(tmp_path / "in", files), test_fraction=0.3)
    test = {item.name for item in source.items if item.split == "test"}
    assert 40 <= len(test) <= 80  # 60 expected, sd 6.5
    some = {name: data for name, data in files.items() if not name.endswith("3.png")}
    fewer = folder_source(write_files(tmp_path / "fewer", some), test_fraction=0.3)
    assert {item.name for item in fewer.items if item.split == "test"} == test & set(some)
    alone = folder_source(tmp_path / "in", test_fraction=0)
    assert {item.split for item in alone.items} == {"train"}


@pytest.mark.parametrize(
    "names", [["1.png", "2.png"], ["cat/1.png", "cat/2.png"], ["train/1.png", "test/2.png"]]
)
def test_fewer_than_two_classes_are_no_labels(names, tmp_path):
    files = {name: encoded(noise(4, 4, 3)) for name in names}
    manifest = pack(write_files(tmp_path / "in", files), tmp_path / "out")
    assert manifest["classes"] is None
    assert manifest["sha256"]["labels"] is None
    assert load_dataset(tmp_path / "out").labels is None
    assert not (tmp_path / "out" / "labels.npy").exists()


def test_split_folder_names_have_synonyms_and_a_fixed_order(tmp_path):
    files = {f"{split}/x/1.png": encoded(noise(4, 4, 3)) for split in ("Test", "VAL", "training")}
    manifest = pack(write_files(tmp_path / "in", files), tmp_path / "out")
    assert list(manifest["splits"]) == ["train", "valid", "test"]


def test_image_outside_the_class_folders(tmp_path):
    files = {"cat/1.png": b"", "dog/1.png": b"", "2.png": b""}
    with pytest.raises(DataError, match=r"2\.png must lie in a class folder"):
        folder_source(write_files(tmp_path, files))


def test_different_sizes_need_a_size(tmp_path):
    files = {"1.png": encoded(noise(8, 8, 3)), "2.png": encoded(noise(8, 9, 3))}
    source = write_files(tmp_path / "in", files)
    with pytest.raises(DataError, match=r"2\.png must be 8x8 .* but is 9x8; give a size"):
        pack(source, tmp_path / "out", test_fraction=0.0)
    assert not (tmp_path / "out").exists()
    assert pack(source, tmp_path / "out", size=4, test_fraction=0.0)["shape"] == [4, 4, 3]


def test_grey_is_one_channel(tmp_path):
    manifest = pack(write_files(tmp_path / "in", FILES), tmp_path / "out", grey=True)
    assert manifest["shape"] == [8, 8, 1]
    assert manifest["transform"] == "grey + own size"


def test_source_errors_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        folder_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match="but holds none"):
        folder_source(tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="whole zip or tar"):
        folder_source(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("kind", ["zip", "tar", "gz", "xz", "bz2"])
def test_truncated_archive_is_a_data_error(kind, tmp_path):
    path = make(kind, tmp_path, FILES)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 - 100])  # within a member
    with pytest.raises(DataError, match=path.name):
        pack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_real_images_in_a_real_archive(shared_data, tmp_path):
    source = folder_source(shared_data / "cifar10-jpeg.tar.xz")
    manifest = prepare_source(source, tmp_path / "out", limit=500, workers=2, shard_items=125)
    assert manifest["splits"] == {"train": [0, 417], "test": [417, 500]}
    data = load_dataset(tmp_path / "out")
    assert set(np.bincount(data.labels)) <= {49, 50, 51}
    assert data.shape == (3, 32, 32)
    assert 100 < data.images.mean() < 140  # CIFAR-10's mean is 121
    verify(tmp_path / "out")


def splits_of(names, folder):
    source = folder_source(
        write_files(folder, dict.fromkeys(names, encoded(noise(4, 4, 3)))), test_fraction=0.0
    )
    return source.classes, {item.name: item.split for item in source.items}


def test_splits_within_the_classes(tmp_path):
    names = [f"{name}/{split}/1.png" for name in ("cat", "dog") for split in ("train", "test")]
    assert splits_of(names, tmp_path) == (("cat", "dog"), {name: name.split("/")[1] for name in names})


@pytest.mark.parametrize(
    "names",
    [
        ["train/cat/1.png", "train/dog/1.png", "test/cat/2.png", "extra/3.png"],
        ["train/cat/1.png", "train/dog/1.png", "unlabeled/2.png"],
        ["train/1.png", "test/2.png", "3.png"],
        ["cat/train/1.png", "cat/test/2.png", "dog/3.png"],
    ],
)
def test_splits_beside_other_folders_are_refused(names, tmp_path):
    """They would be the classes, or training and test images would be mixed."""
    with pytest.raises(DataError, match="must lie in the folder of a split, as other images do"):
        splits_of(names, tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    """As one of CIFAR-100's."""
    names = ["bus/1.png", "car/2.png", "train/3.png"]
    assert splits_of(names, tmp_path) == (("bus", "car", "train"), dict.fromkeys(names, "train"))
