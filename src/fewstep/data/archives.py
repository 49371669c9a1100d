"""Members of folders, zips and tars, read where they are: nothing is unpacked to disk."""

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from fewstep.checks import DataError
from fewstep.data.source import Item, Read

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
    ".jp2", ".avif",
})  # fmt: skip

# What the archive modules raise on a damaged or truncated file.
_BAD_ARCHIVE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)

Member = tuple[str, Any, str]  # name in the source, where the reader finds it, stamp


def is_image_name(name: str) -> bool:
    """Whether a member is an image by its suffix; hidden files and macOS resource forks are not."""
    hidden = any(part.startswith(".") and part != "." or part == "__MACOSX" for part in name.split("/"))
    return os.path.splitext(name)[1].lower() in SUFFIXES and not hidden


def open_image(blob: bytes) -> Image.Image:
    """Decode a whole image file; the first frame of several."""
    image = Image.open(BytesIO(blob))
    image.load()
    return image


def folder_members(folder: Path) -> list[Member]:
    """Image files below a folder; where is the relative path."""
    members: list[Member] = []
    below = [""]
    while below:
        inside = below.pop()
        with os.scandir(folder / inside) as entries:  # several times faster than Path.rglob
            for entry in entries:
                name = inside + entry.name
                if entry.is_dir(follow_symlinks=False):
                    below.append(f"{name}/")
                elif is_image_name(name) and entry.is_file():
                    status = entry.stat()
                    members.append((name, name, f"{status.st_size}-{status.st_mtime_ns}"))
    return members


@contextmanager
def folder_reader(folder: Path) -> Iterator[Read]:
    """Read members of a folder."""
    root = str(folder)

    def read(item: Item, blob: bytes | None) -> Image.Image:
        with open(os.path.join(root, item.where), "rb") as file:
            return open_image(file.read())

    yield read


def zip_members(path: Path) -> list[Member]:
    """Images in a zip; where is the name."""
    with zipfile.ZipFile(path) as archive:
        return [(name, name, "") for name in archive.namelist() if is_image_name(name)]


@contextmanager
def zip_reader(path: Path) -> Iterator[Read]:
    """Read members of a zip, through a handle of its own."""
    with zipfile.ZipFile(path) as archive:
        yield lambda item, blob: open_image(archive.read(item.where))


def is_plain_tar(path: Path) -> bool:
    """Whether it is a tar without compression, in which members can be sought."""
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False


def tar_members(path: Path, mode: Literal["r:", "r|*"]) -> list[Member]:
    """Images in a tar; where is (offset, size) in a plain one ("r:"), the position in a stream ("r|*")."""
    members: list[Member] = []
    with tarfile.open(path, mode) as archive:
        for position, member in enumerate(archive):
            if member.isfile() and is_image_name(member.name):
                where = (member.offset_data, member.size) if mode == "r:" else position
                members.append((member.name.removeprefix("./"), where, ""))
            archive.members = []  # type: ignore[attr-defined]  # else it keeps all headers
    return members


@contextmanager
def plain_tar_reader(path: Path) -> Iterator[Read]:
    """Read members of a plain tar by seeking."""
    with path.open("rb") as file:

        def read(item: Item, blob: bytes | None) -> Image.Image:
            offset, size = item.where
            file.seek(offset)
            return open_image(file.read(size))

        yield read


def stream_tar(path: Path, items: Sequence[Item]) -> Iterator[bytes]:
    """Bytes of the items, which are sorted by position, in one pass."""
    wanted = iter(items)
    item = next(wanted, None)
    with archive_errors(path), tarfile.open(path, "r|*") as archive:
        for position, member in enumerate(archive):
            archive.members = []  # type: ignore[attr-defined]  # see tar_members
            if item is None:
                return
            if position == item.where:
                file = archive.extractfile(member)
                assert file is not None
                yield file.read()
                item = next(wanted, None)


@contextmanager
def blob_reader() -> Iterator[Read]:
    """Read images whose bytes come along with the item."""

    def read(item: Item, blob: bytes | None) -> Image.Image:
        assert blob is not None
        return open_image(blob)

    yield read


@contextmanager
def archive_errors(path: Path) -> Iterator[None]:
    """Turn what the archive modules raise on a damaged file into a DataError that names it."""
    try:
        yield
    except _BAD_ARCHIVE as error:
        raise DataError(
            f"{path} must be a whole zip or tar (.tar, .gz, .bz2, .xz; .zst from Python 3.14), "
            f"but cannot be read ({error}); copy or download it again."
        ) from error
