"""Differentiable augmentation of images that a discriminator sees [zhao2020diffaugment]: real and generated alike.

What is drawn and what is done are apart: `draw` makes one row of numbers in [0, 1) per image, `Augmentation` is a pure
function of images and these rows, through which gradients flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.checks import ConfigError

KINDS = ("colour", "translation", "cutout")
COLUMNS = 10
"""Numbers drawn per image: whether and how, for brightness, saturation, contrast, translation and cutout."""


def draw(size: int, *, rng: torch.Generator) -> Tensor:
    """Numbers for `size` images, (size, COLUMNS), float32 on the CPU."""
    return torch.rand(size, COLUMNS, generator=rng)


@dataclass(frozen=True)
class Augmentation:
    """Brightness +-0.5, saturation up to doubled, contrast x 0.5 to 1.5; shifts by up to an eighth; squares cut out.

    Attributes:
        kinds: Which of `KINDS`; none leaves images as they are.
        probability: Of colour changes and of shifts, per image.
        cutout: Probability that a square of half the side is cut out.

    Raises:
        ConfigError: An unknown kind, or a probability out of range.
    """

    kinds: tuple[str, ...] = KINDS
    probability: float = 0.8
    cutout: float = 0.3

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise ConfigError(f"augmentations must be among {', '.join(KINDS)}; got {', '.join(unknown)}.")
        for name in ("probability", "cutout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} of an augmentation must lie in [0, 1]; got {getattr(self, name)}.")

    @property
    def is_identity(self) -> bool:
        """Whether it changes no image."""
        changes = {"colour": self.probability, "translation": self.probability, "cutout": self.cutout}
        return not any(changes[kind] for kind in self.kinds)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Augment images `(B, C, H, W)` in [-1, 1] as their rows of `draw` say, `(B, COLUMNS)`."""
        if self.is_identity:
            return images
        drawn = drawn.to(images)
        if "colour" in self.kinds:
            images = self._colour(images, drawn[:, :4])
        if "translation" in self.kinds:
            images = self._translation(images, drawn[:, 4:7])
        if "cutout" in self.kinds:
            images = self._cutout(images, drawn[:, 7:10])
        return images

    def _colour(self, images: Tensor, drawn: Tensor) -> Tensor:
        happens, brightness, saturation, contrast = drawn.unbind(1)
        happens = _wide(happens < self.probability)
        changed = images + _wide(brightness - 0.5)
        if images.shape[1] > 1:
            grey = changed.mean(1, keepdim=True)
            changed = grey + _wide(2.0 * saturation) * (changed - grey)
        mean = changed.mean((1, 2, 3), keepdim=True)
        changed = mean + _wide(0.5 + contrast) * (changed - mean)
        return torch.where(happens, changed, images)

    def _translation(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Shift by whole pixels; what comes in is 0."""
        height, width = images.shape[2:]
        most = torch.tensor([max(1, height // 8), max(1, width // 8)], device=images.device)
        shifts = (drawn[:, 1:] * (2 * most + 1)).floor().long() - most
        shifts = shifts * (drawn[:, :1] < self.probability)
        pad_y, pad_x = most.tolist()
        padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y))
        rows = (torch.arange(height, device=images.device) + pad_y - shifts[:, :1])[:, None, :, None]
        columns = (torch.arange(width, device=images.device) + pad_x - shifts[:, 1:])[:, None, None, :]
        wide = rows.expand(-1, images.shape[1], -1, padded.shape[3])
        return padded.gather(2, wide).gather(3, columns.expand(-1, images.shape[1], height, -1))

    def _cutout(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Set a square of half the side to 0, wherever its centre lies in the image."""
        height, width = images.shape[2:]
        y = (drawn[:, 1] * height).floor()[:, None]
        x = (drawn[:, 2] * width).floor()[:, None]
        rows = (torch.arange(height, device=images.device) - y).abs() < height / 4
        columns = (torch.arange(width, device=images.device) - x).abs() < width / 4
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        return images.masked_fill(inside & _wide(drawn[:, 0] < self.cutout), 0.0)

    def config(self) -> dict[str, Any]:
        """Plain values that decide the result."""
        return {"kinds": list(self.kinds), "probability": self.probability, "cutout": self.cutout}


def _wide(values: Tensor) -> Tensor:
    """One value per image, over its pixels."""
    return values[:, None, None, None]
