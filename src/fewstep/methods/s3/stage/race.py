"""A comparison of many plans that stops where it is sure: whatever is significantly behind gets no more images.

All plans are measured on the same noises, so that differences are paired. After each round, plans whose interval of
the difference to the last place that counts lies above zero are out, as in racing [maron1994hoeffding].
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.methods.s3.stage.scoring import Candidate, Search
from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import half_samples, paired_difference, student_quantile
from fewstep.sampling.task import batches

LEVEL = 0.95
RESAMPLES = 40
FEWEST = 4  # images from which an interval follows

Progress = Callable[[Iterable[int]], Iterable[int]]


@dataclass(eq=False)
class Runner:
    """A candidate and what it was measured by so far: errors of images, or their features."""

    candidate: Candidate
    rows: list[NDArray[np.floating]] = field(default_factory=list)

    @property
    def measured(self) -> NDArray[np.floating]:
        """All rows so far."""
        return np.concatenate(self.rows)


def race(
    search: Search,
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    *,
    by: str,
    places: int,
    rounds: int,
    protected: Callable[[Candidate], bool] = lambda _: False,
    progress: Progress = iter,
) -> list[Candidate]:
    """Candidates as they were measured, the best first, in rounds of ever more images, each twice those before.

    Those that lasted to the end stand before those that were out earlier. Those whose state is not finite are left out.

    Args:
        search: whose task draws the images.
        candidates: of which a number counts.
        seeds: of all rounds together.
        by: `error`, the mean distance to the fine solutions, or `fd`, the Fréchet distance to the reference.
        places: how many of the best are to be found.
        rounds: how often candidates may be put out, at most.
        protected: candidates that are measured to the end.
        progress: wraps the measurements of a round.
    """
    measure = _errors if by == "error" else _features
    running = [Runner(candidate) for candidate in candidates]
    out: list[Candidate] = []
    done = 0
    for end in _ends(len(seeds), rounds):
        part, alive = seeds[done:end], []
        for i in progress(range(len(running))):
            try:
                rows = measure(search, running[i].candidate, part)
            except DataError:
                continue
            if np.isfinite(rows).all():
                running[i].rows.append(rows)
                alive.append(running[i])
        values = [_value(search, runner, by) for runner in alive]
        order = sorted(range(len(alive)), key=values.__getitem__)
        running, done = [alive[k] for k in order], end
        if end < len(seeds) and len(running) > places:
            last = running[places - 1]
            kept = [
                runner
                for place, runner in enumerate(running)
                if place < places or protected(runner.candidate) or not _behind(search, runner, last, by)
            ]
            out = [_judged(search, runner, by) for runner in running if runner not in kept] + out
            running = kept
    return [_judged(search, runner, by) for runner in running] + out


def _judged(search: Search, runner: Runner, by: str) -> Candidate:
    value, images = _value(search, runner, by), len(runner.measured)
    if by == "error":
        return replace(runner.candidate, error=value, images=images)
    return replace(runner.candidate, fd=value, images=images)


def _ends(n: int, rounds: int) -> list[int]:
    """How many images there are after each round: halves of halves of all, but no fewer than say something."""
    ends = [n]
    while len(ends) < rounds and ends[0] // 2 >= FEWEST:
        ends.insert(0, ends[0] // 2)
    return ends


def _errors(search: Search, candidate: Candidate, seeds: Sequence[int]) -> NDArray[np.floating]:
    with torch.no_grad():
        parts = [
            search.distances(search.task.solve(candidate.plan, part), part)
            for part in batches(seeds, search.task.batch_size)
        ]
    errors: NDArray[np.floating] = torch.cat(parts).cpu().numpy()
    return errors


def _features(search: Search, candidate: Candidate, seeds: Sequence[int]) -> NDArray[np.floating]:
    return search.features(candidate.plan, seeds)


def _value(search: Search, runner: Runner, by: str) -> float:
    if by == "error":
        return float(runner.measured.mean())
    assert search.reference is not None
    return frechet(Statistics.from_features(runner.measured), search.reference.statistics).value


def _behind(search: Search, runner: Runner, other: Runner, by: str) -> bool:
    """Whether the interval of the difference of two lies above zero."""
    if by == "error":
        apart = runner.measured - other.measured
        error = float(apart.std(ddof=1)) / math.sqrt(len(apart))
        return float(apart.mean()) - student_quantile((1 + LEVEL) / 2, len(apart) - 1) * error > 0
    assert search.reference is not None
    statistics, values, replicates = search.reference.statistics, [], []
    for one in (runner, other):
        values.append(_value(search, one, by))
        replicates.append(half_samples(one.measured, statistics, resamples=RESAMPLES))
    low, _ = paired_difference(values[0], values[1], replicates[0], replicates[1], LEVEL).interval
    return low > 0
