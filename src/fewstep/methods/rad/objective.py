"""The objective of region-aware diffusion: denoise images whose pixels have times of their own [kim2025rad, Sec. 3]."""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.data.masks import perlin_masks
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.prediction import target
from fewstep.diffusion.schedule import Schedule
from fewstep.methods.rad.schedule import region_times, require_clean_time
from fewstep.nets.patched import PatchedUNet
from fewstep.train.losses import Loss, Network, NoisedBatch, denoising_loss

NAMES = ("rad", "rad-all-pixels")


class RegionAware:
    """The times and the loss of a step.

    Each image has a mask by Perlin noise, whose hole takes any number of pixels with equal chance, and is in either
    phase with equal chance. The loss is the squared error over pixels with noise, averaged over all pixels.

    Args:
        name: `rad`, or `rad-all-pixels`: the loss as published, which also wants the noise of clean pixels, of which
            there is no trace.
        schedule: Of the network.
        prediction: Of the network.
        weighting: Of the loss.

    Raises:
        ConfigError: Another name, a schedule whose networks cannot be told that a pixel is clean, or a prediction or
            weighting that is not defined there.
    """

    def __init__(self, name: str, schedule: Schedule, prediction: str, weighting: str = "uniform") -> None:
        if name not in NAMES:
            raise ConfigError(f"A region-aware objective must be {' or '.join(NAMES)}; got {name!r}.")
        require_clean_time(schedule)
        zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        if not bool(target(prediction, schedule, zero, one, one).isfinite().all()):
            raise ConfigError(
                f"The region-aware objective needs a prediction that is defined for clean data, eps, x0 or v; got "
                f"{prediction}, with the schedule {schedule!r}."
            )
        self.all_pixels = name == "rad-all-pixels"
        if self.all_pixels and weighting != "uniform":
            raise ConfigError(
                f"The objective rad-all-pixels needs the weighting uniform, which clean pixels have, too; got "
                f"{weighting}."
            )
        self.schedule = schedule
        self.clean = float(schedule.time_input(torch.zeros((), dtype=torch.float64)))

    def times(self, t: Tensor, sides: tuple[int, int], rng: torch.Generator) -> Tensor:
        """Times of the pixels of each image, float64 (B, 1, H, W), of times (B,) within a phase."""
        masks = perlin_masks(len(t), *sides, rng=rng)[:, None]
        second = torch.rand(len(t), generator=rng) < 0.5
        return region_times(self.schedule, t[:, None, None, None], masks, second=second[:, None, None, None])

    def __call__(self, rng: torch.Generator, size: int) -> Loss:
        """The loss of a step."""
        return denoising_loss if self.all_pixels else self._of_noised_pixels

    def _of_noised_pixels(
        self, network: Network, batch: NoisedBatch, condition: Condition | None = None
    ) -> Tensor:
        weight = torch.where(batch.time_in == self.clean, torch.zeros_like(batch.weight), batch.weight)
        return denoising_loss(network, batch._replace(weight=weight), condition)

    def config(self) -> dict[str, Any]:
        """Plain values that decide the result."""
        return {"type": "rad", "all_pixels": self.all_pixels}


def objective(name: str, schedule: Schedule, prediction: str, weighting: str, net: nn.Module) -> RegionAware:
    """What `fewstep train --objective` makes of a name.
    Raises: ConfigError: as `RegionAware`, or a network of patches, which takes one time for each image.
    """
    if isinstance(net, PatchedUNet):
        raise ConfigError(
            "The region-aware objective needs a network that takes a time for each pixel; got one of patches; leave "
            "out --tile."
        )
    return RegionAware(name, schedule, prediction, weighting)
