"""CelebA from its aligned images, partition and attribute lists, as its authors, torchvision and Kaggle lay it out."""

import csv
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from fewstep.checks import DataError
from fewstep.data.archives import Listing, archive_errors, folder_reader, list_folder, list_zip, zip_reader
from fewstep.data.folder import require_images
from fewstep.data.source import Item, Read, Source
from fewstep.data.transforms import Transform
from fewstep.files import sha256_file

IMAGES, PARTITION, ATTRIBUTES = "img_align_celeba", "list_eval_partition", "list_attr_celeba"
DEFAULT_SIZE = 64
_SPLITS = {"0": "train", "1": "valid", "2": "test"}


def celeba_source(
    source: Path | None, *, size: int | None = None, grey: bool = False, test_fraction: float = 0.0
) -> Source:
    """CelebA [liu2015celeba] with the crop of the DDIM literature: 128 x 128 at row 121, column 89; bilinear.

    Args: source: folder with the aligned images (`img_align_celeba.zip`, or a folder of that name) and the two lists
    (.txt, or Kaggle's .csv), or one with such a folder `celeba`, as torchvision's. The zip and .txt are taken where
    there is a choice. size: 64 when None. grey: one channel. test_fraction: has no say, the partition list tells the
    splits.
    Its 40 attributes become `attributes.npy`; an image has no single class, so there are no labels.
    Raises: DataError: a file is missing, damaged, or the lists and the images do not name the same images.
    """
    folder = source if source is not None else Path()
    if not _first(folder, PARTITION, ".txt", ".csv") and (folder / "celeba").is_dir():
        folder = folder / "celeba"
    images = _required(folder, IMAGES, ".zip", "")
    partition = _required(folder, PARTITION, ".txt", ".csv")
    attributes = _required(folder, ATTRIBUTES, ".txt", ".csv")
    splits = read_partition(partition)
    names, values = read_attributes(attributes)
    listing, open_reader = _listed(images)
    require_images(listing, images)
    members: dict[str, tuple[Any, str]] = {}
    for path_inside, where, stamp in listing.members:
        name = path_inside.rsplit("/", 1)[-1]
        if members.setdefault(name, (where, stamp)) != (where, stamp):
            raise DataError(
                f"{images} must hold each image once, but holds several {name}; remove the others."
            )
    for known, path in ((splits, partition), (values, attributes)):
        odd = sorted(set(members) ^ set(known))
        if odd:
            raise DataError(
                f"{path} and {images} must name the same images, "
                f"but {odd[0]} is in one only; fetch both again."
            )
    items = [
        Item(name, splits[name], None, members[name][0], members[name][1], attributes=values[name])
        for name in sorted(members)
    ]
    hashed = [path for path in (images, partition, attributes) if path.is_file()]
    return Source(
        name="celeba",
        items=items,
        open_reader=open_reader,
        transform=Transform(size=DEFAULT_SIZE if size is None else size, fit="celeba-crop", grey=grey),
        origin={"kind": "celeba", "sha256": {path.name: sha256_file(path) for path in hashed}},
        attributes=names,
        left_out=listing.left_out.record(),
    )


def _listed(images: Path) -> tuple[Listing, Callable[[], AbstractContextManager[Read]]]:
    if images.is_dir():
        return list_folder(images), partial(folder_reader, images)
    with archive_errors(images):
        return list_zip(images), partial(zip_reader, images)


def _first(folder: Path, name: str, *suffixes: str) -> Path | None:
    return next((path for suffix in suffixes if (path := folder / f"{name}{suffix}").exists()), None)


def _required(folder: Path, name: str, *suffixes: str) -> Path:
    path = _first(folder, name, *suffixes)
    if path is None:
        raise DataError(
            f"source must be a folder with {IMAGES}.zip (or the folder {IMAGES}), {PARTITION}.txt and {ATTRIBUTES}.txt "
            f"(or .csv), but {folder / name}{suffixes[0]} is missing."
        )
    return path


def _rows(path: Path) -> list[list[str]]:
    """Words of each line; of Kaggle's tables the cells."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be text in UTF-8, but is not ({error}); fetch it again.") from None
    lines = text.splitlines()
    return list(csv.reader(lines)) if path.suffix == ".csv" else [line.split() for line in lines]


def read_partition(path: Path) -> dict[str, str]:
    """Lines of "000001.jpg 0": the split of every image."""
    splits: dict[str, str] = {}
    for number, words in enumerate(_rows(path), 1):
        is_title = path.suffix == ".csv" and number == 1
        if not words or is_title:
            continue
        if len(words) != 2 or words[1] not in _SPLITS:
            raise DataError(
                f"{path} line {number} must be a file name and 0, 1 or 2, but is {' '.join(words)!r:.80}; fetch it "
                "again."
            )
        if splits.setdefault(words[0], _SPLITS[words[1]]) != _SPLITS[words[1]]:
            raise DataError(f"{path} must give {words[0]} one split, but gives it two; fetch it again.")
    return splits


def read_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """A line of attribute names, then per image its name and -1 or 1 for each: as 0 and 1.

    Before the names stands a count, and in Kaggle's table the title of the first column.
    """
    rows = _rows(path)
    titles = 1 if path.suffix == ".csv" else 2
    names = tuple(rows[titles - 1][2 - titles :]) if len(rows) >= titles else ()
    values = {}
    for number, words in enumerate(rows[titles:], titles + 1):
        if not words:
            continue
        if len(words) != 1 + len(names) or not set(words[1:]) <= {"-1", "1"}:
            raise DataError(
                f"{path} line {number} must be a file name and {len(names)} times -1 or 1; fetch it again."
            )
        values[words[0]] = tuple(int(word == "1") for word in words[1:])
    return names, values
