"""Where to edit: the latest step at which inverted states are those that sampling has, found from three curves."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.data.pixels import to_unit
from fewstep.diffusion.denoiser import Model
from fewstep.methods.boundary.edit import generated, unedited
from fewstep.methods.boundary.latents import Latents, inverted
from fewstep.rng import ImageNoise
from fewstep.sampling.plan import Plan, Step
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve, start_std


@dataclass(frozen=True)
class Norms:
    """Norms of states at a step.

    Attributes: mean, std: over images. n: how many.
    """

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, states: Tensor) -> "Norms":
        """Those of (N, ...)."""
        norms = states.double().flatten(1).norm(dim=1)
        return cls(float(norms.mean()), float(norms.std()), len(norms))


@dataclass(frozen=True)
class Point:
    """What is known of a step.

    Attributes:
        t: the step, in the schedule's time.
        sampled: of states on the way from noise.
        inverted: of inverted images, in the calls of the boundary.
        coarse: the same in half of the calls.
        error: mean squared error, in [-1, 1], of images that were inverted and generated again.
        accuracy: of planes on latents that they were not fitted to, by attribute and space.
    """

    t: float
    sampled: Norms
    inverted: Norms
    coarse: Norms
    error: float
    accuracy: Mapping[str, Mapping[str, float]]

    @property
    def gap(self) -> float:
        """How far apart mean norms are, in standard deviations of the sampled ones."""
        return abs(self.inverted.mean - self.sampled.mean) / self.sampled.std

    @property
    def limit_mean(self) -> float:
        """Mean norm of inverted images at infinitely many calls: steps of first order err by half as much in twice
        the calls, and part of the gap is that error.
        """
        return 2 * self.inverted.mean - self.coarse.mean

    @property
    def limit_gap(self) -> float:
        """The gap at infinitely many calls."""
        return abs(self.limit_mean - self.sampled.mean) / self.sampled.std


def sampled_norms(
    model: Model, ts: Sequence[float], *, calls: int = 80, seeds: Sequence[int], batch_size: int = 250
) -> list[Norms]:
    """Norms of states on the way from noise at some times, by DDIM through all of them.

    Args:
        model: any.
        ts: within the schedule, in any order.
        calls: of the whole way, about; the times come in beside them.
        seeds: one for each image.
        batch_size: images per network call.
    """
    plain = PRESETS["ddim"](model.schedule, calls, grid="uniform-t")
    step = 0.5 * (plain.nodes[0].t - plain.nodes[-1].t) / calls
    between = [node.t for node in plain.nodes if all(abs(node.t - t) > step for t in ts)]
    times = sorted({*between, *ts, model.schedule.t_min}, reverse=True)
    plan = PRESETS["ddim"](model.schedule, len(times) - 1, grid=times)
    found: dict[float, list[Tensor]] = {t: [] for t in ts}
    for first in range(0, len(seeds), batch_size):
        noise = ImageNoise(seeds[first : first + batch_size], model.shape)

        def look(node: object, x: Tensor, _: Tensor) -> None:
            kept = found.get(getattr(node, "t"))  # noqa: B009
            if kept is not None:
                kept.append(x.double().flatten(1).norm(dim=1).cpu())

        solve(model, plan, start_std(model, plan) * noise().to(model.device), observe=look)
    norms = [torch.cat(found[t]) for t in ts]
    return [Norms(float(one.mean()), float(one.std()), len(one)) for one in norms]


def halved(plan: Plan) -> Plan:
    """A plan of steps between neighbours with every second node left out."""
    nodes = (*plan.nodes[:-1:2], plan.nodes[-1])
    steps = tuple(Step(i, i + 1, plan.steps[0].pred) for i in range(len(nodes) - 1))
    return replace(plan, nodes=nodes, steps=steps)


def curves(
    model: Model,
    images_u8: Tensor,
    ts: Sequence[float],
    *,
    plan_at: Callable[[float], Plan],
    accuracy: Callable[[Latents], Mapping[str, Mapping[str, float]]],
    seeds: Sequence[int],
    batch_size: int = 250,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Point]:
    """The three curves, a point for each step.

    Args:
        model: as `fewstep.methods.boundary.latents.require_editable` wants it.
        images_u8: uint8 (N, C, H, W).
        ts: the steps.
        plan_at: from a step to data.
        accuracy: of planes that are fitted to latents of these images.
        seeds: of as many images on the way from noise.
        batch_size: images per network call.
        progress: wraps the steps.
    """
    plans = [plan_at(t) for t in ts]
    ts = [plan.nodes[0].t for plan in plans]
    of_noise = sampled_norms(model, ts, seeds=seeds, batch_size=batch_size)
    points = []
    for t, plan, sampled in zip(ts, progress(plans), of_noise, strict=True):
        latents = inverted(model, plan, images_u8, batch_size=batch_size)
        coarse = inverted(model, halved(plan), images_u8, batch_size=batch_size)
        again = generated(model, plan, unedited(latents), batch_size=batch_size)
        error = float((to_unit(again) - to_unit(images_u8)).square().mean())
        norms = Norms.of(latents.eps), Norms.of(coarse.eps)
        points.append(Point(t, sampled, *norms, error, accuracy(latents)))
    return points


def mixing_step(points: Sequence[Point], *, most_gap: float, most_error: float) -> tuple[Point, bool]:
    """The latest step with a small gap and a small error; where there is none, that of the smallest gap.

    Args: points: of `curves`. most_gap: in standard deviations. most_error: of reconstructions.
    Returns: The step, and whether it is within both limits.
    """
    within = [point for point in points if point.gap <= most_gap and point.error <= most_error]
    if within:
        return max(within, key=lambda point: point.t), True
    return min(points, key=lambda point: point.gap), False
