"""Image folders and archives: class and split from the names of their folders, or from `dataset.json`.

Layout: [train|valid|test/]CLASS/.../image, or CLASS/train|valid|test/.../image. Folders that all images share are
ignored. Where no folder is called like a split, the split follows from a hash of the name. Images without a class
folder, in numbered blocks, or all in one class, make a dataset without labels.
"""

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

from fewstep.checks import DataError
from fewstep.data.archives import (
    Listing,
    Member,
    archive_errors,
    blob_reader,
    folder_reader,
    is_compressed,
    is_plain_tar,
    list_folder,
    list_tar,
    list_zip,
    plain_tar_reader,
    stream_order,
    stream_tar,
    zip_reader,
)
from fewstep.data.labels import are_blocks, read_labels
from fewstep.data.left_out import sentence
from fewstep.data.names import SUFFIXES, member_name
from fewstep.data.source import Item, Read, Source
from fewstep.data.transforms import Transform
from fewstep.files import sha256_file

SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip


def folder_source(
    source: Path | None, *, size: int | None = None, grey: bool = False, test_fraction: float = 0.2
) -> Source:
    """Images in a folder, a zip or a tar of any compression that this Python knows.

    Args: source: the folder or archive. size: centre crop and Lanczos to this side; None needs equal sizes.
    grey: one channel. test_fraction: share of images held out by a hash of their names, where no folder tells
    the split. A compressed tar cannot be sought in: it is read once for its names and once, in order, for its
    images.
    Raises: DataError: no such file, no images in it, damaged, an image outside the class folders or the splits, or
        one without a label where others have one.
    """
    if source is None or not source.exists():
        raise DataError(
            f"source must be a folder or archive of images, but {source} does not exist; check the path."
        )
    stream = None
    open_reader: Callable[[], AbstractContextManager[Read]]
    origin: dict[str, Any]
    if source.is_dir():
        listing, open_reader = list_folder(source), partial(folder_reader, source)
        origin = {"kind": "folder"}
    else:
        with archive_errors(source):
            if is_plain_tar(source):  # first: its last member may be a zip, and look like one
                listing, open_reader = list_tar(source, plain=True), partial(plain_tar_reader, source)
            elif not is_compressed(source) and zipfile.is_zipfile(source):
                listing, open_reader = list_zip(source), partial(zip_reader, source)
            else:
                listing, open_reader = list_tar(source, plain=False), blob_reader
                stream = partial(stream_tar, source)
        origin = {"kind": "archive", "file": member_name(source.name), "sha256": sha256_file(source)}
    require_images(listing, source)
    labels, has_labels = read_labels(
        listing.labels, [name for name, _, _ in listing.members], listing.left_out
    )
    items, classes, rules = items_of(listing.members, test_fraction=test_fraction, labels=labels)
    if labels is not None:
        rules["classes"] = "dataset.json"
    elif has_labels and classes is None:
        rules.setdefault("classes", "none in dataset.json")
    return Source(
        name=member_name(source.name).split(".")[0].lower(),
        items=items,
        open_reader=open_reader,
        transform=Transform(size=size, grey=grey),
        origin={**origin, "images": len(items), **rules},
        classes=classes,
        stream=stream,
        stream_order=stream_order,
        left_out=listing.left_out.record(),
    )


def require_images(listing: Listing, source: str | Path) -> None:
    """Raise DataError where there is none."""
    if not listing.members:
        left_out = sentence(listing.left_out.record())
        raise DataError(
            f"{source} must hold images ({' '.join(sorted(SUFFIXES))}), but holds none"
            f"{left_out and f', only {left_out}'}; check the path."
        )


