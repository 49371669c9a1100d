"""Members of folders, zips and tars, read where they are: nothing is unpacked to disk.

Links are followed. Every file is a member or is counted as left out.
"""

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.checks import DataError
from fewstep.data.decoding import open_image
from fewstep.data.left_out import HIDDEN, LOOP, NOT_IMAGES, REPLACED, SPECIAL, LeftOut
from fewstep.data.links import MOST_PATHS, NOWHERE, followed, is_missing_image, too_many_paths
from fewstep.data.names import has_image_suffix, is_hidden, member_name
from fewstep.data.source import Item, Read

LABELS = "dataset.json"
"""The file in which `dataset_tool` of EDM and StyleGAN writes the labels."""

# What the archive modules raise on a damaged or truncated file.
_BAD_ARCHIVE = (
    tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, UnicodeError,
    NotImplementedError, RuntimeError, OverflowError,
)  # fmt: skip

_COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x5d\x00\x00\x80": lzma.open,
}
"""First bytes of a file -> what reads all its streams and checks their sums, which `tarfile` alone does not."""

_CHUNK = 1 << 20
_NAMELESS = "(no name)"  # "..", or nothing
_END_OF_ZIP, _MANY = 22, 0xFFFF  # bytes of its last record, without comment; a number that stands elsewhere

Member = tuple[str, Any, str]  # name in the source, where the reader finds it, stamp


@dataclass
class Listing:
    """What a source holds.

    Attributes: members: its images, with names of their own. labels: name -> content of each `dataset.json`.
    left_out: all other files.
    """

    members: list[Member] = field(default_factory=list)
    labels: dict[str, bytes] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)

    def takes(self, name: str) -> bool:
        """Whether a file is an image by its name; counts it if it is not."""
        if is_hidden(name):
            self.left_out.add(HIDDEN, name)
        elif not has_image_suffix(name):
            self.left_out.add(NOT_IMAGES, name)
        else:
            return True
        return False


def list_folder(folder: Path) -> Listing:
    """Image files below a folder, links followed; where is the relative path.
    Raises: DataError: a folder cannot be read, a link to nothing may have been one, two files have one name.
    """
    listing = Listing()
    paths: Counter[tuple[int, int]] = Counter()
    root = folder.resolve()
    todo = [("", tuple(_key(os.stat(above)) for above in (root, *root.parents)))]
    while todo:
        inside, above = todo.pop()
        for entry in _entries(folder, inside):  # several times faster than Path.rglob
            raw = inside + entry.name
            if entry.is_symlink() and is_hidden(member_name(raw)):
                listing.left_out.add(HIDDEN, member_name(raw))
                continue
            if not _is_folder(entry):
                _take(listing, entry, raw)
                continue
            key = _key(entry.stat())
            if key in above:
                listing.left_out.add(LOOP, member_name(raw))
                continue
            paths[key] += 1
            if paths[key] > MOST_PATHS:
                raise too_many_paths(member_name(raw))
            todo.append((f"{raw}/", (*above, key)))
    _require_distinct(listing.members, folder)
    return listing


def _entries(folder: Path, inside: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder / inside) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(
            f"{folder / inside} must be a folder that can be read, but is not ({error.strerror}); check its rights."
        ) from None


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links that lead round in a circle
        return False


def _take(listing: Listing, entry: os.DirEntry[str], raw: str) -> None:
    """Add a file to the members, or to what is left out."""
    name = member_name(raw)
    try:
        status = entry.stat()
    except OSError:
        if is_missing_image(name, os.readlink(entry.path), listing.left_out):
            listing.members.append((name, raw, ""))
        return
    if not stat.S_ISREG(status.st_mode):
        listing.left_out.add(HIDDEN if is_hidden(name) else SPECIAL, name)
    elif entry.name == LABELS and not is_hidden(name):
        listing.labels[name] = Path(entry.path).read_bytes()
    elif listing.takes(name):
        listing.members.append((name, raw, f"{status.st_size}-{status.st_mtime_ns}"))


