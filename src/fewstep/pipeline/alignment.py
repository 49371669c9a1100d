"""The alignment of one plan: several fits, each gated, and a choice between them on images that none of them saw.

With a reference the measure is the Fréchet distance to it, without one the mean distance to the fine solutions. The
plan that came in stays, unless another one is better beyond the interval of the paired difference, which is widened
for the number of those that were tried.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.methods.aligner.align import Alignment, Gain, align, endpoint_distances
from fewstep.methods.aligner.fine import Fine
from fewstep.methods.aligner.free import FreeTimes
from fewstep.methods.aligner.objectives import fine_path, require_objective
from fewstep.methods.aligner.student import Student
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.loss import FrechetLoss
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Array, Statistics
from fewstep.metrics.uncertainty import Difference, half_samples, normal_interval, paired_difference
from fewstep.pipeline.config import AlignSettings
from fewstep.pipeline.measure import features_of
from fewstep.pipeline.seeds import require_disjoint
from fewstep.progress import Track
from fewstep.sampling.descent import Gradient, frechet_gradient, polish, trajectory_gradient
from fewstep.sampling.plan import Plan
from fewstep.sampling.task import Task, distances

SEED_BLOCK = 1_000_000
"""Seeds of one purpose: an alignment uses five blocks from its first seed on."""
LEVEL = 0.95  # probability with which a plan that is no better is not taken for a better one
REFINE_LR = 0.01  # of log r and of the scales' logarithms


@dataclass(frozen=True)
class Seeds:
    """Which images an alignment looks at; all are refused for evaluation."""

    fit: range
    gate: range
    choice: range
    refine: range
    validation: range

    def __post_init__(self) -> None:
        require_disjoint(vars(self))

    @classmethod
    def of(cls, settings: AlignSettings) -> "Seeds":
        """Blocks one after another."""
        first = [settings.seed + k * SEED_BLOCK for k in range(5)]
        return cls(
            range(first[0], first[0] + settings.noises),
            range(first[1], first[1] + settings.gate_noises),
            range(first[2], first[2] + settings.choice_images),
            range(first[3], first[3] + settings.refine_iterations * settings.refine_images),
            range(first[4], first[4] + (settings.refine_images if settings.refine_iterations else 0)),
        )

    def as_json(self) -> dict[str, list[int]]:
        """First and last of each."""
        return {f"align-{name}": [block[0], block[-1]] for name, block in vars(self).items() if len(block)}


@dataclass(frozen=True)
class Measured:
    """A plan on the images of the choice.

    Attributes: value: Fréchet distance, or mean distance to the fine solutions. parts: replicates of the one, or the
        distance of each image.
    """

    value: float
    parts: Any


@dataclass
class Candidate:
    """A plan that may take the place of the one that came in.

    Attributes: endpoint: mean distance to the fine solutions of the gates' noises; None where there are none.
    """

    name: str
    plan: Plan
    fit: Alignment | None = None
    endpoint: Gain | None = None
    measured: Measured | None = None
    difference: Difference | None = None


@dataclass(frozen=True)
class Aligned:
    """What came out: the plan to use, with the record in its provenance, and the record itself."""

    plan: Plan
    record: dict[str, Any]


class Aligning:
    """One alignment: a task, a plan, what it is fitted on and measured by.

    Args:
        task: model and how it is asked, with the guidance of the plan.
        plan: what to align.
        settings: of the alignment.
        images: x0 in [-1, 1] for the objectives that start from images.
        labels: class of each of them.
        reference, extractor: of the Fréchet distance, where the choice is by it.
        track: makes progress bars.

    Raises:
        ConfigError: no objective can be used, or there is nothing to choose by.
    """

    def __init__(
        self,
        task: Task,
        plan: Plan,
        settings: AlignSettings,
        *,
        images: Tensor | None = None,
        labels: Tensor | None = None,
        reference: Reference | None = None,
        extractor: Extractor | None = None,
        track: Track,
    ) -> None:
        self.task, self.plan, self.settings, self.track = task, plan, settings, track
        self.images, self.labels = images, labels
        self.reference, self.extractor = reference, extractor
        self.seeds = Seeds.of(settings)
        self.name = plan.name or "plan"
        self.student = Student(task, plan)
        if plan.stochastic and reference is None:
            raise ConfigError(
                f"Noises have no fine solutions to choose by where a plan draws more of them, as {self.name} does; "
                "pass a reference."
            )
        self.objectives, self.left_out = self._usable()

    def _usable(self) -> tuple[list[str], dict[str, str]]:
        usable: list[str] = []
        left_out: dict[str, str] = {}
        for name in self.settings.objectives:
            try:
                require_objective(name, self.task, self.plan, self.images, self.labels)
                usable.append(name)
            except ConfigError as error:
                left_out[name] = str(error)
        if not usable:
            raise ConfigError(f"No objective can be used: {' '.join(left_out.values())}")
        return usable, left_out

    @property
    def measure(self) -> str:
        """What is chosen by."""
        return "error" if self.reference is None else "fd"

    def run(self) -> Aligned:
        """Fit, refine, choose."""
        started, before = time.monotonic(), self.task.calls
        candidates = self._fitted()
        if self.settings.refine_iterations:
            candidates += self._refined(candidates)
        base, chosen = self._chosen(candidates)
        record = {
            "measure": self.measure,
            "before": None if base is None else base.value,
            "after": None if chosen is None or chosen.measured is None else chosen.measured.value,
            "chosen": None if chosen is None else chosen.name,
            "why": self._why(candidates, chosen),
            "nodes": self._nodes(chosen or (candidates[0] if candidates else None)),
            "candidates": [_row(candidate) for candidate in candidates],
            "left_out": self.left_out,
            "settings": self.settings.model_dump(mode="json"),
            "seconds": round(time.monotonic() - started, 1),
            "network_calls": self.task.calls - before,
        }
        return Aligned(self._signed(chosen, record), record)

    def _fitted(self) -> list[Candidate]:
        """One per objective and, with magnitude, another one with scales."""
        settings = self.settings
        scales = (False, True) if settings.magnitude else (False,)
        found = []
        for objective in self.objectives:
            for magnitude in scales:
                name = f"{objective}+scale" if magnitude else objective
                fit = align(
                    self.task,
                    self.plan,
                    seeds=self.seeds.fit,
                    gate_seeds=self.seeds.gate,
                    objective=objective,
                    optimiser=settings.optimiser,
                    magnitude=magnitude,
                    images=self.images,
                    labels=self.labels,
                    substeps=settings.teacher_substeps,
                    gate="steps",  # as a whole, plans are judged by the choice
                    progress=self.track(f"align {self.name} {name}", unit="call"),
                )
                found.append(Candidate(name, fit.found, fit, fit.endpoint))
        return found

    def _refined(self, fitted: Sequence[Candidate]) -> list[Candidate]:
        """All times together by gradients, from the best of the fits and the plan that came in."""
        gradient, seeds, validate = self._descent()

        def score(plan: Plan) -> float:
            try:
                return validate(plan)
            except DataError:  # a state that is not finite
                return math.inf

        starts = {plan.hash: plan for plan in (self.plan, *(candidate.plan for candidate in fitted))}
        start = min(starts.values(), key=score)
        free = FreeTimes(start, self.student.schedule, magnitude=self.settings.magnitude)
        polish(
            free,
            gradient,
            seeds,
            validate,
            iterations=self.settings.refine_iterations,
            lr=REFINE_LR,
            progress=self.track(f"refine {self.name}", unit="step"),
        )
        refined = free.plan()
        if refined.stochastic:
            return [Candidate("refined", refined)]
        before, after = (
            self._errors(plan, self.seeds.gate, self._gate_solutions) for plan in (self.plan, refined)
        )
        return [Candidate("refined", refined, endpoint=Gain.of(before, after))]

    def _descent(self) -> tuple[Gradient, Callable[[int], Sequence[int]], Callable[[Plan], float]]:
        """Gradient, seeds of an iteration and validation, of what is chosen by."""
        if self.reference is not None and self.extractor is not None:
            loss, n = FrechetLoss(self.reference.statistics), self.settings.refine_images
            return (
                frechet_gradient(self.task, loss, self.extractor.of_unit),
                lambda i: self.seeds.refine[i * n : (i + 1) * n],
                lambda plan: self._distance(plan, self.seeds.validation)[0],
            )
        fit, first = self._solutions(self.seeds.fit), self.seeds.fit[0]

        def off(x0: Tensor, part: Sequence[int]) -> Tensor:
            return distances(x0, fit[part[0] - first : part[-1] - first + 1])

        return (
            trajectory_gradient(self.task, off),
            lambda i: self.seeds.fit,
            lambda plan: float(self._errors(plan, self.seeds.gate, self._gate_solutions).mean()),
        )

    def _chosen(self, candidates: Sequence[Candidate]) -> tuple[Measured | None, Candidate | None]:
        """How the plan that came in measures, and the best of those that are surely better."""
        tried = {c.plan.hash: c for c in reversed(candidates) if c.plan.hash != self.plan.hash}
        if not tried:
            return None, None
        # the best of several is better by chance more often than one: each has its share of the level
        level = 1 - (1 - LEVEL) / len(tried)
        base = self._measured(self.plan)
        bar: Iterable[Candidate] = self.track(f"choose {self.name}", unit="plan")(list(tried.values()))
        for candidate in bar:
            try:
                candidate.measured = self._measured(candidate.plan)
            except DataError:  # a state that is not finite
                continue
            candidate.difference = self._difference(candidate.measured, base, level)
        better = [c for c in tried.values() if c.difference is not None and c.difference.interval.high < 0]
        return base, min(better, key=_value, default=None)

    def _measured(self, plan: Plan) -> Measured:
        if self.reference is not None:
            return Measured(*self._distance(plan, self.seeds.choice, replicates=True))
        errors = self._errors(plan, self.seeds.choice, self._choice_solutions)
        return Measured(float(errors.mean()), errors)

    def _difference(self, one: Measured, base: Measured, level: float) -> Difference:
        if self.reference is not None:
            return paired_difference(one.value, base.value, one.parts, base.parts, level)
        by = one.parts - base.parts
        error = float(by.std()) / math.sqrt(len(by))
        return Difference(float(by.mean()), normal_interval(float(by.mean()), error, level))

    def _distance(
        self, plan: Plan, seeds: Sequence[int], *, replicates: bool = False
    ) -> tuple[float, Array | None]:
        assert self.reference is not None and self.extractor is not None
        features, statistics = features_of(self.task, plan, seeds, self.extractor), self.reference.statistics
        value = frechet(Statistics.from_features(features), statistics).value
        return value, half_samples(features, statistics) if replicates else None

    @cached_property
    def _choice_solutions(self) -> Tensor:
        return self._solutions(self.seeds.choice)

    @cached_property
    def _gate_solutions(self) -> Tensor:
        return self._solutions(self.seeds.gate)

    def _solutions(self, seeds: Sequence[int]) -> Tensor:
        fine = Fine(self.task, self.settings.teacher_substeps)
        return fine_path(self.student, self.student.draw(seeds), fine)[-1]

    def _errors(self, plan: Plan, seeds: Sequence[int], solutions: Tensor) -> Tensor:
        with torch.no_grad():
            return endpoint_distances(self.student, plan, self.student.draw(seeds), solutions)

    def _why(self, candidates: Sequence[Candidate], chosen: Candidate | None) -> str:
        if chosen is not None:
            return ""
        if all(candidate.plan.hash == self.plan.hash for candidate in candidates):
            return "no fit was better on noises that it had not seen"
        return "no fit was surely better on images that none had seen"

    def _nodes(self, shown: Candidate | None) -> list[dict[str, Any]]:
        """What was tried at each call; of a refined plan, what it tells."""
        if shown is None:
            return []
        if shown.fit is not None:
            return [asdict(n) | {"tried": n.tried and list(n.tried)} for n in shown.fit.nodes]
        return list(_told(shown.plan))

    def _signed(self, chosen: Candidate | None, record: dict[str, Any]) -> Plan:
        """The chosen plan with its name, the model it is for, and where it came from; or the one that came in."""
        parent = self.plan
        provenance = {
            **parent.provenance,
            "align": record,
            "seeds": {**parent.provenance.get("seeds", {}), **self.seeds.as_json()},
        }
        if chosen is None:
            return replace(parent, provenance=provenance)
        return replace(
            chosen.plan,
            name=f"{self.name}.aligned",
            fingerprint=self.task.model.fingerprint,
            guidance=self.task.guidance,
            provenance=provenance | {"sampler": f"{parent.sampler}+aligned", "parents": [parent.hash]},
        )


def _value(candidate: Candidate) -> float:
    return math.inf if candidate.measured is None else candidate.measured.value


def _row(candidate: Candidate) -> dict[str, Any]:
    """A candidate in the record: error is the mean distance to the fine solutions on the noises of the gates."""
    fit, difference = candidate.fit, candidate.difference
    told = list(_told(candidate.plan))
    return {
        "name": candidate.name,
        "hash": candidate.plan.hash,
        "error": None if candidate.endpoint is None else asdict(candidate.endpoint),
        "value": None if candidate.measured is None else candidate.measured.value,
        "difference": None if difference is None else [difference.value, *difference.interval],
        "moved": sum(node["t_cond"] != node["t"] or node["eps_scale"] != 1 for node in told),
        "refused": 0
        if fit is None
        else sum(node.held_out is not None and not node.kept for node in fit.nodes),
    }


def _told(plan: Plan) -> Iterator[dict[str, Any]]:
    for i, node in enumerate(plan.nodes):
        if node.eval == "net":
            told = node.t if node.t_cond is None else node.t_cond
            yield {"node": i, "t": node.t, "t_cond": told, "eps_scale": node.eps_scale}
