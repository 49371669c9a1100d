"""Image files as one array that is decoded piece by piece, when it is sliced."""

import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.data.archives import list_folder
from fewstep.data.decoding import UNREADABLE, Header, open_image, pixel_limit, read_header, remedy, said
from fewstep.data.folder import require_images
from fewstep.data.left_out import Record
from fewstep.data.transforms import Transform, to_mode

_GREY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})
_REMEMBERED = 200_000  # headers, so that a set that is opened again is not read again


class ImageFiles:
    """Files of equal size, in the order given: grey where all are, else RGB, made as `prepare` makes it.

    Attributes: left_out: what else their folder holds. max_pixels: the largest image that is read, None for Pillow's
    limit.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        max_pixels: int | None = None,
        left_out: Record | None = None,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        """Args: shape: (H, W, C) where it is known, as of a part; else the headers of all files are read."""
        self.paths = [Path(path) for path in paths]
        self.max_pixels, self.left_out, self._shape = max_pixels, left_out or {}, shape
        if not self.paths:
            raise DataError("Image files must be at least one, got none; check the path.")

    @classmethod
    def in_folder(cls, folder: str | Path, *, max_pixels: int | None = None) -> "ImageFiles":
        """All images below a folder, sorted by name; links are followed.
        Raises: DataError: there is no such folder, or it holds none, or cannot be read.
        """
        if not Path(folder).is_dir():
            raise DataError(
                f"{folder} must be a folder of images, but there is no such folder; check the path."
            )
        listing = list_folder(Path(folder))
        require_images(listing, folder)
        paths = [Path(folder) / where for where in sorted(where for _, where, _ in listing.members)]
        return cls(paths, max_pixels=max_pixels, left_out=listing.left_out.record())

    @cached_property
    def headers(self) -> list[Header]:
        """What each file says of itself.
        Raises: DataError: a file is missing or no image.
        """
        with pixel_limit(self.max_pixels):
            return [_header(path, self.max_pixels) for path in self.paths]

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every file.
        Raises: DataError: a file is missing, is no image, or has another size than the first.
        """
        if self._shape is not None:
            return self._shape
        channels = 1 if all(header.mode in _GREY for header in self.headers) else 3
        width, height = self.headers[0].size
        shape = height, width, channels
        for path, header in zip(self.paths, self.headers, strict=True):
            self._require(path, (header.size[1], header.size[0], channels), shape)
        return shape

    @property
    def codecs(self) -> list[str]:
        """Codecs of the files, each once, as their bytes tell and not their names."""
        return sorted({header.codec for header in self.headers})

    def part(self, rows: slice) -> "ImageFiles":
        """Some of the files, held to the size of all."""
        return ImageFiles(self.paths[rows], max_pixels=self.max_pixels, shape=self.shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        """Decode some files to (n, H, W, C).
        Raises: DataError: a file is missing, is no image, or has another size.
        """
        shape = self.shape
        with pixel_limit(self.max_pixels):
            images = [_decode(path, grey=shape[-1] == 1) for path in self.paths[rows]]
        for path, image in zip(self.paths[rows], images, strict=True):
            self._require(path, image.shape, shape)
        return np.stack(images) if images else np.empty((0, *shape), np.uint8)

    def squared(self, rows: slice, transform: Transform) -> list[NDArray[np.uint8]]:
        """Some files of any sizes, each as a transform makes it.
        Raises: DataError: a file is missing, or no image.
        """
        found = []
        with pixel_limit(self.max_pixels):
            for path in self.paths[rows]:
                try:
                    found.append(transform(open_image(path.read_bytes())))
                except UNREADABLE as error:
                    raise _unreadable(path, error) from None
        return found

    def _require(self, path: Path, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if found != shape:
            raise DataError(
                f"{path} must have the size of {self.paths[0]}, (H, W, C) = {shape}, but has {found}; resize it or "
                "leave it out."
            )


def _header(path: Path, max_pixels: int | None) -> Header:
    try:
        status = os.stat(path)
        return _remembered(path, status.st_size, status.st_mtime_ns, max_pixels)
    except UNREADABLE as error:
        raise _unreadable(path, error) from None


@lru_cache(_REMEMBERED)
def _remembered(path: Path, size: int, changed: int, max_pixels: int | None) -> Header:
    with path.open("rb") as file:
        return read_header(file)


def _decode(path: Path, *, grey: bool) -> NDArray[np.uint8]:
    try:
        pixels: NDArray[np.uint8] = np.asarray(to_mode(open_image(path.read_bytes()), grey=grey))
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _unreadable(path: Path, error: BaseException) -> DataError:
    what = remedy(error, "replace it or leave it out")
    return DataError(f"{path} must be an image, but cannot be read ({said(error)}); {what}.")
