"""Loaders of the official formats, on tiny files in these formats."""

import builtins
import pickle

import numpy as np
import pytest
from formats import (
    CELEBA_ATTRIBUTES,
    CIFAR_CLASSES,
    cifar_batches,
    encoded,
    noise,
    python2_pickle,
    write_celeba,
    write_cifar_binary,
    write_cifar_python,
    write_lsun,
    write_tar,
)  # fmt: skip
from PIL import Image

from fewstep.checks import ConfigError, DataError
from fewstep.data import cifar10
from fewstep.data.cifar10 import cifar10_source, load_arrays
from fewstep.data.packed import load_dataset
from fewstep.data.prepare import prepare


def test_digits_are_exact_and_split_by_class(tmp_path):
    from sklearn.datasets import load_digits

    manifest = prepare("digits", tmp_path / "out")
    assert manifest["shape"] == [8, 8, 1]
    train, test = load_dataset(tmp_path / "out", "train"), load_dataset(tmp_path / "out", "test")
    assert len(train) + len(test) == 1797
    share = np.bincount(test.labels) / np.bincount(load_dataset(tmp_path / "out").labels)
    assert np.abs(share - 0.2).max() < 0.01  # one digit in 175 is 0.006
    levels = {v: int(np.floor(v * 255 / 16 + 0.5)) for v in range(17)}
    assert (levels[0], levels[8], levels[16]) == (0, 128, 255)
    first = load_digits().images[0]
    assert train.images[0, :, :, 0].tolist() == [[levels[int(v)] for v in row] for row in first]
    assert train.classes == tuple("0123456789")
    assert prepare("digits", tmp_path / "again") == manifest


def test_digits_take_no_source_and_can_be_larger(tmp_path):
    with pytest.raises(ConfigError, match="without a source"):
        prepare("digits", tmp_path / "out", source=tmp_path)
    assert prepare("digits", tmp_path / "out", size=16, limit=20)["shape"] == [16, 16, 1]


def without_module(monkeypatch, name):
    real = builtins.__import__

    def absent(module, *args, **kwargs):
        if module.split(".")[0] == name:
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)


def test_missing_extras_are_named(tmp_path, monkeypatch):
    folder = write_lsun(tmp_path / "cat_train_lmdb", {b"k": b"v"})
    without_module(monkeypatch, "sklearn")
    with pytest.raises(ConfigError, match=r"fewstep\[data\]"):
        prepare("digits", tmp_path / "out")
    without_module(monkeypatch, "lmdb")
    with pytest.raises(ConfigError, match=r"fewstep\[data\]"):
        prepare("lsun-cat", tmp_path / "out", source=folder)


@pytest.mark.parametrize("write", [write_cifar_python, write_cifar_binary])
def test_cifar_archives(write, tmp_path):
    batches = cifar_batches()
    archive = write(tmp_path / "cifar-10.tar.gz", batches)
    manifest = prepare("cifar10", tmp_path / "out", source=archive)
    data = load_dataset(tmp_path / "out")
    assert manifest["splits"] == {"train": [0, 15], "test": [15, 18]}
    assert manifest["source"]["official"] is False
    assert data.classes == tuple(CIFAR_CLASSES)
    assert data.labels.tolist() == [label for _, labels in batches.values() for label in labels]
    flat = np.concatenate([pixels for pixels, _ in batches.values()])
    assert np.array_equal(data.batch(range(18)).numpy(), flat.reshape(-1, 3, 32, 32))


def test_both_cifar_archives_pack_to_the_same_bytes(tmp_path):
    batches = cifar_batches()
    one = prepare("cifar10", tmp_path / "p", source=write_cifar_python(tmp_path / "p.tar.gz", batches))
    folder = tmp_path / "raw"
    folder.mkdir()
    write_cifar_binary(folder / "cifar-10-binary.tar.gz", batches)
    assert prepare("cifar10", tmp_path / "b", source=folder)["sha256"] == one["sha256"]


def test_cifar_without_a_source_is_downloaded_once(tmp_path, monkeypatch):
    published = write_cifar_binary(tmp_path / "served.tar.gz", cifar_batches())
    calls = []

    def fake_download(url, path, **expected):
        calls.append((url, expected["md5"]))
        path.parent.mkdir(parents=True)
        return published.rename(path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "download", fake_download)
    assert prepare("cifar10", tmp_path / "out")["n"] == 18
    assert calls == [
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")
    ]
    assert (tmp_path / "cache" / "fewstep" / "cifar-10-binary.tar.gz").exists()


class Malice:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [exec, print, getattr, np.load, np.frombuffer])
def test_pickle_that_asks_for_code_is_refused(function, protocol, tmp_path):
    data = pickle.dumps({b"data": Malice(function, "x")}, protocol=protocol)
    with pytest.raises(DataError, match="numpy arrays alone.*do not trust"):
        load_arrays(data, "data_batch_1")


