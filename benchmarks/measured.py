"""Fréchet distances of a model's plans on reported images, kept on disk: what was drawn once is not drawn again."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fewstep.files import atomic_file
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import half_samples, normal_interval, spread
from fewstep.pipeline.measure import features_of
from fewstep.progress import track
from fewstep.sampling.plan import Plan
from fewstep.sampling.task import Task, batches

BLOCK = 500  # images of one file of features


class Value(NamedTuple):
    """A distance and its replicates, those of equally many images paired."""

    fd: float
    replicates: np.ndarray

    def __str__(self) -> str:
        low, high = normal_interval(self.fd, spread(self.replicates), 0.95)
        return f"{self.fd:.1f} [{low:.1f}, {high:.1f}]"


class Measured:
    """Fréchet distances on the seeds from `first`.

    Args: keep: a folder for the features, of which later runs and other benchmarks go on.
    """

    def __init__(
        self, task: Task, reference: Reference, extractor: Extractor, *, first: int, keep: Path
    ) -> None:
        self.task, self.reference, self.extractor, self.first = task, reference, extractor, first
        self.folder = keep / f"{task.model.fingerprint[:12]}-{extractor.id}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def features(self, plan: Plan, n: int) -> np.ndarray:
        """Of the first `n` images, (n, dim)."""
        parts = list(batches(range(self.first, self.first + n), BLOCK))
        return np.concatenate(
            [self._block(plan, parts[i]) for i in track(plan.name, unit="block")(range(len(parts)))]
        )

    def _block(self, plan: Plan, seeds: Sequence[int]) -> np.ndarray:
        file = self.folder / f"{plan.hash}-{seeds[0]}-{len(seeds)}.npy"
        if not file.exists():
            with atomic_file(file) as temporary, open(temporary, "wb") as out:
                np.save(out, features_of(self.task, plan, seeds, self.extractor))
        return np.load(file)

    def __call__(self, plan: Plan, n: int) -> Value:
        made = self.features(plan, n)
        value = frechet(Statistics.from_features(made), self.reference.statistics).value
        return Value(value, half_samples(made, self.reference.statistics, resamples=50, seed=0))
