"""Strips of images: before, with the hole in grey, and after."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

COLUMNS = 12
GREY = 128


def before_mask_after(images: Tensor, masks: Tensor, filled: Sequence[Tensor]) -> Image.Image:
    """Rows of the first images, of the same with their holes in grey, and of each filling of them.

    Args: images, filled: uint8 (N, C, H, W). masks: bool (N, 1, H, W).
    """
    rows = [images, images.masked_fill(masks, GREY), *filled]
    return as_image(np.concatenate([_row(row[:COLUMNS]) for row in rows], axis=1))


def as_image(pixels: Tensor | NDArray[np.uint8]) -> Image.Image:
    """Uint8 (C, H, W) as a picture."""
    array = np.asarray(pixels)
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def _row(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) as one image, (C, H, N W)."""
    return np.concatenate(list(images.numpy()), axis=2)
