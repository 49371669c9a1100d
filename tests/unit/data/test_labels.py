"""Zips, tars and folders of the `dataset_tool` of EDM and StyleGAN."""

import json

import pytest
from formats import encoded, noise, write_files, write_tar, write_zip

from fewstep.checks import DataError
from fewstep.data.folder import folder_source
from fewstep.data.labels import are_blocks
from fewstep.data.left_out import NOT_IMAGES, UNKNOWN_LABELS, VECTORS
from fewstep.data.packed import load_dataset

PNG = encoded(noise(4, 4, 3))
NAMES = ["00000/img00000000.png", "00000/img00000999.png", "00001/img00001000.png"]


def tool(folder, labels, kind="zip", names=NAMES):
    files = dict.fromkeys(names, PNG) | {"dataset.json": json.dumps({"labels": labels}).encode()}
    if kind == "folder":
        return write_files(folder / "raw", files)
    if kind == "zip":
        return write_zip(folder / "raw.zip", files)
    return write_tar(folder / f"raw.{kind}", files, {"tar": "w", "tar.gz": "w:gz"}[kind])


def named(labels, names=NAMES):
    return [[name, label] for name, label in zip(names, labels, strict=True)]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_labels_are_the_classes_and_blocks_are_not(kind, tmp_path):
    from fewstep.data.prepare import prepare

    manifest = prepare(
        "folder", tmp_path / "out", source=tool(tmp_path, named([2, 0, 2]), kind), test_fraction=0.0
    )
    assert manifest["classes"] == ["0", "1", "2"], "numbers keep their meaning where a class has no image"
    assert load_dataset(tmp_path / "out").labels.tolist() == [2, 0, 2]
    assert manifest["source"]["classes"] == "dataset.json" and manifest["left_out"] == {}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("labels", [None, [], named([None] * 3)])
def test_without_labels_blocks_are_no_classes(kind, labels, tmp_path):
    source = folder_source(tool(tmp_path, labels, kind))
    assert source.classes is None and {item.label for item in source.items} == {None}
    assert source.origin["classes"] == "none, the folders are blocks of numbered images"


def test_null_labels_leave_classes_to_the_folders(tmp_path):
    """As `dataset_tool` itself reads a folder whose `dataset.json` has none."""
    source = folder_source(tool(tmp_path, None, names=["cat/1.png", "dog/2.png"]))
    assert source.classes == ("cat", "dog") and "classes" not in source.origin


def test_one_hot_vectors_are_classes_and_others_are_counted(tmp_path):
    source = folder_source(tool(tmp_path, named([[0, 1.0, 0], [1, 0, 0], [0, 0, 1]])))
    assert source.classes == ("0", "1", "2") and [item.label for item in source.items] == [1, 0, 2]
    source = folder_source(tool(tmp_path, named([[0.5, 0.5], [1, 0], [0, 1]])))
    assert source.classes is None and source.left_out[VECTORS]["count"] == 3
    assert source.origin["classes"] == "none, the folders are blocks of numbered images"


def test_one_label_for_all_is_no_label(tmp_path):
    assert folder_source(tool(tmp_path, named([1, 1, 1]))).classes is None


def test_labels_of_images_that_are_not_there_are_counted(tmp_path):
    source = folder_source(tool(tmp_path, [*named([0, 1, 1]), ["00009/img00009000.png", 3]]))
    assert source.classes == ("0", "1")
    assert source.left_out == {UNKNOWN_LABELS: {"count": 1, "examples": ["00009/img00009000.png"]}}


@pytest.mark.parametrize(
    "labels, message",
    [
        (named([0, 1, 1])[:2], r"00001/img00001000\.png has none"),
        ([*named([0, 1, 1]), [NAMES[0], 2]], "one label, but gives 0 and 2"),
        (named([0, [1, 0], 1]), "labels of one kind"),
        (named([[1, 0], [1, 0, 0], [0, 1]]), "labels of one kind"),
        (named([0, 1, -1]), "a number from 0 on"),
        (named([0, 1, True]), "a number from 0 on"),
        (named([0, 1, 1.5]), "a number from 0 on"),
        ({"a": 1}, "a list of labels or null, but holds dict"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels, message, tmp_path):
    with pytest.raises(DataError, match=message):
        folder_source(tool(tmp_path, labels))


def test_damaged_and_other_files_of_that_name(tmp_path):
    files = {"cat/1.png": PNG, "dog/2.png": PNG, "dataset.json": b'{"name": "pets"}'}
    source = folder_source(write_zip(tmp_path / "a.zip", files))
    assert source.classes == ("cat", "dog") and source.left_out[NOT_IMAGES]["count"] == 1
    with pytest.raises(DataError, match=r"dataset\.json must be JSON"):
        folder_source(write_zip(tmp_path / "b.zip", files | {"dataset.json": b"{"}))


def test_splits_and_folders_around_it(tmp_path):
    """One file for each split, in a project's folder."""
    files = {f"p/{split}/{name}": PNG for split in ("train", "test") for name in NAMES}
    for split, labels in (("train", [0, 1, 2]), ("test", [2, 1, 0])):
        files[f"p/{split}/dataset.json"] = json.dumps({"labels": named(labels)}).encode()
    source = folder_source(write_zip(tmp_path / "a.zip", files))
    assert {split: [item.label for item in source.items if item.split == split] for split in ("train", "test")} == {
        "train": [0, 1, 2], "test": [2, 1, 0],
    }  # fmt: skip


def blocks(unit, *, by_first, n, folder="{:06d}", file="{:06d}.png"):
    return [("", folder.format(i - i % unit if by_first else i // unit), file.format(i)) for i in range(n)]


@pytest.mark.parametrize(
    "places",
    [
        blocks(1000, by_first=True, n=2500),  # EDM's generate --subdirs
        blocks(1000, by_first=True, n=2500, folder="{:05d}", file="{:05d}.png")[::7],  # FFHQ, some of it
        blocks(1000, by_first=False, n=2500, folder="{:05d}", file="img{:08d}.png")[
            ::50
        ],  # dataset_tool, some of it
        blocks(100, by_first=False, n=250, folder="{:03d}", file="{:06d}.png"),
    ],
)
def test_numbered_blocks_are_no_classes(places):
    assert are_blocks(places)


@pytest.mark.parametrize(
    "places",
    [
        [("", str(i % 10), f"{i:05d}.png") for i in range(1000)],  # MNIST
        [
            ("", f"{c:03d}", f"{i:04d}.png") for c in range(3) for i in range(50)
        ],  # numbers begin anew in each class
        [
            ("", f"{c:05d}", f"{c * 1000 + i:08d}.png") for c in range(3) for i in range(50)
        ],  # named after their class
        [("", f"n{c:08d}", f"n{c:08d}_{i}.png") for c in range(3) for i in range(50)],  # ImageNet
        [("", "001.cat", "001_0001.png"), ("", "002.dog", "002_0001.png")],  # Caltech
        [("", "cat", "1.png"), ("", "00000", "img00000000.png")],
    ],
)
def test_classes_that_look_like_blocks_stay_classes(places):
    assert not are_blocks(places)
