"""Image folders and archives, read where they are: nothing is unpacked to disk.

Layout: [train|valid|test/]CLASS/.../image. Folders that all images share are ignored. The top folder is the split when every
top folder is named like one, else the class is the top folder and the split follows from a hash of the name. Images
without a class folder, or all in one class, make a dataset without labels.
"""

import hashlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from fewstep.checks import DataError
from fewstep.data.source import Item, Read, Source
from fewstep.data.transforms import Transform
from fewstep.files import sha256_file

SUFFIXES = frozenset(
    ".jpg .jpeg .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .avif".split()
)  # fmt: skip
SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip

# What the archive modules raise on a damaged or truncated file.
_BAD_ARCHIVE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)

Member = tuple[str, Any, str]  # name in the source, where the reader finds it, stamp


def folder_source(
    source: Path | None, *, size: int | None = None, grey: bool = False, test_fraction: float = 0.2
) -> Source:
    """Images in a folder, a zip or a tar of any compression that this Python knows.

    Args: source: the folder or archive. size: centre crop and Lanczos to this side; None needs equal sizes. grey: one
    channel. test_fraction: share of images held out by a hash of their names, where no folder tells the split.
    A compressed tar cannot be sought in: it is read once for its names and once, in order, for its images.
    Raises: DataError: no such file, no images in it, damaged, or an image outside the class folders.
    """
    if source is None or not source.exists():
        raise DataError(
            f"source must be a folder or archive of images, but {source} does not exist; check the path."
        )
    stream = None
    if source.is_dir():
        members, origin, open_reader = (
            _folder_members(source),
            {"kind": "folder"},
            partial(_folder_reader, source),
        )
    else:
        with _archive_errors(source):
            if zipfile.is_zipfile(source):
                members, open_reader = _zip_members(source), partial(_zip_reader, source)
            elif _is_plain_tar(source):
                members, open_reader = _tar_members(source, "r:"), partial(_plain_tar_reader, source)
            else:
                members, open_reader = _tar_members(source, "r|*"), _blob_reader
                stream = partial(_stream_tar, source)
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
    members = sorted(members, key=lambda member: member[0])
    folders = _without_shared([PurePosixPath(name).parts[:-1] for name, _, _ in members])
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
            split = (
                "test"
                if _unit_hash("/".join((*parts, PurePosixPath(name).name))) < test_fraction
                else "train"
            )
        label = classes.index(class_name) if classes is not None and class_name is not None else None
        items.append(Item(name, split, label, where, stamp))
    split_rule = "by folder" if split_by_folder else f"test where sha256(name) / 2^256 < {test_fraction}"
    return items, None if classes is None else tuple(classes), split_rule


def _without_shared(folders: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Drop leading folders that all images share, as archives of a project have; a split is not one of them."""
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


def is_image_name(name: str) -> bool:
    """Whether a member is an image by its suffix; hidden files and macOS resource forks are not."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != "." or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def open_image(blob: bytes) -> Image.Image:
    """Decode a whole image file; the first frame of several."""
    image = Image.open(BytesIO(blob))
    image.load()
    return image


# ---------------------------------------------------------------------------------- one pair for each kind of source


def _folder_members(folder: Path) -> list[Member]:
    members: list[Member] = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if is_image_name(name) and path.is_file():
            status = path.stat()
            members.append((name, name, f"{status.st_size}-{status.st_mtime_ns}"))
    return members


@contextmanager
def _folder_reader(folder: Path) -> Iterator[Read]:
    yield lambda item, blob: open_image((folder / item.where).read_bytes())


def _zip_members(path: Path) -> list[Member]:
    with zipfile.ZipFile(path) as archive:
        return [(name, name, "") for name in archive.namelist() if is_image_name(name)]


@contextmanager
def _zip_reader(path: Path) -> Iterator[Read]:
    with zipfile.ZipFile(path) as archive:
        yield lambda item, blob: open_image(archive.read(item.where))


def _is_plain_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False


def _tar_members(path: Path, mode: Any) -> list[Member]:
    """Where is (offset, size) in a plain tar, the position among all members in a compressed one."""
    members: list[Member] = []
    with tarfile.open(path, mode) as archive:
        for position, member in enumerate(archive):
            if member.isfile() and is_image_name(member.name):
                where = (member.offset_data, member.size) if mode == "r:" else position
                members.append((str(PurePosixPath(member.name)), where, ""))
            archive.members = []  # else a stream keeps every header that it has passed
    return members


@contextmanager
def _plain_tar_reader(path: Path) -> Iterator[Read]:
    with path.open("rb") as file:

        def read(item: Item, blob: bytes | None) -> Image.Image:
            offset, size = item.where
            file.seek(offset)
            return open_image(file.read(size))

        yield read


def _stream_tar(path: Path, items: Sequence[Item]) -> Iterator[bytes]:
    """Bytes of the items, which are sorted by position, in one pass."""
    wanted = iter(items)
    item = next(wanted, None)
    with _archive_errors(path), tarfile.open(path, "r|*") as archive:
        for position, member in enumerate(archive):
            archive.members = []
            if item is None:
                return
            if position == item.where:
                file = archive.extractfile(member)
                assert file is not None
                yield file.read()
                item = next(wanted, None)


@contextmanager
def _blob_reader() -> Iterator[Read]:
    def read(item: Item, blob: bytes | None) -> Image.Image:
        assert blob is not None
        return open_image(blob)

    yield read


@contextmanager
def _archive_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except _BAD_ARCHIVE as error:
        raise DataError(
            f"{path} must be a whole zip or tar archive (.tar, .gz, .bz2, .xz; .zst from Python 3.14), but it cannot be "
            f"read ({error}); copy or download it again."
        ) from error