def _require_distinct(members: Sequence[Member], folder: Path) -> None:
    raw_names: dict[str, str] = {}
    for name, raw, _ in members:
        if raw_names.setdefault(name, raw) != raw:
            raise DataError(
                f"{folder} must hold {name} once, but holds {raw_names[name]!a} and {raw!a}; rename one."
            )


@contextmanager
def folder_reader(folder: Path) -> Iterator[Read]:
    """Read members of a folder."""
    root = str(folder)

    def read(item: Item, blob: bytes | None) -> Image.Image:
        with open(os.path.join(root, item.where), "rb") as file:
            return open_image(file.read())

    yield read


def _listed(
    files: Mapping[str, Any], links: Mapping[str, str], left_out: LeftOut, labels: Mapping[Any, bytes]
) -> Listing:
    """The members among the files of an archive. labels: by where the file stands."""
    listing = Listing(left_out=left_out)
    for name, where in followed(files, links, left_out).items():
        if name.rsplit("/", 1)[-1] == LABELS and where != NOWHERE and not is_hidden(name):
            if where not in labels:
                raise DataError(
                    f"{name} must be a file, but is a link to one of another name; copy it there."
                )
            listing.labels[name] = labels[where]
        elif listing.takes(name):
            listing.members.append((name, where, ""))
    return listing


def list_zip(path: Path) -> Listing:
    """Images in a zip; where is the name in it, of which the last member counts."""
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    labels, left_out = {}, LeftOut()
    with zipfile.ZipFile(path) as archive:
        _require_all(path, archive)
        for info in archive.infolist():
            if info.filename.endswith(("/", "\\")):
                continue
            name = member_name(info.filename) or _NAMELESS
            if files.pop(name, None) is not None or links.pop(name, None) is not None:
                left_out.add(REPLACED, name)
            if stat.S_ISLNK(info.external_attr >> 16):
                links[name] = archive.read(info).decode("utf-8", "surrogateescape").replace("\\", "/")
            else:
                files[name] = info.filename
            if name.rsplit("/", 1)[-1] == LABELS and name in files:
                labels[info.filename] = archive.read(info)
    return _listed(files, links, left_out, labels)