def items_of(
    members: Sequence[Member], *, test_fraction: float, labels: Mapping[str, int] | None = None
) -> tuple[list[Item], tuple[str, ...] | None, dict[str, str]]:
    """Split and class of every member, sorted by name; the names of the classes; how both were found.

    Args: labels: classes by name, which then come from no folder.
    Raises: DataError: some images lie in folders of classes or splits, and some do not.
    """
    members = sorted(members, key=lambda member: member[0])
    folders = _without_shared([tuple(name.split("/")[:-1]) for name, _, _ in members])
    level = _split_level(members, folders)
    splits = [None if level is None else SPLIT_FOLDERS[parts[level].lower()] for parts in folders]
    rules = {
        "split": "by folder" if level is not None else f"test where sha256(name) / 2^256 < {test_fraction}"
    }
    if labels is not None:
        found = sorted(set(labels.values()))
        classes = [str(number) for number in range(found[-1] + 1)] if len(found) > 1 else None
        numbers = [labels[name] if classes else None for name, _, _ in members]
    else:
        class_names = _class_names(members, folders, 1 if level == 0 else 0, splits, rules)
        names = sorted({name for name in class_names if name is not None})
        classes = names if len(names) > 1 else None
        positions = {name: position for position, name in enumerate(names)}
        numbers = [positions[name] if classes and name is not None else None for name in class_names]
    items = []
    for (name, where, stamp), parts, split, number in zip(members, folders, splits, numbers, strict=True):
        if split is None:
            own_name = "/".join((*parts, name.rsplit("/", 1)[-1]))
            split = "test" if _unit_hash(own_name) < test_fraction else "train"
        items.append(Item(name, split, number, where, stamp))
    return items, None if classes is None else tuple(classes), rules


def _class_names(
    members: Sequence[Member],
    folders: Sequence[tuple[str, ...]],
    level: int,
    splits: Sequence[str | None],
    rules: dict[str, str],
) -> list[str | None]:
    """The folder of each image at that level, in one spelling; None for all where the folders are no classes."""
    found = [parts[level] if len(parts) > level else None for parts in folders]
    present = {name for name in found if name is not None}
    if None in found and present:
        name = members[found.index(None)][0]
        raise DataError(
            f"{name} must lie in a class folder, as other images do ({sorted(present)[0]}); move it."
        )
    places = zip(splits, found, members, strict=True)
    if present and are_blocks(
        (split or "", name or "", member[0].rsplit("/", 1)[-1]) for split, name, member in places
    ):
        rules["classes"] = "none, the folders are blocks of numbered images"
        return [None] * len(found)
    spellings: dict[str, set[str]] = {}
    for name in present:
        spellings.setdefault(normalize("NFC", name), set()).add(name)
    # what has only one spelling keeps it
    one = {name: known if len(names) > 1 else name for known, names in spellings.items() for name in names}
    return [None if name is None else one[name] for name in found]


def _split_level(members: Sequence[Member], folders: Sequence[tuple[str, ...]]) -> int | None:
    """Which folder tells the split: the first, the second (within a class), or None.
    Raises: DataError: only some images lie in folders of splits, and they would be taken for classes, or mixed.
    """
    for level in (0, 1):
        at_level = [
            parts[level].lower() if len(parts) > level and parts[level].lower() in SPLIT_FOLDERS else None
            for parts in folders
        ]
        names = sorted({name for name in at_level if name is not None})
        several = len({SPLIT_FOLDERS[name] for name in names}) > 1
        if None not in at_level and (level == 0 or several):
            return level
        inside = {parts[1:2] for parts, name in zip(folders, at_level, strict=True) if name is not None}
        # one such folder among others is the class "train", if it has no folders of classes itself
        if None in at_level and (several or (level == 0 and len(inside) > 1)):
            raise DataError(
                f"{members[at_level.index(None)][0]} must lie in the folder of a split, as other images do "
                f"({', '.join(names)}); move it, or prepare the folders of the splits alone."
            )
    return None


def _without_shared(folders: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Drop the leading folders that all images share, as in archives of a project; never a split."""
    shared = 0
    first = folders[0]
    while all(len(parts) > shared and parts[shared] == first[shared] for parts in folders):
        if first[shared].lower() in SPLIT_FOLDERS:
            break
        shared += 1
    return [parts[shared:] for parts in folders]


def _unit_hash(name: str) -> float:
    """A number in [0, 1) from a name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
