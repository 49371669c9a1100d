"""The denoising loss, shared by all methods that train a diffusion model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.prediction import SIGMA_DATA, input_scale, target, weights
from fewstep.diffusion.schedule import EDM, Schedule

Network = Callable[..., Tensor]
"""(x_t, time input, condition) -> output; a method's own network may take more."""

LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2  # of the training noise levels [karras2022edm, Table 1]


def _snr(snr_t: Tensor) -> Tensor:
    return snr_t


def _min_snr_5(snr_t: Tensor) -> Tensor:
    return snr_t.clamp(max=5.0)


def _edm(snr_t: Tensor) -> Tensor:
    """(s^2 + s_data^2) / (s s_data)^2 with s = edm_sigma = snr^(-1/2)."""
    return snr_t + SIGMA_DATA**-2


WEIGHTINGS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "uniform": None,  # the plain squared error of whatever the network predicts [ho2020ddpm, Eq. 14]
    "snr": _snr,  # the squared error of eps, whatever the network predicts
    "min-snr-5": _min_snr_5,  # with gamma = 5 [hang2023minsnr]
    "edm": _edm,  # lambda(sigma) [karras2022edm, Table 1]
}
"""Weight of the squared error of x0_hat as a function of snr_t; None: no conversion to x0 at all."""


def check_weighting(weighting: str) -> None:
    """Refuse a name that is not in `WEIGHTINGS`.

    Raises:
        ConfigError: An unknown name.
    """
    if weighting not in WEIGHTINGS:
        raise ConfigError(f"weighting must be one of {', '.join(WEIGHTINGS)}; got {weighting!r}.")


def draw_times(schedule: Schedule, n: int, *, weighting: str = "uniform", rng: torch.Generator) -> Tensor:
    """Training times, float64 `(n,)`, in the schedule's [t_min, t_start].

    Uniform in t; with EDM's schedule or weighting log edm_sigma is normal [karras2022edm, Table 1].
    """
    if weighting == "edm" or isinstance(schedule, EDM):
        log_sigma = LOG_SIGMA_MEAN + LOG_SIGMA_STD * torch.randn(n, generator=rng, dtype=torch.float64)
        return schedule.t_of_lambda(-log_sigma).clamp(schedule.t_min, schedule.t_max)
    uniform = torch.rand(n, generator=rng, dtype=torch.float64)
    return schedule.t_min + (schedule.t_start - schedule.t_min) * uniform


class NoisedBatch(NamedTuple):
    """Noised images as inputs of a network, and the target of its output.

    Attributes: x_in: x_t, scaled where the prediction scales it, (B, ...). time_in: the network's time input, (B,) or
        per pixel. target: the perfect output, (B, ...). weight: factor on the squared error, which broadcasts over the
        output. rows: the place of each image in the batch of the step, int64 (B,); None: these are all of it.
    """

    x_in: Tensor
    time_in: Tensor
    target: Tensor
    weight: Tensor
    rows: Tensor | None = None

    def loss(self, output: Tensor, target: Tensor | None = None) -> Tensor:
        """Weighted squared error averaged over each image, (B,) float32; to another target where one is given."""
        off = output.float() - (self.target if target is None else target)
        losses: Tensor = (self.weight * off.square()).flatten(1).mean(1)
        return losses


def noised(
    x0: Tensor, eps: Tensor, t: Tensor, *, schedule: Schedule, prediction: str, weighting: str = "uniform"
) -> NoisedBatch:
    """Noise images at some times, for one call of the network.

    Args:
        x0: `(B, ...)` data in [-1, 1].
        eps: Unit normal noise of the same shape.
        t: float64 on the CPU: `(B,)`, or a time per pixel `(B, 1, H, W)`.
        schedule: Gives the signal and noise amplitudes.
        prediction: How the output is read, one of `PREDICTIONS`.
        weighting: One of `WEIGHTINGS`.
    """
    like = x0.ndim
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    scale = input_scale(prediction, schedule, t)
    # A perfect output is linear in x0 and eps: its two factors are found in float64 and cast once.
    factors = torch.stack(
        [
            schedule.alpha(t),
            schedule.sigma(t),
            target(prediction, schedule, t, one, zero),
            target(prediction, schedule, t, zero, one),
            loss_weight(schedule, prediction, t, weighting=weighting),
            one if scale is None else scale,
            schedule.time_input(t),
        ]
    ).to(x0.dtype)
    factors = factors.to(x0.device, non_blocking=True)
    time_in = factors[6]
    if t.ndim == 1:
        factors = factors.reshape(7, -1, *[1] * (like - 1))
    alpha_t, sigma_t, of_x0, of_eps, weight, scale_in = factors[:6]
    x_in = scale_in * (alpha_t * x0 + sigma_t * eps)
    return NoisedBatch(x_in, time_in, of_x0 * x0 + of_eps * eps, weight)


Loss = Callable[[Network, NoisedBatch, Condition | None], Tensor]
"""(network, noised batch, condition) -> loss of each image, (B,)."""


def denoising_loss(network: Network, batch: NoisedBatch, condition: Condition | None = None) -> Tensor:
    """The squared error of one network call."""
    return batch.loss(network(batch.x_in, batch.time_in, condition))


def loss_weight(schedule: Schedule, prediction: str, t: Tensor, *, weighting: str) -> Tensor:
    """Factor on the squared error of the network's output at times t, in the shape of t.

    An error e of the output is an error x0_of_output * e of x0_hat, so the weights of x0 errors carry over.
    """
    check_weighting(weighting)
    of_snr = WEIGHTINGS[weighting]
    if of_snr is None:
        return torch.ones_like(t)
    read = weights(prediction, schedule, t)
    return of_snr((schedule.alpha(t) / schedule.sigma(t)).square()) * read.x0_of_output.square()
