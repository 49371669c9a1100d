"""Image folders and archives: class and split from the names of their folders.

Layout: [train|valid|test/]CLASS/.../image. Folders that all images share are ignored. The top folder is the
split when every top folder is named like one, else the class is the top folder and the split follows from a
hash of the name. Images without a class folder, or all in one class, make a dataset without labels.
"""

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from fewstep.checks import DataError
from fewstep.data.archives import (
    SUFFIXES,
    Member,
    archive_errors,
    blob_reader,
    folder_members,
    folder_reader,
    is_plain_tar,
    plain_tar_reader,
    stream_tar,
    tar_members,
    zip_members,
    zip_reader,
)
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
    Raises: DataError: no such file, no images in it, damaged, or an image outside the class folders.
    """
    if source is None or not source.exists():
        raise DataError(
            f"source must be a folder or archive of images, but {source} does not exist; check the path."
        )
    stream = None
    open_reader: Callable[[], AbstractContextManager[Read]]
    origin: dict[str, Any]
    if source.is_dir():
        members, open_reader = folder_members(source), partial(folder_reader, source)
        origin = {"kind": "folder"}
    else:
        with archive_errors(source):
            if zipfile.is_zipfile(source):
                members, open_reader = zip_members(source), partial(zip_reader, source)
            elif is_plain_tar(source):
                members, open_reader = tar_members(source, "r:"), partial(plain_tar_reader, source)
            else:
                members, open_reader = tar_members(source, "r|*"), blob_reader
                stream = partial(stream_tar, source)
        origin = {"kind": "archive", "file": source.name, "sha256": sha256_file(source)}
    if not members:
        raise DataError(
            f"{source} must hold images ({' '.join(sorted(SUFFIXES))}), but holds none; check the path."
        )
    items, classes, split_rule = items_of(members, test_fraction=test_fraction)
    return Source(
        name=source.name.split(".")[0].lower(),
        items=items,
        open_reader=open_reader,
        transform=Transform(size=size, grey=grey),
        origin={**origin, "images": len(items), "split": split_rule},
        classes=classes,
        stream=stream,
    )


def items_of(
    members: Sequence[Member], *, test_fraction: float
) -> tuple[list[Item], tuple[str, ...] | None, str]:
    """Split and class of every member, sorted by name; the names of the classes; how the split was made.
    Raises: DataError: some images lie in class folders and some do not.
    """
    latest = {member[0]: member for member in members}  # a tar may hold a name again: the last one counts
    members = [latest[name] for name in sorted(latest)]
    folders = _without_shared([tuple(name.split("/")[:-1]) for name, _, _ in members])
    split_by_folder = all(parts and parts[0].lower() in SPLIT_FOLDERS for parts in folders)
    class_names = [parts[split_by_folder] if len(parts) > split_by_folder else None for parts in folders]
    found = {name for name in class_names if name is not None}
    if None in class_names and found:
        name = members[class_names.index(None)][0]
        raise DataError(
            f"{name} must lie in a class folder, as other images do ({sorted(found)[0]}); move it."
        )
    classes = sorted(found) if len(found) > 1 else None
    items = []
    for (name, where, stamp), parts, class_name in zip(members, folders, class_names, strict=True):
        if split_by_folder:
            split = SPLIT_FOLDERS[parts[0].lower()]
        else:
            own_name = "/".join((*parts, name.rsplit("/", 1)[-1]))
            split = "test" if _unit_hash(own_name) < test_fraction else "train"
        label = classes.index(class_name) if classes is not None and class_name is not None else None
        items.append(Item(name, split, label, where, stamp))
    split_rule = "by folder" if split_by_folder else f"test where sha256(name) / 2^256 < {test_fraction}"
    return items, None if classes is None else tuple(classes), split_rule


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
