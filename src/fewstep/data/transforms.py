"""From an image of any mode and size to the stored bytes: where two copies of a dataset come to differ."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LANCZOS = Image.Resampling.LANCZOS
BILINEAR = Image.Resampling.BILINEAR


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Largest centred square, then Lanczos [karras2022edm]: what EDM's dataset tool calls center-crop."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side)) if width != height else image
    return square.resize((size, size), LANCZOS)


def shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Lanczos until the shorter side is `size`, then a centred square.
    Differs: from `centre_crop` in the outermost columns alone, whose filter here sees beyond the crop.
    """
    width, height = image.size
    side = min(width, height)
    scaled = image.resize((round(width * size / side), round(height * size / side)), LANCZOS)
    left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
    return scaled.crop((left, top, left + size, top + size))


def celeba_crop(image: Image.Image, size: int) -> Image.Image:
    """The face of an aligned CelebA image: 128 x 128 about row 121, column 89, then bilinear [song2021ddim].
    Raises: ValueError: not 178 x 218.
    """
    if image.size != (178, 218):
        raise ValueError(f"an aligned CelebA image is 178x218, this one {image.width}x{image.height}")
    return image.crop((25, 57, 153, 185)).resize((size, size), BILINEAR)


FITS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "centre-crop": centre_crop,
    "shorter-side": shorter_side,
    "celeba-crop": celeba_crop,
}
_NAMES = {
    "centre-crop": "centre-crop + lanczos-{size}",
    "shorter-side": "shorter-side-lanczos-{size} + centre-crop",
    "celeba-crop": "crop rows 57:185 columns 25:153 + bilinear-{size}",
}


@dataclass(frozen=True)
class Transform:
    """How an image becomes the stored array.

    size: side of the square result; None keeps each image's own size. fit: key of FITS, how a square is made.
    grey: one channel of ITU-R 601 luma instead of RGB.
    """

    size: int | None = None
    fit: str = "centre-crop"
    grey: bool = False

    @property
    def name(self) -> str:
        """The text in the manifest, e.g. "rgb + centre-crop + lanczos-64"."""
        fit = "own size" if self.size is None else _NAMES[self.fit].format(size=self.size)
        return f"{'grey' if self.grey else 'rgb'} + {fit}"

    def __call__(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply to a PIL image of any mode or an (H, W) or (H, W, 3) array.
        Returns: uint8 (H, W, C) with C = 1 or 3.
        Raises: ValueError: the pixels have no meaning in 8 bits, or the fit does not take this size.
        """
        flat = to_mode(Image.fromarray(image) if isinstance(image, np.ndarray) else image, grey=self.grey)
        if self.size is not None:
            flat = FITS[self.fit](flat, self.size)
        array: NDArray[np.uint8] = np.asarray(flat)
        return array[:, :, None] if array.ndim == 2 else array


def to_mode(image: Image.Image, *, grey: bool) -> Image.Image:
    """Convert to 8-bit RGB, or to 8-bit luma.

    16 bits per sample become 8 by round(v / 257). Transparency is laid over white. Palettes, CMYK and the
    like are converted by Pillow. EXIF orientation is not applied, as in EDM and torchvision.
    Raises: ValueError: floating point or more than 16 bits, whose white is unknown.
    """
    target = "L" if grey else "RGB"
    if image.mode == target and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert(target)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of up to 16 bits, modes I;16* and I, to mode L."""
    wide: NDArray[Any] = np.asarray(image)
    if wide.dtype.kind not in "iu" or (wide.size and (wide.min() < 0 or wide.max() > 65535)):
        raise ValueError(f"pixels of mode {image.mode} reach beyond 16 bits, so their white is unknown")
    return Image.fromarray(((wide.astype(np.uint32) + 128) // 257).astype(np.uint8))
