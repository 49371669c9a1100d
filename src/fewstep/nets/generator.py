"""A generator as a model: what it takes is the noise that sampling starts from, what it returns are images.

So it is sampled by a plan of a single network call, like any other model, and image i depends on seed i alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fewstep.checks import ConfigError


class Generator(nn.Module, ABC):
    """Maps a latent vector of unit normal noise to an image.

    Args:
        shape: Of one image, `(C, H, W)`.
        latent: Numbers of the latent vector; the first ones of the noise of an image's shape are used.

    Raises:
        ConfigError: A latent vector that is empty, or longer than the noise has numbers.
    """

    most_calls = 1
    """Network calls of a plan for it."""

    def __init__(self, shape: Sequence[int], latent: int) -> None:
        super().__init__()
        self.shape, self.latent = tuple(shape), latent
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ConfigError(f"a generator needs the shape (C, H, W) of its images; got {list(self.shape)}.")
        if not 1 <= latent <= math.prod(self.shape):
            raise ConfigError(
                f"the latent vector of a generator of images {list(self.shape)} must have 1 to "
                f"{math.prod(self.shape)} numbers, as it is taken from noise of that shape; got {latent}."
            )

    @abstractmethod
    def images(self, z: Tensor) -> Tensor:
        """Images `(B, C, H, W)`, nominally in [-1, 1], of latent vectors `(B, latent)`, unit normal."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's values, ready for JSON."""

    def forward(self, x: Tensor, time: Tensor, condition: None = None) -> Tensor:
        """x0_hat of noise `(B, C, H, W)`; there is one time at which it may be called, so that `time` says nothing."""
        return self.images(x.flatten(1)[:, : self.latent])


def halvings(side: int, most: int = 4) -> int:
    """How often the side of images is halved: while it is even and 4 pixels or more, at most so often.

    Raises:
        ConfigError: It cannot be halved at all.
    """
    n = 0
    while n < most and side % 2 == 0 and side >= 4:
        side, n = side // 2, n + 1
    if not n:
        raise ConfigError(f"images must have an even side of 4 pixels or more to be halved; got {side}.")
    return n


def require_square(shape: Sequence[int]) -> int:
    """The side of square images `(C, H, W)`.

    Raises:
        ConfigError: They are not square.
    """
    _, height, width = shape
    if height != width:
        raise ConfigError(f"generators need square images; got {height} x {width}.")
    return int(height)
