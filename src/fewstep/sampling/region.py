"""Regions: images of which some pixels are given, and the others, the hole, are made."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.sampling.solver import Scalar


@dataclass(frozen=True)
class Region:
    """What is given of some images, and how a sampler keeps to it.

    Each pixel of the state has a time of its own: in the hole that of the plan's node, elsewhere 0, clean data, whose
    updates change nothing. So the coefficients of a plan become maps, and any plan can be used [kim2025rad].

    Attributes:
        mask: bool (B, 1, H, W), true in the hole.
        x0: (B, C, H, W) in [-1, 1], the images; what is in their holes has no effect.
        noised: one time for all pixels instead: at each node the given ones are noised anew to its time, as networks
            without times per pixel need it [lugmayr2022repaint, Eq. 8].

    Raises: DataError: a mask or images of another form, or values outside [-1, 1].
    """

    mask: Tensor
    x0: Tensor
    noised: bool = False

    def __post_init__(self) -> None:
        b, _, *sides = self.x0.shape if self.x0.ndim == 4 else (0, 0, 0, 0)
        if self.x0.ndim != 4 or not self.x0.is_floating_point() or tuple(self.mask.shape) != (b, 1, *sides):
            raise DataError(
                "A region must have images, floating point (B, C, H, W), and one mask for all channels of each, "
                f"(B, 1, H, W); got {tuple(self.x0.shape)} and {tuple(self.mask.shape)}."
            )
        if self.mask.dtype != torch.bool:
            raise DataError(
                f"A mask must be bool, true in the hole; got {self.mask.dtype}; compare it with a threshold."
            )
        least, most = self.x0.aminmax()
        if not (float(least) >= -1 and float(most) <= 1):  # written so that NaN is refused, too
            raise DataError(
                f"The images of a region must lie in [-1, 1]; got {float(least):.4g} to {float(most):.4g}; bytes "
                "become that by fewstep.data.pixels.to_unit."
            )

    def __getitem__(self, rows: slice) -> "Region":
        """Those of some images."""
        return Region(self.mask[rows], self.x0[rows], self.noised)

    def to(self, like: Tensor) -> "Region":
        """On the device of a tensor, the images in its dtype."""
        return Region(self.mask.to(like.device), self.x0.to(like), self.noised)

    def times(self, t: Scalar) -> Tensor | Scalar:
        """What the network is told at a node of time t: t in the hole and 0 elsewhere, float64 (B, 1, H, W)."""
        if self.noised:
            return t
        at = torch.as_tensor(t, dtype=torch.float64, device=self.mask.device)
        return torch.where(self.mask, at, torch.zeros_like(at))

    def state(self, x: Tensor, alpha: Scalar, sigma: Scalar, noise: Callable[[], Tensor] | None) -> Tensor:
        """The state at a node of these amplitudes: x in the hole, elsewhere what is given."""
        given = self.x0
        if self.noised and sigma != 0:
            if noise is None:
                raise ConfigError(
                    "A region whose given pixels are noised draws noise; pass noise, such as "
                    "rng.ImageNoise(seeds, shape)."
                )
            given = alpha * self.x0 + sigma * noise().to(x)
        return torch.where(self.mask, x, given)
