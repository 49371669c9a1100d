"""The least value of a function of one number."""

import math
from collections.abc import Callable

import torch

from fewstep.methods.aligner.objectives import Judge, finite_mean

SCAN = 11
TOLERANCE = 1e-3  # of log r and of the scale, where the golden section ends
ADAM_LR, ADAM_ITERATIONS = 2e-3, 500  # the authors' code [xia2023aligner]


def golden(value: Callable[[float], float], low: float, high: float, *, also: float) -> float:
    """The argument of the least value: a scan, then the golden section around its best point.

    Args:
        value: deterministic; its scan shows the valley to go down.
        low: lower bound.
        high: upper bound.
        also: a further point of the scan, which wins where nothing is better.
    """
    points = sorted({also, *(low + (high - low) * i / (SCAN - 1) for i in range(SCAN))})
    seen = {x: value(x) for x in points}
    # `also` first: among equals it stays
    best = min([also, *points], key=seen.__getitem__)
    at = points.index(best)
    left, right = points[max(at - 1, 0)], points[min(at + 1, len(points) - 1)]
    share = (math.sqrt(5) - 1) / 2
    inner = [right - share * (right - left), left + share * (right - left)]
    while right - left > TOLERANCE:
        for x in inner:
            if x not in seen:
                seen[x] = value(x)
        if seen[inner[0]] <= seen[inner[1]]:
            right = inner[1]
            inner = [right - share * (right - left), inner[0]]
        else:
            left = inner[0]
            inner = [inner[1], left + share * (right - left)]
    return min([also, *seen], key=seen.__getitem__)


def adam(
    judge: Judge, t: float, t_cond: float, scale: float, bounds: tuple[float, float], batch_size: int
) -> float:
    """The conditioning timestep after Adam on the ratio r = t_cond / t, as published but for the bounds on log r."""
    ratio = torch.tensor(t_cond / t, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([ratio], lr=ADAM_LR)
    n = len(judge.at.x)
    for i in range(ADAM_ITERATIONS):
        first = i * batch_size % n
        loss = judge.part(slice(first, first + batch_size)).losses(ratio * t, scale).mean()
        finite_mean(loss[None], judge.segment.node)
        (ratio.grad,) = torch.autograd.grad(loss, [ratio])  # the network's weights get none
        optimiser.step()
        with torch.no_grad():
            ratio.clamp_(*(math.exp(bound) for bound in bounds))
    found = float(ratio.detach()) * t
    # the bounds on the ratio are those of the trained range but for rounding
    return min(max(found, judge.student.schedule.t_min), judge.student.schedule.t_max)