def test_malicious_archive_is_refused_and_nothing_runs(tmp_path):
    ran = tmp_path / "ran"
    archive = write_cifar_python(tmp_path / "a.tar.gz", cifar_batches())
    import tarfile

    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    attack = Malice(exec, f"open({str(ran)!r}, 'w')")
    files["cifar-10-batches-py/data_batch_3"] = pickle.dumps({b"data": attack})
    write_tar(archive, files, "w:gz")
    with pytest.raises(DataError, match=r"a\.tar\.gz:data_batch_3 must hold numpy arrays alone"):
        cifar10_source(archive)
    assert not ran.exists()


def test_python_3_pickles_are_read_too():
    array = noise(2, 3072)
    loaded = load_arrays(pickle.dumps({"data": array, "labels": [1, 2]}, protocol=4), "x")["data"]
    assert np.array_equal(loaded, array)
    assert np.array_equal(load_arrays(python2_pickle({b"data": array}), "x")["data"], array)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x80\x02garbage", "must be a pickle"),
        (b"", "must be a pickle"),
        (pickle.dumps([1]), "must hold a dict"),
        (python2_pickle({b"data": noise(2, 7), b"labels": [1, 2]}), "uint8"),
        (python2_pickle({b"data": noise(2, 3072), b"labels": [1]}), "2 labels"),
    ],
)
def test_damaged_python_batches(content, message):
    with pytest.raises(DataError, match=message):
        cifar10.read_python_batch(content, "data_batch_1")


def test_damaged_cifar_archives(tmp_path):
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz or"):
        cifar10_source(tmp_path)
    with pytest.raises(DataError, match="multiple of 3073"):
        cifar10.read_binary_batch(b"123", "data_batch_1.bin")
    whole = write_cifar_binary(tmp_path / "a.tar.gz", cifar_batches())
    whole.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(DataError, match="cannot be read"):
        cifar10_source(whole)
    batches = cifar_batches()
    del batches["data_batch_4"]
    with pytest.raises(DataError, match="lacks data_batch_4"):
        cifar10_source(write_cifar_binary(tmp_path / "b.tar.gz", batches))
    batches = cifar_batches()
    batches["test_batch"][1][0] = 10
    with pytest.raises(DataError, match="labels 0 to 9"):
        cifar10_source(write_cifar_binary(tmp_path / "c.tar.gz", batches))


def test_celeba(tmp_path):
    raw = write_celeba(tmp_path / "raw")
    manifest = prepare("celeba", tmp_path / "out", source=raw, workers=1)
    assert manifest["splits"] == {"train": [0, 2], "valid": [2, 4], "test": [4, 6]}
    assert manifest["shape"] == [64, 64, 3]
    assert manifest["transform"] == "rgb + crop rows 57:185 columns 25:153 + bilinear-64"
    data = load_dataset(tmp_path / "out", "valid")
    assert data.labels is None
    assert data.manifest["attributes"] == CELEBA_ATTRIBUTES
    assert data.attributes[0].tolist() == [int((2 + a) % 3 == 0) for a in range(40)]
    with __import__("zipfile").ZipFile(raw / "img_align_celeba.zip") as archive:
        image = Image.open(archive.open("img_align_celeba/000003.jpg"))
        expected = image.crop((25, 57, 153, 185)).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(data.images[0], np.asarray(expected))


def lay_out_as(kind, raw, out):
    """The same images and lists as torchvision, and as Kaggle, have them."""
    import zipfile

    out.mkdir()
    lists = {name: (raw / f"{name}.txt").read_text() for name in ("list_eval_partition", "list_attr_celeba")}
    if kind == "torchvision":
        out = out / "celeba"
        out.mkdir()
        (out / "identity_CelebA.txt").write_text("000001.jpg 1")
    with zipfile.ZipFile(raw / "img_align_celeba.zip") as archive:
        archive.extractall(out / "img_align_celeba" if kind == "kaggle" else out)
    for name, text in lists.items():
        if kind == "kaggle":
            rows = [line.split() for line in text.splitlines()]
            header = [["image_id", "partition"]] if "partition" in name else [["image_id", *rows[1]]]
            rows = [*header, *(rows if "partition" in name else rows[2:])]
            (out / f"{name}.csv").write_text("\n".join(map(",".join, rows)))
        else:
            (out / f"{name}.txt").write_text(text)


@pytest.mark.parametrize("kind", ["torchvision", "kaggle"])
def test_celeba_as_others_lay_it_out(kind, tmp_path):
    raw = write_celeba(tmp_path / "raw")
    lay_out_as(kind, raw, tmp_path / kind)
    official = prepare("celeba", tmp_path / "official", source=raw, workers=1)
    manifest = prepare("celeba", tmp_path / "out", source=tmp_path / kind, workers=1)
    assert manifest["sha256"] == official["sha256"] and manifest["splits"] == official["splits"]
    assert manifest["attributes"] == CELEBA_ATTRIBUTES and len(manifest["source"]["sha256"]) == 2
    if kind == "torchvision":
        folder = tmp_path / "torchvision" / "celeba"
        assert prepare("celeba", tmp_path / "own", source=folder, workers=1)["sha256"] == official["sha256"]
        (folder / "img_align_celeba" / "000003.jpg").unlink()
        with pytest.raises(DataError, match=r"000003\.jpg is in one only"):
            prepare("celeba", tmp_path / "cut", source=folder, workers=1)


