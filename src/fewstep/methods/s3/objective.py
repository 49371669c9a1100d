"""How good a plan is: near a fine solution of the same noise, or near the data in the features of an extractor."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.diffusion.denoiser import Model
from fewstep.metrics.statistics import Statistics
from fewstep.rng import ImageNoise
from fewstep.sampling.plan import Plan
from fewstep.sampling.sample import Costs, solve
from fewstep.sampling.solver import Values

Features = Callable[[Tensor], Tensor]
"""From images in [-1, 1], (B, C, H, W), to features (B, D), with gradients."""

ROOT_FLOOR = (
    1e-12  # of the largest eigenvalue: keeps the slope of the root finite where the batch has no spread
)


@dataclass
class Task:
    """What a sampler is sought for: a model, and how it is asked.

    Attributes:
        guidance: classifier-free guidance scale; class-conditional models take the label seed modulo classes.
        batch_size: images at once.
        calls: network calls on one image so far.
    """

    model: Model
    guidance: float = 1.0
    batch_size: int = 250
    calls: int = field(default=0, compare=False)

    def solve(self, plan: Plan, seeds: Sequence[int], *, values: Values | None = None) -> Tensor:
        """x0 of each seed, (len(seeds), *shape); with `values` all at once and with the autograd graph."""
        size = len(seeds) if values is not None else self.batch_size
        return torch.cat([self._solve(plan, part, values) for part in batches(seeds, size)])

    def _solve(self, plan: Plan, seeds: Sequence[int], values: Values | None) -> Tensor:
        model = self.model
        noise = ImageNoise(seeds, model.shape)
        costs = Costs()
        x0 = solve(
            model,
            plan,
            model.schedule.prior_std * noise().to(model.device),
            labels=torch.tensor([s % model.n_classes for s in seeds]) if model.n_classes else None,
            guidance=self.guidance,
            noise=noise if plan.stochastic else None,
            values=values,
            costs=costs,
        )
        self.calls += costs.network_calls * len(seeds)
        return x0

    def images(self, x0: Tensor) -> Tensor:
        """What `solve` made, as images in [-1, 1]: latents decoded."""
        decoded: Tensor = x0 if self.model.decode is None else self.model.decode(x0)
        return decoded


def batches(seeds: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The seeds in order, `size` at a time."""
    return (seeds[start : start + size] for start in range(0, len(seeds), size))


def distances(x0: Tensor, solution: Tensor) -> Tensor:
    """Euclidean distance of each image to the fine solution of its noise, (B,) float64."""
    off = x0.double() - solution.double()
    norms: Tensor = torch.linalg.vector_norm(off.flatten(1), dim=1)
    return norms


class FrechetLoss:
    """Fréchet distance of a batch's features to a reference, differentiable [dowson1982frechet].

    A batch of n images is farther from the reference than infinitely many, by about c/n: as a loss that is no
    harm, since it hardly depends on the plan; as a number it is not to be reported.
    """

    def __init__(self, reference: Statistics) -> None:
        self.mu, self.cov = torch.from_numpy(reference.mu), torch.from_numpy(reference.cov)
        self.factor = torch.from_numpy(reference.factor)

    def __call__(self, features: Tensor) -> Tensor:
        """Args: features: (n, D). Returns: the squared distance, () float64."""
        rows = features.double().cpu()
        mean = rows.mean(0)
        centred = (rows - mean) / (len(rows) - 1) ** 0.5
        projected = centred @ self.factor
        small = projected @ projected.T if len(rows) < projected.shape[1] else projected.T @ projected
        eigenvalues = torch.linalg.eigvalsh(small)
        floor = ROOT_FLOOR * float(eigenvalues.detach()[-1])
        roots = eigenvalues.clamp_min(floor).sqrt().sum()
        distance: Tensor = (
            (mean - self.mu).square().sum() + centred.square().sum() + self.cov.trace() - 2 * roots
        )
        return distance


Gradient = Callable[[Plan, Values, Sequence[int]], float]
"""Adds the gradient of a loss on some seeds to the leaves of `values`, and returns the loss."""


def trajectory_gradient(task: Task, distance: Callable[[Tensor, Sequence[int]], Tensor]) -> Gradient:
    """Of the mean distance to the fine solutions, in batches.
    Args: distance: of x0 made from some seeds, one number an image.
    """

    def gradient(plan: Plan, values: Values, seeds: Sequence[int]) -> float:
        total = 0.0
        for part in batches(seeds, task.batch_size):
            loss = distance(task.solve(plan, part, values=values), part).sum() / len(seeds)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    return gradient


def frechet_gradient(task: Task, loss: FrechetLoss, features: Features) -> Gradient:
    """Of the Fréchet distance of all seeds together; memory is that of one batch.

    A first pass makes the features, from which the slope of the distance in each feature follows; a second one
    carries the slopes back batch by batch.
    """

    def gradient(plan: Plan, values: Values, seeds: Sequence[int]) -> float:
        parts = list(batches(seeds, task.batch_size))
        if len(parts) == 1:
            distance = loss(features(task.images(task.solve(plan, seeds, values=values))))
            distance.backward()  # type: ignore[no-untyped-call]
            return float(distance.detach())
        with torch.no_grad():
            made = torch.cat([features(task.images(task.solve(plan, part, values=values))) for part in parts])
        made.requires_grad_()
        distance = loss(made)
        distance.backward()  # type: ignore[no-untyped-call]
        assert made.grad is not None
        for part, slope in zip(parts, torch.split(made.grad, [len(part) for part in parts]), strict=True):
            again = features(task.images(task.solve(plan, part, values=values)))
            again.backward(slope)  # type: ignore[no-untyped-call]
        return float(distance.detach())

    return gradient
