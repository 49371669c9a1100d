"""One way to open an image file: what may go wrong, how large it may be, and what codec it was stored with."""

import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import IO, NamedTuple

from PIL import Image, UnidentifiedImageError

# What Pillow and the archive modules raise on damaged, unknown or too large images.
UNREADABLE = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, RuntimeError,
    NotImplementedError, ArithmeticError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile,
    Image.DecompressionBombError,
)  # fmt: skip

LOSSLESS = "lossless"
_LOSSLESS_FORMATS = frozenset({"PNG", "GIF", "BMP", "DIB", "PPM", "TGA", "PCX", "SGI", "QOI"})
_LOSSLESS_TIFF = frozenset({
    "raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits",
    "tiff_raw_16", "lzma", "zstd",
})  # fmt: skip
_NAMES = {"MPO": "jpeg", "tiff_jpeg": "jpeg"}

SEVERAL_FRAMES = "fewstep: several frames"  # key of `Image.info`

_limit = threading.RLock()


class Header(NamedTuple):
    """What an image file says of itself before its pixels are decoded."""

    mode: str
    size: tuple[int, int]  # width, height
    codec: str


def open_image(blob: bytes) -> Image.Image:
    """Decode a whole image file; of several frames the first, which `info[SEVERAL_FRAMES]` then tells."""
    image = Image.open(BytesIO(blob))
    several = _has_several_frames(image, blob)
    image.load()
    if several:
        image.info[SEVERAL_FRAMES] = True
    return image


def read_header(file: IO[bytes]) -> Header:
    """Mode, size and codec of an image file.
    Raises: UNREADABLE: it is none that Pillow knows, or too large.
    """
    image = Image.open(file)
    return Header(image.mode, image.size, _codec(image, file))


@contextmanager
def pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Admit images of up to so many pixels meanwhile; None leaves Pillow's own limit against decompression bombs."""
    if max_pixels is None:
        yield
        return
    with _limit, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]  # Pillow refuses twice as many
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def said(error: BaseException) -> str:
    """Why an image cannot be read, without the address in memory that Pillow says."""
    return "it is of no kind that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)


def remedy(error: BaseException, otherwise: str) -> str:
    """What to do about an image that cannot be read."""
    too_large = isinstance(error, Image.DecompressionBombError)
    return "admit it with max_pixels, if you trust it" if too_large else otherwise


def _has_several_frames(image: Image.Image, blob: bytes) -> bool:
    """Whether there is more than the one picture; the further ones of a camera's MPO are previews of it."""
    if image.format == "MPO":
        return False
    if image.format == "GIF":  # looking for the next frame changes the state of this one
        image = Image.open(BytesIO(blob))
    return bool(getattr(image, "is_animated", False))


def _codec(image: Image.Image, file: IO[bytes]) -> str:
    """LOSSLESS, or the format that may have left traces: what may be lossy without saying so counts as lossy."""
    kind = str(image.format)
    if kind in _LOSSLESS_FORMATS:
        return LOSSLESS
    if kind == "TIFF":
        compression = str(image.info.get("compression", "unknown"))
        return LOSSLESS if compression in _LOSSLESS_TIFF else _NAMES.get(compression, compression)
    if kind == "WEBP":
        file.seek(0)
        return LOSSLESS if _is_lossless_webp(file.read()) else "webp"
    return _NAMES.get(kind, kind.lower())


def _is_lossless_webp(blob: bytes) -> bool:
    """Whether the first picture is a chunk VP8L, and not VP8."""
    position = 12  # after "RIFF", size, "WEBP"
    while position + 8 <= len(blob):
        kind, size = (
            blob[position : position + 4],
            int.from_bytes(blob[position + 4 : position + 8], "little"),
        )
        if kind in (b"VP8L", b"VP8 "):
            return kind == b"VP8L"
        # the chunks of an animation's frame follow its 16 bytes of place and duration
        position += 8 + (16 if kind == b"ANMF" else size + size % 2)
    return False
