"""Masks of holes: boxes, lines and strokes, as LFM trains with [dao2023lfm, Sec. 5.3], and Perlin noise [kim2025rad].

A mask is true in the hole.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fewstep.checks import ConfigError, DataError

LARGEST = 0.6
"""Largest share of the pixels that a hole of `draw_mask` takes."""

Draw = Callable[[int, int, torch.Generator], Tensor]
"""(height, width, rng) -> bool (height, width)."""


def draw_mask(
    height: int, width: int, *, rng: torch.Generator, shapes: Sequence[str] = ("strokes", "boxes")
) -> Tensor:
    """A mask (H, W), bool, of one of some shapes with equal chance, with a hole of 1 pixel to `LARGEST` of all.

    Args: shapes: keys of `SHAPES`.
    Raises: ConfigError: an image of fewer than 4 pixels a side, or no such shape.
    """
    if min(height, width) < 4:
        raise ConfigError(f"Images to be masked must have sides of 4 pixels or more; got {height} x {width}.")
    if not shapes or not set(shapes) <= SHAPES.keys():
        raise ConfigError(f"Shapes of holes must be among {', '.join(SHAPES)}; got {', '.join(shapes)}.")
    while True:
        mask = SHAPES[shapes[int(len(shapes) * _uniform(rng))]](height, width, rng)
        if 0 < float(mask.float().mean()) <= LARGEST:
            return mask


def perlin_masks(
    n: int,
    height: int,
    width: int,
    *,
    rng: torch.Generator,
    period: float | None = None,
    share: float | None = None,
) -> Tensor:
    """Masks (n, H, W), bool, whose holes are where Perlin noise is least [kim2025rad].

    Args:
        n: how many.
        height: of a mask.
        width: of a mask.
        rng: of gradients, periods and shares.
        period: distance of the gradients in pixels; None: uniform in [1, H], for each mask.
        share: of the pixels that are in the hole; None: any number of them with equal chance, none and all included.

    Raises:
        ConfigError: a period below 1 pixel, or a share that is none.

    Differs: noise is taken at the centres of pixels, as it is 0 at all gradients; so exactly the wanted number of
        pixels is in the hole.
    """
    if period is not None and not 1 <= period < math.inf:
        raise ConfigError(f"The period of Perlin noise must be 1 pixel or more; got {period:g}.")
    if share is not None and not 0 <= share <= 1:
        raise ConfigError(f"The share of a hole must lie in [0, 1]; got {share:g}.")
    pixels = height * width
    drawn = 1 + (height - 1) * torch.rand(n, generator=rng)
    periods = drawn if period is None else torch.full((n,), float(period))
    # of the pixels of a hole there are 0, ..., all
    counts = torch.randint(pixels + 1, (n,), generator=rng)
    counts = counts if share is None else torch.full((n,), round(share * pixels))
    noise = _perlin_noise(periods, height, width, rng)
    ranks = noise.flatten(1).argsort(1).argsort(1)
    return (ranks < counts[:, None]).reshape(n, height, width)


def _perlin_noise(periods: Tensor, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Noise (n, H, W): the slopes of random unit gradients at the corners of a cell, blended by a quintic."""
    n = len(periods)
    y = (torch.arange(height) + 0.5) / periods[:, None]
    x = (torch.arange(width) + 0.5) / periods[:, None]
    rows, columns = y.long(), x.long()
    y, x = (y - rows)[:, :, None], (x - columns)[:, None, :]
    angles = 2 * math.pi * torch.rand(n, height + 1, width + 1, generator=rng)
    images = torch.arange(n)[:, None, None]

    def corner(down: int, right: int) -> Tensor:
        angle = angles[images, rows[:, :, None] + down, columns[:, None, :] + right]
        return angle.sin() * (y - down) + angle.cos() * (x - right)

    fade_y, fade_x = (part**3 * (part * (6 * part - 15) + 10) for part in (y, x))
    above = torch.lerp(corner(0, 0), corner(0, 1), fade_x)
    below = torch.lerp(corner(1, 0), corner(1, 1), fade_x)
    return torch.lerp(above, below, fade_y)


def as_mask(pixels: np.ndarray, *, name: str) -> Tensor:
    """A mask (H, W), bool, of the pixels of a black and white image, whose white is the hole.

    Args:
        pixels: uint8 (H, W), or (H, W, C) with equal channels, of 0 and 255.
        name: what errors call it.

    Raises:
        DataError: channels that differ, or other values.
    """
    flat = pixels[..., 0] if pixels.ndim == 3 else pixels
    if pixels.ndim == 3 and not (pixels == flat[..., None]).all():
        raise DataError(
            f"{name} must be one mask, but its {pixels.shape[2]} channels differ; save it in black and white."
        )
    values = np.unique(flat)
    if not set(values.tolist()) <= {0, 255}:
        raise DataError(
            f"{name} must have two values, 0 for what is known and 255 for the hole; got {len(values)} values from "
            f"{values[0]} to {values[-1]}; threshold it, without smoothed edges."
        )
    return torch.from_numpy(flat == 255)


def _strokes(height: int, width: int, rng: torch.Generator) -> Tensor:
    """Thick polygonal lines that turn by up to a right angle at each vertex."""
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
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
    return torch.from_numpy(np.array(canvas)) > 0


def _boxes(height: int, width: int, rng: torch.Generator) -> Tensor:
    """One or two boxes anywhere."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    for _ in range(1 + int(2 * _uniform(rng))):
        h, w = (max(1, round(side * (0.2 + 0.4 * _uniform(rng)))) for side in (height, width))
        top, left = int((height - h + 1) * _uniform(rng)), int((width - w + 1) * _uniform(rng))
        mask[top : top + h, left : left + w] = True
    return mask


def _perlin(height: int, width: int, rng: torch.Generator) -> Tensor:
    """Half of the pixels, by Perlin noise of any period."""
    return perlin_masks(1, height, width, rng=rng, share=0.5)[0]


def _perlin_of_any_share(height: int, width: int, rng: torch.Generator) -> Tensor:
    return perlin_masks(1, height, width, rng=rng)[0]


def _box(height: int, width: int, rng: torch.Generator) -> Tensor:
    """The box in the middle, of half the sides."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2] = True
    return mask


def _half(height: int, width: int, rng: torch.Generator) -> Tensor:
    """The right half."""
    return (torch.arange(width) >= width // 2).expand(height, width).clone()


def _lines(height: int, width: int, rng: torch.Generator) -> Tensor:
    """Every second line."""
    return (torch.arange(height) % 2 == 1)[:, None].expand(height, width).clone()


SHAPES: dict[str, Draw] = {"strokes": _strokes, "boxes": _boxes, "perlin": _perlin_of_any_share}
"""Shapes of holes to train with."""

KINDS: dict[str, Draw] = {
    "box": _box,
    "half": _half,
    "lines": _lines,
    "strokes": lambda height, width, rng: draw_mask(height, width, rng=rng, shapes=("strokes",)),
    "perlin": _perlin,
}
"""Masks to measure with: a box in the middle, the right half, every second line, strokes, half of all by Perlin."""


def _uniform(rng: torch.Generator) -> float:
    return float(torch.rand((), generator=rng))
