"""Gaussian mixtures: the models whose every prediction is known in closed form."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep._typing import Float
from fewstep.checks import ConfigError
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import Schedule


@dataclass(frozen=True)
class GaussianMixture:
    """sum_k weights[k] N(means[k], stds[k]^2 I).

    Attributes: weights: (K,), positive, sum 1. means: (K, D). stds: (K,), positive.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def __post_init__(self) -> None:
        k = len(self.weights)
        if self.means.ndim != 2 or self.means.shape[0] != k or self.stds.shape != (k,):
            raise ConfigError(
                f"A mixture of {k} weights needs means ({k}, D) and stds ({k},); "
                f"got {tuple(self.means.shape)} and {tuple(self.stds.shape)}."
            )

    def _log_joint(self, x_t: Tensor, alpha: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """log(w_k N(x_t; alpha mu_k, v_k)), (B, K), and the distances x_t - alpha mu_k, (B, K, D)."""
        delta = x_t[:, None] - alpha[:, None, None] * self.means
        dims = self.means.shape[1]
        log_normal = -0.5 * (delta.square().sum(-1) / variance + dims * torch.log(2 * math.pi * variance))
        return self.weights.log() + log_normal, delta

    def eps(
        self, x_t: Float[Tensor, "b d"], t: Float[Tensor, " b"], schedule: Schedule
    ) -> Float[Tensor, "b d"]:
        """E[eps | x_t], (B, D): minus sigma times the score of the noised mixture. Args: t: (B,)."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        variance = (alpha[:, None] * self.stds) ** 2 + sigma[:, None] ** 2
        log_joint, delta = self._log_joint(x_t, alpha, variance)
        return sigma[:, None] * torch.einsum("bk,bkd->bd", log_joint.softmax(1) / variance, delta)

    def model(self, schedule: Schedule) -> Model:
        """The perfect noise predictor of this mixture; runs in the dtype of its tensors."""
        return Model(
            lambda x_t, t: self.eps(x_t, t, schedule),
            schedule=schedule,
            prediction="eps",
            shape=(self.means.shape[1],),
            name="gaussian-mixture",
        )

    def log_density(self, x0: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Log p(x0), (B,)."""
        ones = torch.ones(len(x0), dtype=x0.dtype)
        return self._log_joint(x0, ones, self.stds.square().expand(len(x0), -1))[0].logsumexp(1)

    def sample(self, n: int, *, rng: torch.Generator) -> Float[Tensor, "{n} d"]:
        """Draw (n, D)."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=rng)
        noise = torch.randn(n, self.means.shape[1], generator=rng, dtype=self.means.dtype)
        return self.means[component] + self.stds[component, None] * noise