def test_celeba_files_must_agree(tmp_path):
    with pytest.raises(DataError, match=r"img_align_celeba\.zip is missing"):
        prepare("celeba", tmp_path / "out", source=tmp_path)
    raw = write_celeba(tmp_path / "raw")
    (raw / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    with pytest.raises(DataError, match=r"000002\.jpg is in one only"):
        prepare("celeba", tmp_path / "out", source=raw)
    (raw / "list_eval_partition.txt").write_text("000001.jpg 3\n")
    with pytest.raises(DataError, match="line 1 must be a file name and 0, 1 or 2"):
        prepare("celeba", tmp_path / "out", source=raw)
    (raw / "list_eval_partition.txt").write_text("000001.jpg 0\n000001.jpg 2\n")
    with pytest.raises(DataError, match=r"000001\.jpg one split, but gives it two"):
        prepare("celeba", tmp_path / "out", source=raw)
    raw = write_celeba(tmp_path / "other")
    lists = raw / "list_attr_celeba.txt"
    lists.write_text(lists.read_text().replace("-1", "-2", 1))
    with pytest.raises(DataError, match="40 times -1 or 1"):
        prepare("celeba", tmp_path / "out", source=raw)


@pytest.mark.parametrize("size", [64, 128, None])
def test_lsun(size, tmp_path):
    raw = tmp_path / "raw"
    webp = {f"{i:040x}".encode(): encoded(noise(40, 60, 3, seed=i), "WEBP", lossless=True) for i in range(3)}
    write_lsun(raw / "bedroom_train_lmdb", webp)
    write_lsun(raw / "bedroom_val_lmdb", {b"v": encoded(noise(60, 40, 3), "WEBP", lossless=True)})
    manifest = prepare("lsun-bedroom", tmp_path / "out", source=raw, size=size, workers=2)
    side = size or 256
    assert manifest["name"] == "lsun-bedroom"
    assert manifest["splits"] == {"train": [0, 3], "valid": [3, 4]}
    assert manifest["transform"] == f"rgb + shorter-side-lanczos-{side} + centre-crop"
    width = round(60 * side / 40)
    scaled = Image.fromarray(noise(40, 60, 3, seed=0)).resize((width, side), Image.Resampling.LANCZOS)
    left = (width - side) // 2
    expected = np.asarray(scaled)[:, left : left + side]
    assert np.array_equal(load_dataset(tmp_path / "out").images[0], expected)


@pytest.mark.parametrize("name", ["cat", "cat_lmdb"])
def test_lsun_objects_are_one_database_without_splits(name, tmp_path):
    folder = write_lsun(
        tmp_path / name, {b"%d" % i: encoded(noise(8, 8, 3, seed=i), "WEBP") for i in range(3)}
    )
    for source, out in ((folder, "a"), (tmp_path, "b")):
        manifest = prepare("lsun-cat", tmp_path / out, source=source, size=8, workers=1)
        assert manifest["splits"] == {"train": [0, 3]} and list(manifest["source"]["databases"]) == [name]
    with pytest.raises(DataError, match="dog_train_lmdb"):
        prepare("lsun-dog", tmp_path / "c", source=folder)
    write_lsun(tmp_path / "cat_val_lmdb", {b"1": encoded(noise(8, 8, 3), "WEBP")})
    with pytest.raises(DataError, match=f"must hold cat once, but holds cat_val_lmdb and {name}"):
        prepare("lsun-cat", tmp_path / "d", source=tmp_path)


def test_lsun_database_named_directly_and_corrupt_values(tmp_path):
    values = {b"a": encoded(noise(8, 8, 3), "WEBP"), b"b": b"broken", b"c": encoded(noise(8, 8, 3), "JPEG")}
    folder = write_lsun(tmp_path / "church_outdoor_train_lmdb", values)
    with pytest.raises(DataError, match="church_outdoor_train_lmdb/b must be a readable image"):
        prepare("lsun-church_outdoor", tmp_path / "out", source=folder, size=8, workers=1)
    manifest = prepare("lsun-church_outdoor", tmp_path / "out", source=folder, size=8, skip_corrupt=True)
    assert manifest["skipped"] == ["church_outdoor_train_lmdb/b"]
    assert manifest["n"] == 2


def test_lsun_without_a_database(tmp_path):
    with pytest.raises(DataError, match="cat_train_lmdb"):
        prepare("lsun-cat", tmp_path / "out", source=tmp_path)
    folder = tmp_path / "cat_train_lmdb"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"no database")
    with pytest.raises(DataError, match="must be an LMDB database"):
        prepare("lsun-cat", tmp_path / "out", source=folder)


def test_truncated_lsun_database_does_not_crash(tmp_path):
    folder = write_lsun(
        tmp_path / "cat_train_lmdb", {b"%d" % i: noise(3000, seed=i).tobytes() for i in range(20)}
    )
    data = (folder / "data.mdb").read_bytes()
    (folder / "data.mdb").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cat_train_lmdb must have .* bytes"):
        prepare("lsun-cat", tmp_path / "out", source=folder)
