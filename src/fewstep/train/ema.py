"""The exponential moving average of a network's weights: what is sampled from, evaluated and saved."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fewstep.checks import ConfigError


class Ema:
    """A copy of a network that follows it: `average = beta * average + (1 - beta) * weights`, each step.

    With `half_life`, `beta = 0.5 ** (batch / h)` where `h = min(half_life, ramp * images seen)`: early on the
    average forgets faster, so that it never remembers the random start (the training code of [karras2022edm]).
    With `decay`, `beta = min(decay, (1 + step) / (10 + step))`, the same idea counted in steps
    [abadi2016tensorflow, tf.train.ExponentialMovingAverage].

    Args:
        net: The network that is trained.
        decay: Largest decay per step, in [0, 1).
        half_life: Images after which half of the average is new. Exactly one of the two is given.
        ramp: Share of the images seen that limits the half-life.

    Raises:
        ConfigError: Both or none given, or out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        decay: float | None = None,
        half_life: float | None = None,
        ramp: float = 0.05,
    ) -> None:
        if (decay is None) == (half_life is None):
            raise ConfigError("an average of the weights needs exactly one of decay and half_life.")
        if decay is not None and not 0.0 <= decay < 1.0:
            raise ConfigError(f"the decay of the average must lie in [0, 1); got {decay}.")
        if half_life is not None and not half_life > 0.0:
            raise ConfigError(f"the half-life of the average must be positive, in images; got {half_life}.")
        self.decay, self.half_life, self.ramp = decay, half_life, ramp
        self.net = copy.deepcopy(net).eval().requires_grad_(False)

    def beta(self, *, step: int, images_seen: int, batch_size: int) -> float:
        """The factor that keeps the old average in update number `step` (1 for the first)."""
        if self.half_life is None:
            assert self.decay is not None
            return min(self.decay, step / (9 + step))
        half_life = min(self.half_life, self.ramp * images_seen)
        return float(0.5 ** (batch_size / max(half_life, 1e-8)))

    @torch.no_grad()
    def update(self, net: nn.Module, *, step: int, images_seen: int, batch_size: int) -> None:
        """Move the average towards `net`; `step` and `images_seen` include the step just made."""
        weight = 1.0 - self.beta(step=step, images_seen=images_seen, batch_size=batch_size)
        torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), weight)
        for own, other in zip(self.net.buffers(), net.buffers(), strict=True):
            own.copy_(other)