def _require_all(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise where the list of a zip is not as long as it says: a damaged one may hide members."""
    with path.open("rb") as file:
        file.seek(-_END_OF_ZIP - len(archive.comment), os.SEEK_END)
        end = file.read(_END_OF_ZIP)
    stated, found = int.from_bytes(end[10:12], "little"), len(archive.infolist())
    if end.startswith(b"PK\5\6") and stated not in (_MANY, found % (_MANY + 1)):
        raise zipfile.BadZipFile(f"it lists {found} members and not {stated}")


@contextmanager
def zip_reader(path: Path) -> Iterator[Read]:
    """Read members of a zip, through a handle of its own."""
    with zipfile.ZipFile(path) as archive:

        def read(item: Item, blob: bytes | None) -> Image.Image:
            return open_image(archive.read(_place(item)))

        yield read


def _place(item: Item) -> Any:
    if item.where == NOWHERE:
        raise FileNotFoundError(NOWHERE)
    return item.where


class _Header(tarfile.TarInfo):
    """A header; `tarfile` takes a damaged or missing one for the end of the archive, and what follows is lost."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        """Read the next header."""
        try:
            return super().fromtarfile(archive)
        except _NO_HEADER as error:
            raise tarfile.ReadError(
                f"{error} at byte {archive.offset}, where a member or the end must be"
            ) from None


_NO_HEADER = (
    tarfile.InvalidHeaderError,  # type: ignore[attr-defined]  # missing in the stubs
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
    tarfile.EmptyHeaderError,  # type: ignore[attr-defined]
)


def is_plain_tar(path: Path) -> bool:
    """Whether it is a tar without compression, in which members can be sought."""
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False


def is_compressed(path: Path) -> bool:
    """Whether the first bytes are those of gzip, bzip2 or xz."""
    return _decompressor(path) is not None


def _decompressor(path: Path) -> Callable[[Path], Any] | None:
    with path.open("rb") as file:
        start = file.read(8)
    return next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)


@contextmanager
def _open_tar(path: Path, *, plain: bool) -> Iterator[tarfile.TarFile]:
    """A tar to seek in, or a stream of any compression."""
    opener = None if plain else _decompressor(path)
    if opener is None:
        with tarfile.open(path, "r:" if plain else "r|*", tarinfo=_Header) as archive:
            yield archive
    else:
        with opener(path) as file, tarfile.open(fileobj=file, mode="r|", tarinfo=_Header) as archive:
            yield archive


def list_tar(path: Path, *, plain: bool) -> Listing:
    """Images in a tar; where is (offset, size) in a plain one, else the position in the stream."""
    files: dict[str, Any] = {}
    links: dict[str, str] = {}
    labels, left_out = {}, LeftOut()
    with _open_tar(path, plain=plain) as archive:
        for position, member in enumerate(archive):
            archive.members = []  # type: ignore[attr-defined]  # else it keeps all headers
            if member.isdir():
                continue
            name = member_name(member.name) or _NAMELESS
            where: Any = (member.offset_data, member.size) if plain else position
            if member.islnk():  # another name of an earlier member
                where = files.get(member_name(member.linkname), NOWHERE)
            if files.pop(name, None) is not None or links.pop(name, None) is not None:
                left_out.add(REPLACED, name)
            if member.issym():
                links[name] = member.linkname
            elif not (member.isreg() or member.islnk()):
                left_out.add(HIDDEN if is_hidden(name) else SPECIAL, name)
            elif member.issparse():
                raise tarfile.ReadError(f"{name} is stored with holes; make the archive without --sparse")
            else:
                files[name] = where
                if name.rsplit("/", 1)[-1] == LABELS and member.isreg():
                    file = archive.extractfile(member)
                    assert file is not None
                    labels[where] = file.read()
        _require_end(archive, plain=plain)
    return _listed(files, links, left_out, labels)


def _require_end(archive: tarfile.TarFile, *, plain: bool) -> None:
    """Raise where bytes follow the mark of the end: a second archive, which `tarfile` would not look at."""
    file: Any = archive.fileobj
    if plain:
        file.seek(archive.offset)
    while chunk := file.read(_CHUNK):
        if chunk.count(0) != len(chunk):
            raise tarfile.ReadError(
                "more bytes follow its end; several archives in one file must be taken apart"
            )


@contextmanager
def plain_tar_reader(path: Path) -> Iterator[Read]:
    """Read members of a plain tar by seeking."""
    with path.open("rb") as file:

        def read(item: Item, blob: bytes | None) -> Image.Image:
            offset, size = _place(item)
            file.seek(offset)
            return open_image(file.read(size))

        yield read


def stream_order(item: Item) -> int:
    """Where an item of a streamed tar comes: those that are nowhere come first."""
    return -1 if item.where == NOWHERE else int(item.where)


def stream_tar(path: Path, items: Sequence[Item]) -> Iterator[bytes]:
    """Bytes of the items, which are sorted by position, in one pass."""
    position, data = -1, b""
    with archive_errors(path), _open_tar(path, plain=False) as archive:
        members = enumerate(archive)
        for item in items:
            while position < stream_order(item):
                position, member = next(members, (-1, None))
                if member is None:
                    raise tarfile.ReadError("it has become shorter")
                archive.members = []  # type: ignore[attr-defined]  # see list_tar
                if position == item.where:
                    file = archive.extractfile(member)
                    assert file is not None
                    data = file.read()
            yield data


@contextmanager
def blob_reader() -> Iterator[Read]:
    """Read images whose bytes come along with the item."""

    def read(item: Item, blob: bytes | None) -> Image.Image:
        assert blob is not None
        _place(item)
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
