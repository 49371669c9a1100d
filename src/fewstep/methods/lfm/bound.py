"""The pieces of LFM's bound on the Wasserstein distance of a latent flow [dao2023lfm, Theorem 1].

    W2(data, model)^2 <= E |D(E(x)) - x|^2 + L_D^2 exp(1 + 2 L_v) int E |v - v*|^2 dt

The exponential makes it loose by orders of magnitude: its pieces say something, their sum does not. The constants L are
suprema; what is measured at some points is less, so the right side is a lower bound of the bound.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.checks import ConfigError


def optimal_velocity(z: Tensor, t: Tensor, points: Tensor) -> Tensor:
    """The best velocity at z on straight paths from unit noise to a finite list of points.

    v*(z, t) = (z - sum_i w_i z_i) / t with w = softmax(-|z - (1 - t) z_i|^2 / (2 t^2)).

    Args: z: (B, D) float64. t: (B,), above 0. points: (N, D).
    """
    t = t[:, None]
    # |z - (1 - t) z_i|^2 without the term that all points share
    products = (1 - t) * (z @ points.T) - (1 - t).square() * points.square().sum(1) / 2
    weights = torch.softmax(products / t.square(), dim=1)
    return (z - weights @ points) / t


def excess_loss(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    points: Tensor,
    labels: Tensor,
    *,
    times: int,
    draws: int,
    t_min: float,
    t_max: float,
    rng: torch.Generator,
) -> float:
    """Int E |v - v*|^2 dt, summed over the numbers of a latent: what is left of the loss beside its variance.

    Args:
        velocity: (z (B, *shape), t (B,), labels (B,)) -> v.
        points: (N, *shape), the training latents.
        labels: int64 (N,); v* of a label is that of its points. All 0 for a model without classes.
        times: midpoints of equal parts of [t_min, t_max].
        draws: noised points at each time.
        t_min: where the times end.
        t_max: where they begin.
        rng: of points and noise.
    """
    total = 0.0
    flat = points.double().flatten(1)
    for k in range(times):
        t = t_min + (t_max - t_min) * (k + 0.5) / times
        rows = torch.randint(len(points), (draws,), generator=rng)
        noise = torch.randn(points[rows].shape, generator=rng)
        z = (1 - t) * points[rows].float() + t * noise
        at = torch.full((draws,), t, dtype=torch.float64)
        found = velocity(z, at, labels[rows]).double().flatten(1)
        best = torch.empty_like(found)
        for label in torch.unique(labels[rows]):
            own = labels[rows] == label
            best[own] = optimal_velocity(z.double().flatten(1)[own], at[own], flat[labels == label])
        total += float((found - best).square().sum(1).mean())
    return (t_max - t_min) * total / times


def largest_slope(
    function: Callable[[Tensor], Tensor], x: Tensor, *, iterations: int = 20, rng: torch.Generator
) -> Tensor:
    """Largest singular value of the Jacobian of a function at each of some points, by power iteration, (B,).

    The function must treat images apart from each other; what is found is at most the Lipschitz constant.

    Raises: ConfigError: no iteration.
    """
    if iterations < 1:
        raise ConfigError(f"Power iteration needs an iteration or more; got {iterations}.")
    direction = _unit(torch.randn(x.shape, generator=rng).to(x))
    x = x.detach().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused kernels have no second derivative
        y = function(x)
        # J^T u is linear in u, so its derivative by u, applied to a direction, is J times it
        u = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)
        for i in range(iterations + 1):
            (pushed,) = torch.autograd.grad(pulled, u, direction, retain_graph=True)
            if i < iterations:
                direction = _unit(torch.autograd.grad(y, x, pushed, retain_graph=True)[0])
    slopes: Tensor = torch.linalg.vector_norm(pushed.flatten(1), dim=1)
    return slopes


def _unit(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=1e-30)
    return x / norms.reshape(-1, *[1] * (x.ndim - 1))


def wasserstein2(a: Tensor, b: Tensor) -> float:
    """Squared Wasserstein distance of two lists of as many points, (N, D), by an optimal assignment.

    Of samples it is no estimate of the distance of their distributions: read it beside that of two lists of real ones.
    Raises: ConfigError: lists of unlike lengths.
    """
    from scipy.optimize import linear_sum_assignment

    if len(a) != len(b):
        raise ConfigError(f"An assignment needs lists of one length; got {len(a)} and {len(b)}.")
    costs = torch.cdist(a.double(), b.double()).square().numpy()
    rows, columns = linear_sum_assignment(costs)
    return float(costs[rows, columns].mean())


def bound(pieces: dict[str, Any]) -> float:
    """The right side of the inequality of its pieces: reconstruction, decoder, velocity, excess."""
    factor = torch.tensor(1 + 2 * pieces["velocity"], dtype=torch.float64).exp()
    return float(pieces["reconstruction"] + pieces["decoder"] ** 2 * factor * pieces["excess"])
