"""How a search scores plans: by the distance to fine solutions, or by that between sets of images.

Where there is an extractor, distances to fine solutions are those of its features: at few steps the plan nearest in
pixels is the one that blurs best.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.methods.s3.space import Space
from fewstep.methods.s3.stage.decisions import Report, Score
from fewstep.methods.s3.stage.seeds import search_seeds
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.methods.s3.teacher import Teacher
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.pipeline.conditions import identity_of
from fewstep.pipeline.measure import features_of
from fewstep.sampling.plan import Plan
from fewstep.sampling.task import Task, batches, distances

PART = 16  # noises between two reports of a trial


@dataclass
class Candidate:
    """A plan that may win.

    Attributes:
        parents: hashes of the plans that it was derived from; of a known sampler, its own.
        error: mean distance to the fine solutions.
        fd: Fréchet distance to the reference.
        images: how many the latter, or without a reference the former, was measured on.
    """

    name: str
    plan: Plan
    parents: tuple[str, ...] = ()
    error: float = math.nan
    fd: float = math.nan
    images: int = 0


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates under names of their own: a second one of a name gets a number."""
    named: list[Candidate] = []
    for candidate in candidates:
        same = sum(other.name.partition("#")[0] == candidate.name for other in named)
        named.append(replace(candidate, name=f"{candidate.name}#{same + 1}") if same else candidate)
    return named


@dataclass
class Search:
    """One search: a model, a number of network calls, and what plans are measured against.

    Attributes:
        given: plans of other models, resolutions or guidance, from which it starts beside the known samplers.
        seconds, calls: by what they were spent on.
    """

    task: Task
    teacher: Teacher
    space: Space
    settings: SearchSettings
    reference: Reference | None = None
    extractor: Extractor | None = None
    given: Sequence[Candidate] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seeds = search_seeds(self.settings)
        self.parts = list(batches(self.teacher.seeds[: self.settings.trial_noises], PART))

    def identity(self) -> dict[str, Any]:
        """All that the score of a trial depends on."""
        space, settings, conditions = self.space, self.settings, identity_of(self.task.model)
        return {
            **({} if conditions is None else {"conditions": conditions}),
            "model": self.task.model.fingerprint,
            "schedule": space.schedule.config(),
            "guidance": self.task.guidance,
            "space": [space.nfe, space.to_zero, space.max_order, space.analytic],
            "teacher": self.teacher.plan.hash,
            "noises": [settings.seed, settings.trial_noises],
            "error_in": None if self.extractor is None else self.extractor.protocol,
            "sampler": settings.sampler,
        }

    @property
    def measure(self) -> str:
        """What the winner is chosen by: the distance between sets of images, or to the fine solutions."""
        return "error" if self.reference is None else "fd"

    def measured(self, candidate: Candidate) -> float:
        """What the winner is chosen by, of a candidate."""
        return candidate.error if self.reference is None else candidate.fd

    def distances(self, x0: Tensor, seeds: Sequence[int]) -> Tensor:
        """Of images to the fine solutions of their noises, (B,), in features where there is an extractor."""
        compared = x0 if self.extractor is None else self.extractor.of_unit(self.task.images(x0))
        return distances(compared, self._fine.solutions(seeds))

    @cached_property
    def _fine(self) -> Teacher:
        """The teacher with, where there is an extractor, features in the place of images."""
        if self.extractor is None:
            return self.teacher

        def features(x0: Tensor) -> Tensor:
            assert self.extractor is not None
            parts = torch.split(x0, self.task.batch_size)
            return torch.cat([self.extractor.of_unit(self.task.images(part)) for part in parts])

        with torch.no_grad():
            teacher = self.teacher
            return replace(teacher, x0=features(teacher.x0), validation_x0=features(teacher.validation_x0))

    def error(self, plan: Plan, seeds: Sequence[int] | None = None) -> float:
        """Mean distance to the fine solutions; of the validation seeds when none are given."""
        seeds = self.teacher.validation if seeds is None else seeds
        with torch.no_grad():
            parts = batches(seeds, self.task.batch_size)
            return float(sum(self.distances(self.task.solve(plan, p), p).sum() for p in parts)) / len(seeds)

    def score(self, hopeless: float) -> Score:
        """The score of a trial, which ends early where the error on one part is beyond `hopeless`."""

        def score(plan: Plan, report: Report) -> tuple[float, bool]:
            errors: list[Tensor] = []
            for part in self.parts:
                with torch.no_grad():
                    errors.append(self.distances(self.task.solve(plan, part), part))
                mean = float(errors[-1].mean())
                if report(mean) or mean > hopeless:
                    break
            n = sum(map(len, errors))
            return float(sum(float(e.sum()) for e in errors)) / n, len(errors) == len(self.parts)

        return score

    def distance(self, plan: Plan, seeds: Sequence[int]) -> float:
        """Fréchet distance of the images of some seeds to the reference."""
        assert self.reference is not None
        features = self.features(plan, seeds)
        return frechet(Statistics.from_features(features), self.reference.statistics).value

    def features(self, plan: Plan, seeds: Sequence[int]) -> NDArray[Any]:
        """Features of the images of some seeds, (len(seeds), D)."""
        assert self.extractor is not None
        return features_of(self.task, plan, seeds, self.extractor)

    @contextmanager
    def booked(self, purpose: str) -> Iterator[None]:
        """Add the seconds and the network calls of what is done inside to those of a purpose."""
        started, before = time.monotonic(), self.task.calls
        yield
        self.seconds[purpose] = self.seconds.get(purpose, 0.0) + time.monotonic() - started
        self.calls[purpose] = self.calls.get(purpose, 0) + self.task.calls - before
