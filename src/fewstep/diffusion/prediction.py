"""What a network's output means. Every kind is linear: x0_hat = a x_t + b output, eps_hat = c x_t + d output."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep._typing import Float
from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import Schedule

SIGMA_DATA = 0.5
"""Standard deviation of the data that EDM's preconditioning assumes [karras2022edm, Table 1]."""


class Weights(NamedTuple):
    """Scalars (or shapes of t) that read an output as x0_hat and as eps_hat."""

    x0_of_x: Tensor
    x0_of_output: Tensor
    eps_of_x: Tensor
    eps_of_output: Tensor


def _eps(schedule: Schedule, t: Tensor) -> Weights:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return Weights(1 / alpha, -sigma / alpha, torch.zeros_like(alpha), torch.ones_like(alpha))


def _x0(schedule: Schedule, t: Tensor) -> Weights:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return Weights(torch.zeros_like(alpha), torch.ones_like(alpha), 1 / sigma, -alpha / sigma)


def _v(schedule: Schedule, t: Tensor) -> Weights:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    power = alpha**2 + sigma**2
    return Weights(alpha / power, -sigma / power, sigma / power, alpha / power)


def _u(schedule: Schedule, t: Tensor) -> Weights:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    alpha_rate, sigma_rate = schedule.rates(t)
    determinant = alpha * sigma_rate - sigma * alpha_rate
    return Weights(
        sigma_rate / determinant, -sigma / determinant, -alpha_rate / determinant, alpha / determinant
    )


def _edm(schedule: Schedule, t: Tensor) -> Weights:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    edm_sigma = sigma / alpha
    power = edm_sigma**2 + SIGMA_DATA**2
    c_skip, c_out = SIGMA_DATA**2 / power, edm_sigma * SIGMA_DATA / power.sqrt()
    # eps = (x - alpha x0) / sigma with 1 - c_skip = edm_sigma^2 / power, written without the difference
    return Weights(c_skip / alpha, c_out, edm_sigma / (alpha * power), -SIGMA_DATA / power.sqrt())


PREDICTIONS: dict[str, Callable[[Schedule, Tensor], Weights]] = {
    "eps": _eps,  # the noise
    "x0": _x0,  # the data
    "v": _v,  # alpha eps - sigma x0 [salimans2022distillation, Sec. 4]
    "u": _u,  # the velocity d x_t / dt [lipman2023flow]
    "edm": _edm,  # F of EDM's preconditioning [karras2022edm, Eq. 7]; the network's input is a scaled x_t
}


def weights(prediction: str, schedule: Schedule, t: Tensor) -> Weights:
    """How to read an output made at times t, in the shape and dtype of t.
    Raises: ConfigError: no such prediction.
    """
    if prediction not in PREDICTIONS:
        raise ConfigError(f"A prediction must be one of {', '.join(PREDICTIONS)}; got {prediction!r}.")
    return PREDICTIONS[prediction](schedule, t)


def input_scale(prediction: str, schedule: Schedule, t: Tensor) -> Tensor | None:
    """Factor on x_t before the network, c_in [karras2022edm, Eq. 7]; None where the network's input is x_t itself."""
    if prediction != "edm":
        return None
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return 1 / (sigma**2 + (alpha * SIGMA_DATA) ** 2).sqrt()


def target(
    prediction: str,
    schedule: Schedule,
    t: Tensor,
    x0: Float[Tensor, " b *shape"],
    eps: Float[Tensor, " b *shape"],
) -> Float[Tensor, " b *shape"]:
    """The output that a perfect network would give for this x0 and eps.
    Args: t: broadcasts against x0 and eps, (B, C, H, W).
    """
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    if prediction == "v":  # as u, also at clean data, where an output says nothing about x0
        return schedule.alpha(t) * eps - schedule.sigma(t) * x0
    if prediction == "u":
        alpha_rate, sigma_rate = schedule.rates(t)
        return alpha_rate * x0 + sigma_rate * eps
    read = weights(prediction, schedule, t)
    x_t = schedule.alpha(t) * x0 + schedule.sigma(t) * eps
    return (x0 - read.x0_of_x * x_t) / read.x0_of_output
