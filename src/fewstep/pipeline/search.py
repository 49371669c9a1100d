"""The tiers of a solver search: trials, polish, finalists; each on seeds of its own.

1. Trials: the distance to fine solutions of some noises, structure by an Optuna study.
2. Polish: gradients, first on that distance, then, where there is a reference, on the distance between sets of images.
3. Finalists: the best of each are compared on seeds that nothing saw before.

Where there is an extractor, distances to fine solutions are those of its features: at few steps the plan nearest in
pixels is the one that blurs best.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.files import canonical_json, read_json, sha256_text, write_json
from fewstep.methods.s3.free import FreePlan
from fewstep.methods.s3.space import Decisions, Space, completed, plan_of, resized
from fewstep.methods.s3.teacher import Teacher
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.loss import FrechetLoss
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.pipeline import study as studies
from fewstep.pipeline.config import SearchSettings
from fewstep.pipeline.measure import features_of
from fewstep.pipeline.seeds import require_disjoint
from fewstep.progress import Track
from fewstep.sampling.descent import Gradient, frechet_gradient, polish, trajectory_gradient
from fewstep.sampling.linear import linear_form
from fewstep.sampling.plan import Plan
from fewstep.sampling.presets import ANALYTIC, PRESETS, Grid, analytical
from fewstep.sampling.task import Task, batches, distances

SCHEMA = "fewstep.search/1"
GRIDS = ("uniform-t", "uniform-lambda", "quadratic-t", "karras")
PART = 16  # noises between two reports of a trial, and of a first look at a preset
HOPELESS = 10.0  # times the error of the best preset: given up at once
SECOND_LOOK = 30  # presets that get one
LOOK_IMAGES = 128  # of it: where there is a reference, the distance between sets ranks well with so few
KNOWN = 12  # presets that are the first trials
SEED_BLOCK = 1_000_000
"""Seeds of one purpose: a search uses four blocks from its first seed on."""


@dataclass(frozen=True)
class Seeds:
    """Which images a search looks at; all are refused for evaluation."""

    trials: range
    validation: range
    finalists: range
    polish: range

    def __post_init__(self) -> None:
        require_disjoint(vars(self))

    @classmethod
    def of(cls, settings: SearchSettings) -> "Seeds":
        """Blocks one after another."""
        first = [settings.seed + k * SEED_BLOCK for k in range(4)]
        return cls(
            range(first[0], first[0] + settings.noises),
            range(first[1], first[1] + max(settings.noises, settings.finalist_images)),
            range(first[2], first[2] + settings.finalist_images),
            range(first[3], first[3] + settings.frechet_iterations * settings.frechet_images),
        )

    def as_json(self) -> dict[str, list[int]]:
        """First and last of each."""
        blocks = vars(self).items()
        return {name: [block[0], block[-1]] for name, block in blocks if len(block)}


@dataclass
class Candidate:
    """A plan that may win."""

    name: str
    plan: Plan
    error: float = math.nan
    fd: float = math.nan


@dataclass(frozen=True)
class Neighbour:
    """The best decisions of a search for another number of calls."""

    name: str
    nfe: int
    decisions: Decisions


@dataclass(frozen=True)
class Found:
    """What a search has to say: the plan, the record for the report, its trials, and the best of them."""

    plan: Plan
    record: dict[str, Any]
    trials: pd.DataFrame
    neighbours: Sequence[Neighbour]


@dataclass
class Search:
    """One search: a model, a number of calls, and what plans are measured against."""

    task: Task
    teacher: Teacher
    space: Space
    settings: SearchSettings
    reference: Reference | None = None
    extractor: Extractor | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seeds = Seeds.of(self.settings)
        self.parts = list(batches(self.teacher.seeds[: self.settings.trial_noises], PART))

    @property
    def measure(self) -> str:
        """What the winner is judged by: the distance between sets of images, or to the fine solutions."""
        return "error" if self.reference is None else "fd"

    def known(self) -> list[Candidate]:
        """Every preset on every grid, the dynamic-programming grid among them, that makes `nfe` calls.

        Where the space has an analytical first step, each of them with that, too: one step more for the same calls.
        """
        found: dict[str, Candidate] = {}
        schedule, nfe, to_zero = self.space.schedule, self.space.nfe, self.space.to_zero
        for ending in ("", ANALYTIC) if self.space.analytic else ("",):
            grids: dict[str, Grid] = {name: name for name in GRIDS}
            grids["gits"] = self.teacher.grid(nfe + bool(ending), to_zero=to_zero)
            for (preset, make), (grid, spacing) in product(PRESETS.items(), grids.items()):
                made = partial(analytical, make) if ending else make
                try:
                    plan = made(schedule, nfe, grid=spacing, to_zero=to_zero)
                except ConfigError:  # not every preset can make every number of calls
                    continue
                if plan.nfe == nfe and not plan.stochastic:
                    found.setdefault(plan.hash, Candidate(f"{preset}.{grid}{ending}", plan))
        return list(found.values())

    def distances(self, x0: Tensor, seeds: Sequence[int]) -> Tensor:
        """Of images to the fine solutions of their noises, (B,), in features where there is an extractor."""
        made = x0 if self.extractor is None else self.extractor.of_unit(self.task.images(x0))
        return distances(made, self._fine.solutions(seeds))

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
            taught = self.teacher
            return replace(taught, x0=features(taught.x0), validation_x0=features(taught.validation_x0))

    def error(self, plan: Plan, seeds: Sequence[int] | None = None) -> float:
        """Mean distance to the fine solutions; of the validation seeds when none are given."""
        seeds = self.teacher.validation if seeds is None else seeds
        with torch.no_grad():
            parts = batches(seeds, self.task.batch_size)
            return float(sum(self.distances(self.task.solve(plan, p), p).sum() for p in parts)) / len(seeds)

    def score(self, hopeless: float) -> studies.Score:
        """What a trial runs."""

        def score(plan: Plan, report: studies.Report) -> tuple[float, bool]:
            errors: list[Tensor] = []
            for part in self.parts:
                with torch.no_grad():
                    errors.append(self.distances(self.task.solve(plan, part), part))
                mean = float(errors[-1].mean())
                if report(mean) or mean > hopeless:
                    break
            seen = sum(map(len, errors))
            return float(sum(float(e.sum()) for e in errors)) / seen, len(errors) == len(self.parts)

        return score

    def distance(self, plan: Plan, seeds: Sequence[int]) -> float:
        """Fréchet distance of the images of some seeds to the reference."""
        assert self.reference is not None and self.extractor is not None
        features = features_of(self.task, plan, seeds, self.extractor)
        return frechet(Statistics.from_features(features), self.reference.statistics).value

    def timed(self, tier: str, work: Callable[[], Any]) -> Any:
        """The result of some work, its seconds and network calls booked to a tier."""
        started, before = time.monotonic(), self.task.calls
        result = work()
        self.seconds[tier] = self.seconds.get(tier, 0.0) + time.monotonic() - started
        self.calls[tier] = self.calls.get(tier, 0) + self.task.calls - before
        return result


def run_search(
    search: Search,
    *,
    storage: str,
    work: Path,
    neighbours: Sequence[Neighbour] = (),
    track: Track,
    only_trials: bool = False,
) -> Found | None:
    """Search, going on from where an earlier start was broken off.

    Args:
        search: what to do.
        storage: of the study, see `fewstep.pipeline.study.open_study`.
        work: folder of what the tiers leave for a later start.
        neighbours: the best of other numbers of calls, whose shortened and lengthened forms are tried, too.
        track: makes progress bars.
        only_trials: run trials for a search that another process leads, and return None.
    """
    settings, space = search.settings, search.space
    study = studies.open_study(storage, f"nfe{space.nfe}", _identity(search), parts=len(search.parts))
    presets: list[Candidate] = search.timed("presets", lambda: _best_known(search, track))
    hopeless = min(c.error for c in presets)
    seeds = _seeds(space, presets, neighbours)
    studies.enqueue(study, seeds)
    search.timed(
        "trials",
        lambda: studies.run_trials(
            study,
            space,
            search.score(HOPELESS * hopeless),
            trials=settings.trials,
            sampler=settings.sampler,
            seed=settings.seed,
            network_calls=lambda: search.task.calls,
            progress=track(f"search nfe{space.nfe}", unit="trial"),
        ),
    )
    if only_trials:
        return None
    best_trials = studies.best_decisions(study, settings.finalists)
    tried = [Candidate(name, plan_of(space, decisions)) for name, decisions in best_trials]
    tried = search.timed("trials", lambda: _looked_at(search, tried, track))
    # an implicit corrector evaluates a node twice, which the linear form has no place for
    explicit = [
        c for c in (*presets, *tried) if len(c.plan.nodes) - 1 == len(linear_form(c.plan, space.schedule))
    ]
    start = min(explicit, key=lambda c: getattr(c, search.measure))
    polished, curves = search.timed("polish", lambda: _polished(search, start, work, track))
    finalists = [*presets[: settings.finalists], *tried, *polished]
    search.timed("finalists", lambda: _judge(search, finalists, track))
    best = min(finalists, key=lambda c: getattr(c, search.measure))
    known = min(finalists[: settings.finalists], key=lambda c: getattr(c, search.measure))
    record = {
        **_facts(search),
        "trials": {**studies.counts(study), "seeded": len(seeds)},
        "history": studies.history(study),
        "importance": studies.importance(study),
        "start": start.name,
        "polish": curves,
        "finalists": [
            {"name": c.name, "hash": c.plan.hash, "error": c.error, "fd": None if math.isnan(c.fd) else c.fd}
            for c in finalists
        ],
        "winner": best.name,
        "best_preset": known.name,
        "network_calls": {**search.calls, "trials": studies.network_calls(study)},
        "seconds": {tier: round(value, 1) for tier, value in search.seconds.items()},
    }
    neighbours = [Neighbour(f"nfe{space.nfe}.{name}", space.nfe, d) for name, d in best_trials[:1]]
    return Found(_signed(search, best), record, studies.trials_frame(study), neighbours)


def _facts(search: Search) -> dict[str, Any]:
    """What a record says before anything is found."""
    model, teacher = search.task.model, search.teacher
    return {
        "schema": SCHEMA,
        "nfe": search.space.nfe,
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "guidance": search.task.guidance,
        "teacher": {"plan": teacher.plan.name, "nfe": teacher.plan.nfe},
        "settings": search.settings.model_dump(mode="json"),
        "seeds": search.seeds.as_json(),
        "error_in": search.extractor.id if search.extractor else "latents" if model.decode else "pixels",
        "measure": search.measure,
    }


def _identity(search: Search) -> dict[str, Any]:
    space = search.space
    settings = search.settings
    return {
        "model": search.task.model.fingerprint,
        "schedule": space.schedule.config(),
        "guidance": search.task.guidance,
        "space": [space.nfe, space.to_zero, space.max_order, space.analytic],
        "teacher": search.teacher.plan.hash,
        "noises": [settings.seed, settings.trial_noises],
        "error_in": None if search.extractor is None else search.extractor.protocol,
        "sampler": settings.sampler,
    }


def _best_known(search: Search, track: Track) -> list[Candidate]:
    """The best presets, by a first look at few noises and a second one at more."""
    few = _ranked(search, search.known(), search.teacher.validation[:PART], track)[:SECOND_LOOK]
    return _looked_at(search, few, track)[:KNOWN]


def _looked_at(search: Search, candidates: Sequence[Candidate], track: Track) -> list[Candidate]:
    """Best first, by what the winner will be judged by."""
    if search.reference is None:
        return _ranked(search, candidates, search.teacher.validation, track)
    seeds = search.seeds.validation[:LOOK_IMAGES]
    return _ordered("fd", candidates, lambda plan: search.distance(plan, seeds), search, track)


def _ranked(
    search: Search, candidates: Sequence[Candidate], seeds: Sequence[int], track: Track
) -> list[Candidate]:
    """Best first, by their error."""
    return _ordered("error", candidates, lambda plan: search.error(plan, seeds), search, track)


def _ordered(
    measure: str,
    candidates: Sequence[Candidate],
    of: Callable[[Plan], float],
    search: Search,
    track: Track,
) -> list[Candidate]:
    """Those whose state stays finite, measured, best first."""
    found = []
    for i in track(f"compare nfe{search.space.nfe}", unit="plan")(range(len(candidates))):
        try:
            one = replace(candidates[i])
            setattr(one, measure, of(one.plan))
        except DataError:
            continue
        found.append(one)
    return sorted((c for c in found if math.isfinite(getattr(c, measure))), key=lambda c: getattr(c, measure))


def _seeds(
    space: Space, presets: Sequence[Candidate], neighbours: Sequence[Neighbour]
) -> list[tuple[str, Decisions]]:
    """The presets that are points of the space, best first, and plans of one call more or less made to fit."""
    known = [(c.name, space.decisions(c.plan)) for c in presets]
    for other in neighbours:
        by = space.nfe - other.nfe
        if abs(by) == 1:
            for step in range(other.nfe):
                made = completed(space, resized(other.decisions, step, by))
                known.append((f"{other.name}.{'with' if by > 0 else 'without'}-step-{step}", made))
    return [(name, decisions) for name, decisions in known if decisions is not None]


def _polished(
    search: Search, start: Candidate, work: Path, track: Track
) -> tuple[list[Candidate], dict[str, list[dict[str, float]]]]:
    """The start polished on trajectories, and that one polished on the distance between sets of images."""
    settings, seeds = search.settings, search.seeds
    free = FreePlan(start.plan, search.space.schedule)
    candidates: list[Candidate] = []
    curves: dict[str, list[dict[str, float]]] = {}

    def tier(
        name: str,
        gradient: Gradient,
        of: Callable[[int], Sequence[int]],
        judge: Callable[[Plan], float],
        n: int,
        lr: float,
        checks: int,
    ) -> None:
        if n == 0:
            return
        file = work / f"{name}.json"
        from_here = sha256_text(
            canonical_json([_identity(search), settings.model_dump(mode="json"), free.plan().hash])
        )
        left = read_json(file) if file.exists() else {}
        if left.get("from") == from_here:
            free.load_numbers(left["numbers"])
        else:
            points = polish(
                free,
                gradient,
                of,
                judge,
                iterations=n,
                lr=lr,
                checks=checks,
                progress=track(f"polish {name} nfe{search.space.nfe}", unit="step"),
            )
            left = {
                "from": from_here,
                "numbers": free.numbers_now(),
                "curve": [vars(p) for p in points if math.isfinite(p.validation)],
            }
            write_json(file, left)
        curves[name] = left["curve"]
        candidates.append(Candidate(f"polished.{name}", free.plan()))

    noises, size = search.teacher.seeds, min(settings.polish_noises, len(search.teacher.seeds))
    tier(
        "trajectory",
        trajectory_gradient(search.task, search.distances),
        lambda i: noises[(start := i * size % (len(noises) - size + 1)) : start + size],
        search.error,
        settings.polish_iterations,
        settings.polish_lr,
        checks=6,
    )
    if search.reference is not None and search.extractor is not None:
        n = settings.frechet_images
        judged: dict[str, float] = {}

        def judge(plan: Plan) -> float:
            # the distance of as few images as a step has is too noisy to see what the steps have gained
            if plan.hash not in judged:  # where the steps start is asked for twice
                judged[plan.hash] = search.distance(plan, seeds.validation[: settings.finalist_images])
            return judged[plan.hash]

        # fine solutions need not be nearer to the images than a known solver of some calls
        unmoved = FreePlan(start.plan, search.space.schedule)
        if settings.frechet_iterations and judge(unmoved.plan()) < judge(free.plan()):
            free = unmoved
        tier(
            "frechet",
            frechet_gradient(search.task, FrechetLoss(search.reference.statistics), search.extractor.of_unit),
            lambda i: seeds.polish[i * n : (i + 1) * n],
            judge,
            settings.frechet_iterations,
            settings.frechet_lr,
            checks=1,  # the distance of few images is too noisy to choose the best of many by
        )
    return candidates, curves


def _judge(search: Search, finalists: Sequence[Candidate], track: Track) -> None:
    for i in track(f"finalists nfe{search.space.nfe}", unit="plan")(range(len(finalists))):
        finalist = finalists[i]
        finalist.error = search.error(finalist.plan)
        if search.reference is not None:
            finalist.fd = search.distance(finalist.plan, search.seeds.finalists)


def _signed(search: Search, best: Candidate) -> Plan:
    """The winner with its name, the model it is for, and where it came from."""
    model = search.task.model
    return replace(
        best.plan,
        name=f"searched.nfe{search.space.nfe}",
        fingerprint=model.fingerprint,
        guidance=None if search.task.guidance == 1.0 else search.task.guidance,
        provenance={
            "sampler": "searched",
            "grid": "free",
            "found": best.name,
            "seeds": search.seeds.as_json(),
            "objective": {
                "name": "trajectory" if search.reference is None else "frechet",
                "extractor": None if search.extractor is None else search.extractor.id,
                "value": best.error if search.reference is None else best.fd,
            },
        },
    )
