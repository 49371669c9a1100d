"""Strips of images: before, with the hole in grey, and after."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from fewstep.pipeline.pictures import stacked

COLUMNS = 12
GREY = 128


def before_mask_after(images: Tensor, masks: Tensor, filled: Sequence[Tensor]) -> Image.Image:
    """Rows of the first images, of the same with their holes in grey, and of each filling of them.

    Args: images, filled: uint8 (N, C, H, W). masks: bool (N, 1, H, W).
    """
    return stacked([row[:COLUMNS] for row in (images, images.masked_fill(masks, GREY), *filled)])
