"""Masks for inpainting: irregular strokes and boxes, as LFM trains with [dao2023lfm, Sec. 5.3]."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fewstep.checks import ConfigError

LARGEST = 0.6
"""Largest share of the pixels that a hole takes."""


def draw_mask(height: int, width: int, *, rng: torch.Generator) -> Tensor:
    """A mask (H, W), bool, true in the hole: strokes or boxes with equal chance, of 1 pixel to `LARGEST` of all.

    Raises: ConfigError: an image of fewer than 4 pixels a side.
    """
    if min(height, width) < 4:
        raise ConfigError(f"Images to be masked must have sides of 4 pixels or more; got {height} x {width}.")
    while True:
        canvas = Image.new("L", (width, height))
        draw = ImageDraw.Draw(canvas)
        (_strokes if _uniform(rng) < 0.5 else _boxes)(draw, height, width, rng)
        mask = torch.from_numpy(np.array(canvas)) > 0
        if 0 < float(mask.float().mean()) <= LARGEST:
            return mask


def _strokes(draw: ImageDraw.ImageDraw, height: int, width: int, rng: torch.Generator) -> None:
    """Thick polygonal lines that turn by up to a right angle at each vertex."""
    side = min(height, width)
    for _ in range(1 + int(3 * _uniform(rng))):
        x, y, angle = width * _uniform(rng), height * _uniform(rng), 2 * math.pi * _uniform(rng)
        thick = max(1, round(side * (0.06 + 0.14 * _uniform(rng))))
        for _ in range(1 + int(4 * _uniform(rng))):
            length = side * (0.15 + 0.35 * _uniform(rng))
            angle += math.pi * (_uniform(rng) - 0.5)
            to = (x + length * math.cos(angle), y + length * math.sin(angle))
            draw.line((x, y, *to), fill=255, width=thick)
            x, y = to


def _boxes(draw: ImageDraw.ImageDraw, height: int, width: int, rng: torch.Generator) -> None:
    for _ in range(1 + int(2 * _uniform(rng))):
        h, w = (max(1, round(side * (0.2 + 0.4 * _uniform(rng)))) for side in (height, width))
        top, left = int((height - h + 1) * _uniform(rng)), int((width - w + 1) * _uniform(rng))
        draw.rectangle((left, top, left + w - 1, top + h - 1), fill=255)


def _uniform(rng: torch.Generator) -> float:
    return float(torch.rand((), generator=rng))
