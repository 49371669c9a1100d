"""Search plans for a model with the core alone: known samplers, evolution of structure, polish by gradients, finalists.

    PYTHONPATH=src python benchmarks/gpu/search.py --model zoo/cifar10-32-base --reference cifar10-jpeg \
        --nfe 5 10 4 6 8 3 --seconds 530 --out $OUT

As `fewstep search`, whose space, evolution, losses and descent these are, but for its study (which needs Optuna):
trials are scored by the Fréchet distance of few images, and time ends each phase, not a number of trials. A number of
calls that is finished is not searched again. TF32 is on: what a plan is worth is measured afterwards, in measure.py.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import common
import torch
from common import Lease

from fewstep.checks import ConfigError, DataError
from fewstep.files import read_json, write_json
from fewstep.methods.s3.evolution import propose
from fewstep.methods.s3.space import Decisions, Space
from fewstep.methods.s3.teacher import Teacher, make_teacher
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.loss import FrechetLoss
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.pipeline.measure import features_of
from fewstep.pipeline.seeds import SeedBlocks
from fewstep.rng import generator
from fewstep.sampling.descent import frechet_gradient, polish, trajectory_gradient
from fewstep.sampling.document import save_plan
from fewstep.sampling.free import FreePlan
from fewstep.sampling.linear import linear_form
from fewstep.sampling.plan import Plan
from fewstep.sampling.presets import ANALYTIC, PRESETS, Grid, analytical
from fewstep.sampling.task import Task, distances

GRIDS = ("uniform-t", "uniform-lambda", "quadratic-t", "karras")
SEED = 1_000_000_000
SHARES = {"known": 0.2, "trials": 0.2, "trajectory": 0.15, "frechet": 0.45}
"""Of the time of one number of calls."""
MOST_ITERATIONS = 100_000
LEAST = 2
"""Of each phase, however little time there is."""


@dataclass
class Candidate:
    """A plan that may win, and its Fréchet distance on the images of the last comparison."""

    name: str
    plan: Plan
    fd: float = math.nan


@dataclass
class Search:
    """One number of calls: what plans are measured against, and until when.

    Attributes:
        ends: seconds that the lease has left when this search must be over.
        gradients: the task with smaller batches, as a gradient keeps what all calls have computed.
        images: of a comparison of plans.
        batch: images of a gradient step.
    """

    task: Task
    gradients: Task
    teacher: Teacher
    space: Space
    seeds: SeedBlocks
    reference: Reference
    extractor: Extractor
    lease: Lease
    ends: float
    images: int
    batch: int

    def __post_init__(self) -> None:
        self.begins = self.lease.left

    def end_of(self, phase: str) -> float:
        """Seconds that the lease has left when a phase must be over."""
        names = list(SHARES)
        share = sum(SHARES[name] for name in names[: names.index(phase) + 1])
        return self.begins - 0.9 * share * (self.begins - self.ends)

    def until(self, phase: str) -> Callable[[Iterable[int]], Iterator[int]]:
        """What ends an iteration with a phase."""
        return self.lease.until(self.end_of(phase), least=LEAST)

    def fd(self, plan: Plan, purpose: str, n: int) -> float:
        """Fréchet distance of n images; infinite for a plan that cannot be sampled."""
        try:
            found = features_of(self.task, plan, self.seeds[purpose][:n], self.extractor)
            value = frechet(Statistics.from_features(found), self.reference.statistics).value
        except (ConfigError, DataError):
            return math.inf
        return value if math.isfinite(value) else math.inf

    def ranked(self, candidates: Iterable[Candidate], purpose: str, n: int) -> list[Candidate]:
        """Measured, best first."""
        measured = [replace(c, fd=self.fd(c.plan, purpose, n)) for c in candidates]
        return sorted((c for c in measured if math.isfinite(c.fd)), key=lambda c: c.fd)

    def known(self) -> Iterator[Candidate]:
        """Every preset on every grid, with and without an analytical first step; the usual ones first."""
        seen: set[str] = set()
        order = sorted(
            PRESETS, key=lambda name: name not in ("unipc-2", "dpmpp-2m", "unipc-3", "dpmpp-2m-taylor")
        )
        for name, ending in product(order, ("", ANALYTIC)):
            gits: Grid = self.teacher.grid(self.space.nfe + bool(ending), to_zero=True)
            for label, grid in (*((g, g) for g in GRIDS), ("gits", gits)):
                make = partial(analytical, PRESETS[name]) if ending else PRESETS[name]
                try:
                    plan = make(self.space.schedule, self.space.nfe, grid=grid, to_zero=True)
                except ConfigError:  # not every preset can make every number of calls
                    continue
                if plan.nfe == self.space.nfe and not plan.stochastic and plan.hash not in seen:
                    seen.add(plan.hash)
                    yield Candidate(f"{name}.{label}{ending}", plan)

    def trials(self, known: Sequence[Candidate]) -> list[Candidate]:
        """Evolution from the known samplers that are points of the space, until its time is over."""
        population: list[tuple[Decisions, float]] = [
            (decisions, c.fd) for c in known if (decisions := self.space.decisions(c.plan)) is not None
        ]
        found: list[Candidate] = []
        for k in self.until("trials")(range(MOST_ITERATIONS)):
            try:
                decisions = propose(self.space, population, rng=generator(SEED, "trial", self.space.nfe, k))
                plan = self.space.build(lambda name, allowed, made=decisions: made[name])
            except ConfigError:
                continue
            value = self.fd(plan, "trials", self.images)
            if math.isfinite(value):
                population.append((decisions, value))
                found.append(Candidate(f"trial-{k}", plan, value))
        return sorted(found, key=lambda c: c.fd)

    def polished(self, initial: Candidate) -> list[Candidate]:
        """All numbers of the plan moved: towards fine solutions, then towards the reference images."""
        free, ends = FreePlan(initial.plan, self.space.schedule), []
        with torch.no_grad():
            parts = torch.split(self.teacher.x0, self.task.batch_size)
            fine = torch.cat([self.extractor.of_unit(self.task.images(part)) for part in parts])
        noises = self.teacher.seeds
        size = min(64, len(noises))

        def distance(x0: Any, seeds: Sequence[int]) -> Any:
            rows = slice(seeds[0] - noises[0], seeds[-1] - noises[0] + 1)
            return distances(self.extractor.of_unit(self.task.images(x0)), fine[rows])

        phases = (
            ("trajectory", trajectory_gradient(self.gradients, distance), noises, size, 0.03),
            (
                "frechet",
                frechet_gradient(
                    self.gradients, FrechetLoss(self.reference.statistics), self.extractor.of_unit
                ),
                self.seeds["polish"],
                self.batch,
                0.01,
            ),
        )
        for phase, gradient, block, n, lr in phases:

            def seeds(i: int, block: Sequence[int] = block, n: int = n) -> Sequence[int]:
                first = i * n % (len(block) - n + 1)
                return block[first : first + n]

            steps = self.steps_in(phase, partial(gradient_once, free, gradient, seeds(0)))
            points = polish(
                free,
                gradient,
                seeds,
                lambda plan: self.fd(plan, "validation", 4 * self.images),
                iterations=steps,
                lr=lr,
                checks=3,
                progress=self.until(phase),
            )
            ends.append(Candidate(f"polished.{phase}", free.plan()))
            self.lease.say(
                f"  {phase}: {steps} steps, {points[0].validation:.4g} -> {min(p.validation for p in points):.4g}"
            )
        return ends

    def steps_in(self, phase: str, once: Any) -> int:
        """How many iterations fit into what is left of a phase: the learning rate falls to 0 at its end."""
        once()  # kernels are chosen
        before = self.lease.left
        once()
        each = max(before - self.lease.left, 1e-4)
        return max(LEAST, int(0.7 * (self.lease.left - self.end_of(phase)) / each))


def gradient_once(free: FreePlan, gradient: Any, seeds: Sequence[int]) -> None:
    """One gradient that moves nothing, for its time."""
    values = free.values()
    leaves = type(values)(*(number.detach().requires_grad_(number.requires_grad) for number in values))
    gradient(free.form, leaves, seeds)


def search(work: Search, finals: int) -> tuple[Plan, dict[str, Any]]:
    """The best plan that is found, and the record of how."""
    lease, n, nfe = work.lease, work.images, work.space.nfe
    known: list[Candidate] = []
    candidates = list(work.known())
    for i in work.until("known")(range(len(candidates))):
        known += work.ranked([candidates[i]], "trials", n)
    if not known:
        raise ConfigError(f"The time must suffice for one known sampler of {nfe} calls; give more --seconds.")
    known.sort(key=lambda c: c.fd)
    lease.say(
        f"nfe {nfe}: {len(known)} of {len(candidates)} known samplers, best {known[0].name} {known[0].fd:.4g}"
    )
    tried = work.trials(known)
    lease.say(f"nfe {nfe}: {len(tried)} trials, best {tried[0].fd if tried else math.nan:.4g}")
    best = work.ranked([*known[:finals], *tried[:finals]], "validation", 4 * n)
    start = next((c for c in best if can_be_polished(c.plan, work.space)), None)
    polished = [] if start is None else work.polished(start)
    finalists = work.ranked([*known[:finals], *tried[:finals], *polished], "finalists", 4 * n)
    winner, of_known = (
        finalists[0],
        min(c.fd for c in finalists if c.name in {k.name for k in known[:finals]}),
    )
    lease.say(
        f"nfe {nfe}: {winner.name}, {winner.fd:.4g}; best known {of_known:.4g}, ratio {winner.fd / of_known:.2f}"
    )
    model = work.task.model
    plan = replace(
        winner.plan,
        name=f"searched.nfe{nfe}",
        fingerprint=model.fingerprint,
        provenance={
            "sampler": "searched",
            "grid": "free",
            "found": winner.name,
            "seeds": work.seeds.as_json(),
            "objective": {"name": "frechet", "extractor": work.extractor.id, "value": winner.fd},
        },
    )
    record = {
        "nfe": nfe,
        "known": [{"name": c.name, "fd": c.fd} for c in known[:20]],
        "known_samplers": [len(known), len(candidates)],
        "trials": len(tried),
        "finalists": [{"name": c.name, "hash": c.plan.hash, "fd": c.fd} for c in finalists],
        "start": None if start is None else start.name,
        "ratio_to_known": winner.fd / of_known,
        "seconds": round(work.begins - lease.left, 1),
    }
    return plan, record


def can_be_polished(plan: Plan, space: Space) -> bool:
    """Not with an implicit corrector, which evaluates a node twice."""
    return len(plan.nodes) - 1 == len(linear_form(plan, space.schedule))


def main(arguments: list[str] | None = None) -> None:
    made = common.with_data(common.parser(__doc__))
    made.add_argument("--model", type=Path, required=True, help="model folder, or its name in the zoo")
    made.add_argument("--nfe", type=int, nargs="+", default=[5, 10, 4, 6, 8, 3])
    made.add_argument(
        "--images", type=int, default=512, help="of a comparison; the final one has four times as many"
    )
    made.add_argument("--gradient-images", type=int, default=1024, help="of a gradient step")
    made.add_argument("--noises", type=int, default=256, help="fine solutions")
    made.add_argument("--teacher-nfe", type=int, default=100)
    made.add_argument("--batch", type=int, default=512)
    made.add_argument(
        "--gradient-batch", type=int, default=96, help="images at once where gradients are kept"
    )
    options = made.parse_args(arguments)
    lease = Lease.of(options, exact=False)
    task = common.task_of(options.model, lease, batch_size=options.batch)
    gradients = Task(task.model, batch_size=options.gradient_batch)
    reference, extractor = common.judge(lease, options)
    n, steps = options.images, options.gradient_images
    sizes = {"trials": max(n, options.noises), "validation": 4 * n, "finalists": 4 * n, "polish": 200 * steps}
    seeds = SeedBlocks(SEED, sizes)
    left = [nfe for nfe in options.nfe if not (lease.work / f"searched.nfe{nfe}.json").exists()]
    noises = seeds["trials"][: options.noises]
    validation = seeds["validation"][: options.noises]
    teacher = make_teacher(task, noises, validation, nfe=options.teacher_nfe, to_zero=True) if left else None
    lease.say(f"fine solutions of {options.noises} noises")
    for k, nfe in enumerate(left):
        assert teacher is not None
        share = (lease.left - 0.04 * lease.seconds) / (len(left) - k)
        if k and share < 0.02 * lease.seconds:
            break
        space = Space(task.model.schedule, nfe)
        ends = lease.left - share
        plan, record = search(
            Search(task, gradients, teacher, space, seeds, reference, extractor, lease, ends, n, steps), 2
        )
        write_json(lease.work / f"search.nfe{nfe}.json", record)
        save_plan(plan, lease.work / f"searched.nfe{nfe}.json")
    plans = sorted(lease.work.glob("searched.nfe*.json"))
    common.bring_back(lease, plans[: common.MOST_FILES - 1])
    records = [read_json(path) for path in sorted(lease.work.glob("search.nfe*.json"))]
    protocol = {"reference": reference.protocol, "extractor": extractor.protocol}
    model = {"name": task.model.name, "fingerprint": task.model.fingerprint}
    common.record(lease, "search.json", {"model": model, "protocol": protocol, "searches": records})


if __name__ == "__main__":
    common.run(main)
