"""Times of plans on a machine that may have other work to do."""

import os
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.app.stages.compose.record import Machine
from fewstep.metrics.uncertainty import Interval
from fewstep.sampling.plan import Plan
from fewstep.sampling.task import Task

Seconds = NDArray[np.float64]
"""Of each plan in each round, (rounds, plans)."""


def timed(task: Task, plans: Sequence[Plan], seeds: Sequence[int], rounds: int) -> tuple[Seconds, Machine]:
    """Seconds of every plan in every round, and what else the machine did meanwhile.

    Every round times all plans, every other one in reverse order, so that a machine that slows down does so for all.
    """
    seconds = np.empty((rounds, len(plans)))
    before, started, spent = _load(), time.perf_counter(), time.process_time()
    for i in range(rounds):
        order = range(len(plans)) if i % 2 == 0 else reversed(range(len(plans)))
        for k in order:
            seconds[i, k] = _seconds(task, plans[k], seeds)
    used = (time.process_time() - spent) / (time.perf_counter() - started)
    return seconds, Machine(cores=os.cpu_count() or 1, load_before=before, load_after=_load(), used=used)


def speeds(seconds: Seconds) -> list[tuple[float, Interval]]:
    """How many times as fast as the first plan each one is: the median of the rounds' ratios, with their range.

    Ratios are paired: both times are of one round. The range of n rounds holds the median of all rounds that there
    could be with probability 1 - 2^(1 - n), whatever their distribution: 97 % of 6.
    """
    ratios = seconds[:, :1] / seconds
    return [(float(np.median(own)), Interval(float(own.min()), float(own.max()))) for own in ratios.T]


def not_slower(seconds: Seconds) -> list[int]:
    """The plans than which no other one is faster beyond doubt, that is, in every round.

    This is a partial order of the plans, whose first ones do not depend on a median that the next round might move.
    One round distinguishes nothing.
    """
    rounds, n = seconds.shape
    if rounds < 2:
        return list(range(n))
    return [k for k in range(n) if not (seconds < seconds[:, [k]]).all(axis=0).any()]


def _seconds(task: Task, plan: Plan, seeds: Sequence[int]) -> float:
    started = time.perf_counter()
    x0 = task.solve(plan, seeds)
    if x0.is_cuda:
        torch.cuda.synchronize(x0.device)
    return time.perf_counter() - started


def _load() -> float | None:
    """Mean number of running processes over the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
