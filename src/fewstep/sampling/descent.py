"""Gradients through a compiled plan: descend in whatever numbers of a plan are left free.

The losses are the distance to fine solutions [shaul2024bns], or a distance between sets of images [watson2022ddss].
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.checks import ConfigError, DataError
from fewstep.sampling.plan import Plan
from fewstep.sampling.solver import Values
from fewstep.sampling.task import Task, batches

WARM = 0.1  # share of the iterations in which the learning rate rises
CLIP = 1.0

Features = Callable[[Tensor], Tensor]
"""From images in [-1, 1], (B, C, H, W), to features (B, D), with gradients."""

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


def frechet_gradient(
    task: Task, loss: Callable[[Tensor], Tensor], features: Features, *, before: Sequence[int] = ()
) -> Gradient:
    """Of the Fréchet distance of all seeds together, and of images before them; memory is that of one batch.

    A first pass makes the features, from which the slope of the distance in each feature follows; a second one
    carries the slopes back batch by batch.

    Args:
        task: whose images.
        loss: distance of features (B, D).
        features: of images.
        before: seeds of images that are drawn once, without a gradient. The distance is that of as many of the latest
            images besides those of an iteration, which may then be few: a distance of few images alone is far from
            that of many. None: of the iteration's alone.
    """
    kept: list[Tensor] = []  # features of the latest images, oldest first

    def made_of(plan: Plan, values: Values, seeds: Sequence[int]) -> Tensor:
        return features(task.images(task.solve(plan, seeds, values=values)))

    def backward(made: Tensor) -> float:
        distance = loss(torch.cat([*kept, made]))
        distance.backward()  # type: ignore[no-untyped-call]
        if before:
            kept[:] = [torch.cat([*kept, made.detach()])[-len(before) :]]
        return float(distance.detach())

    def gradient(plan: Plan, values: Values, seeds: Sequence[int]) -> float:
        parts = list(batches(seeds, task.batch_size))
        if before and not kept:
            with torch.no_grad():
                kept[:] = [made_of(plan, values, part) for part in batches(before, task.batch_size)]
        if len(parts) == 1:
            return backward(made_of(plan, values, seeds))
        with torch.no_grad():
            made = torch.cat([made_of(plan, values, part) for part in parts])
        made.requires_grad_()
        distance = backward(made)
        assert made.grad is not None
        for part, slope in zip(parts, torch.split(made.grad, [len(part) for part in parts]), strict=True):
            made_of(plan, values, part).backward(slope)  # type: ignore[no-untyped-call]
        return distance

    return gradient


class Free(nn.Module):
    """Numbers of a plan as parameters; abstract: subclasses define what is free, and how it moves.

    Attributes: form: the plan as it is solved, whose numbers `values` replaces.
    """

    form: Plan

    def values(self) -> Values:
        """The numbers of `form`, with gradients."""
        raise NotImplementedError

    def plan(self) -> Plan:
        """The plan with the numbers as they are.
        Raises: ConfigError: no plan can have them.
        """
        raise NotImplementedError

    def numbers_now(self) -> dict[str, list[Any]]:
        """All that has moved, as plain numbers."""
        return {name: value.tolist() for name, value in self.state_dict().items()}

    def load_numbers(self, numbers: dict[str, list[Any]]) -> None:
        """The inverse of `numbers_now`."""
        self.load_state_dict({name: torch.tensor(v, dtype=torch.float64) for name, v in numbers.items()})


@dataclass(frozen=True)
class Point:
    """One look at a plan that is being polished.

    Attributes:
        loss: of the iteration; None for the initial plan.
        validation: score on seeds that the gradient never sees.
    """

    iteration: int
    loss: float | None
    validation: float


def polish(
    free: Free,
    gradient: Gradient,
    seeds: Callable[[int], Sequence[int]],
    validate: Callable[[Plan], float],
    *,
    iterations: int,
    lr: float = 0.03,
    checks: int = 6,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Point]:
    """Descend, and leave `free` at the best of the plans validated on the way, the initial one among them.

    Args:
        free: what moves; changed in place.
        gradient: of the loss.
        seeds: those of an iteration.
        validate: score on seeds that the gradient never sees, lower is better.
        iterations: of Adam.
        lr: learning rate, to which it rises and from which it falls to 0.
        checks: validations on the way, besides that of the initial plan.
        progress: wraps the iterations.

    Returns:
        What was seen at each validation.
    """
    optimiser = torch.optim.Adam(free.parameters(), lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: _share_of_lr(i, max(iterations, 1)))
    best, kept = _validated(free, validate), copy.deepcopy(free.state_dict())
    seen = [Point(0, None, best)]
    every = max(1, iterations // max(checks, 1))
    for i in progress(range(iterations)):
        optimiser.zero_grad()
        try:
            loss = _backward(free, gradient, seeds(i))
        except (
            ConfigError,
            DataError,
        ):  # a node out of range, or a state not finite: back to the best so far
            free.load_state_dict(kept)
            continue
        nn.utils.clip_grad_norm_(free.parameters(), CLIP)
        optimiser.step()
        schedule.step()
        if (i + 1) % every == 0 or i + 1 == iterations:
            score = _validated(free, validate)
            seen.append(Point(i + 1, loss, score))
            if score < best:
                best, kept = score, copy.deepcopy(free.state_dict())
    free.load_state_dict(kept)
    return seen


def _share_of_lr(i: int, iterations: int) -> float:
    """Share of the learning rate at an iteration: up a line, then down a cosine."""
    risen = (i + 1) / (WARM * iterations + 1)
    return risen if risen < 1 else (1 + math.cos(math.pi * (i / iterations - WARM) / (1 - WARM))) / 2


def _backward(free: Free, gradient: Gradient, seeds: Sequence[int]) -> float:
    """The loss; backward through the network to the numbers as leaves, then once from these to the parameters."""
    values = free.values()
    leaves = Values(*(number.detach().requires_grad_(number.requires_grad) for number in values))
    loss = gradient(free.form, leaves, seeds)
    if not math.isfinite(loss):
        raise DataError(f"The loss of a plan must be finite; got {loss}.")
    pairs = zip(values, (leaf.grad for leaf in leaves), strict=True)
    slopes = [(value, slope) for value, slope in pairs if slope is not None]
    torch.autograd.backward([v for v, _ in slopes], [s for _, s in slopes])
    if not all(bool(p.grad.isfinite().all()) for p in free.parameters() if p.grad is not None):
        raise DataError("The slopes of a plan's loss must be finite, but they are not.")
    return loss


def _validated(free: Free, validate: Callable[[Plan], float]) -> float:
    try:
        return validate(free.plan())
    except (ConfigError, DataError):
        return math.inf
