"""How much a seam shows: differences of pixels across lines where patches meet, over those beside such lines."""

from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.data.pixels import to_unit

ALIGNED, GRID = "aligned", "grid"
"""Lines between patches of the image, where shifted patches meet, and lines half a patch off, where grid patches do."""


class Seam(NamedTuple):
    """A ratio, 1 where nothing shows, with its standard deviation over images."""

    value: float
    sd: float


def lines(kind: str, side: int, tile: int) -> list[int]:
    """Candidates for seams along an axis: the pixels before which patches meet, with a pixel on either side."""
    first = tile if kind == ALIGNED else tile // 2
    return [k for k in range(first, side, tile) if 2 <= k <= side - 2]


def seam(images_u8: Tensor, tile: int, kind: str) -> Seam | None:
    """Mean absolute difference across candidate lines over that across the lines next to them, on both axes.

    Args: images_u8: uint8 (N, C, H, W). tile: side of a patch in pixels, 4 or more. kind: which lines.
    Returns: The ratio of means over images, lines and axes; None where there are no such lines.
    """
    x = to_unit(images_u8).double()
    across, beside = torch.zeros(2, len(x), dtype=torch.float64)
    n = 0
    for axis in (2, 3):
        off = x.diff(dim=axis).abs().mean(1)  # entry k - 1 is the difference across the line before pixel k
        of_line = off.mean(4 - axis)  # over the other axis, (N, lines)
        for k in lines(kind, x.shape[axis], tile):
            across += of_line[:, k - 1]
            beside += (of_line[:, k - 2] + of_line[:, k]) / 2
            n += 1
    if not n or float(beside.sum()) == 0:
        return None
    value = float(across.sum() / beside.sum())
    # of a ratio of means, to first order
    sd = float((across - value * beside).std() / len(x) ** 0.5 / beside.mean()) if len(x) > 1 else 0.0
    return Seam(value, sd)
