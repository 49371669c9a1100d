"""The polish of a search: all numbers of its best plan moved by gradients, in many small updates.

On the distance between sets of images where there is a reference, else on that to fine solutions, which no plan of few
calls can reach: those nearer to them are not nearer to the images.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.files import canonical_json, read_json, sha256_text, write_json
from fewstep.methods.s3.stage.scoring import Candidate, Search
from fewstep.metrics.loss import FrechetLoss
from fewstep.progress import Track
from fewstep.sampling.descent import Gradient, frechet_gradient, polish, trajectory_gradient
from fewstep.sampling.free import FreePlan
from fewstep.sampling.plan import Plan
from fewstep.sampling.task import Task

Curve = list[dict[str, Any]]
"""Iteration, loss and validation at each validation of a polish."""


class Polished(NamedTuple):
    """What a tier ends with: the plan's numbers, from which a next tier may start, the plan itself, and the curve."""

    free: FreePlan
    candidate: Candidate
    curve: Curve


@dataclass(frozen=True)
class Tier:
    """One descent from an initial plan; its end is kept in a file, from which a later start resumes.

    Attributes:
        name: of its file and its candidate.
        task: whose network calls are counted.
        gradient: of the loss.
        seeds: of the images of an iteration.
        judge: score on images that the gradient never sees, lower is better.
        iterations: gradient steps.
        lr: learning rate.
        checks: validations on the way.
        file: what it leaves for a later start.
        identity: all that it depends on beside the initial plan.
        progress: wraps the iterations.
    """

    name: str
    task: Task
    gradient: Gradient
    seeds: Callable[[int], Sequence[int]]
    judge: Callable[[Plan], float]
    iterations: int
    lr: float
    checks: int
    file: Path
    identity: Sequence[Any]
    progress: Callable[[Iterable[int]], Iterable[int]] = iter

    def run(self, initial: FreePlan) -> Polished:
        """Descend from an initial plan, which stays as it is, or read where an earlier start ended.

        The network calls of that one are added to the task's, so that a search counts the same however it was started.
        """
        free = copy.deepcopy(initial)
        key = sha256_text(canonical_json([*self.identity, initial.plan().hash]))
        kept = read_json(self.file) if self.file.exists() else {}
        if kept.get("from") == key and "network_calls" in kept:
            free.load_numbers(kept["numbers"])
            self.task.calls += kept["network_calls"]
        else:
            before = self.task.calls
            points = polish(
                free,
                self.gradient,
                self.seeds,
                self.judge,
                iterations=self.iterations,
                lr=self.lr,
                checks=self.checks,
                progress=self.progress,
            )
            curve = [vars(point) for point in points if math.isfinite(point.validation)]
            kept = {
                "from": key,
                "numbers": free.numbers_now(),
                "curve": curve,
                "network_calls": self.task.calls - before,
            }
            write_json(self.file, kept)
        candidate = Candidate(f"polished.{self.name}", free.plan(), (initial.origin.hash,))
        return Polished(free, candidate, kept["curve"])


def polished(
    search: Search, initial: Candidate, work: Path, track: Track
) -> tuple[list[Candidate], dict[str, Curve]]:
    """The initial plan polished: on the distance between sets of images, or without a reference on trajectories.

    Returns:
        A candidate for the tier, and its curve by the name of the tier; none where its iterations are 0.
    """
    settings = search.settings
    if search.reference is None:
        tiers = [_trajectory_tier(search, work, track)] if settings.polish_iterations else []
    else:
        tiers = [_frechet_tier(search, work, track)] if settings.frechet_iterations else []
    ends = {tier.name: tier.run(FreePlan(initial.plan, search.space.schedule)) for tier in tiers}
    return [end.candidate for end in ends.values()], {name: end.curve for name, end in ends.items()}


def _trajectory_tier(search: Search, work: Path, track: Track) -> Tier:
    settings, noises = search.settings, search.teacher.seeds
    size = min(settings.polish_noises, len(noises))

    def seeds(i: int) -> Sequence[int]:
        first = i * size % (len(noises) - size + 1)
        return noises[first : first + size]

    return Tier(
        "trajectory",
        search.task,
        trajectory_gradient(search.task, search.distances),
        seeds,
        search.error,
        settings.polish_iterations,
        settings.polish_lr,
        checks=6,
        **_place("trajectory", search, work, track),
    )


def _frechet_tier(search: Search, work: Path, track: Track) -> Tier:
    assert search.reference is not None and search.extractor is not None
    settings, n = search.settings, search.settings.frechet_images
    # the distance of as few images as an update has is too noisy to see what the updates have gained
    validation = search.seeds["validation"][: settings.finalist_images]
    return Tier(
        "frechet",
        search.task,
        frechet_gradient(
            search.task,
            FrechetLoss(search.reference.statistics),
            search.extractor.of_unit,
            before=search.seeds["memory"],
        ),
        lambda i: search.seeds["polish"][i * n : (i + 1) * n],
        lambda plan: search.distance(plan, validation),
        settings.frechet_iterations,
        settings.frechet_lr,
        checks=1,  # the distance of few images is too noisy to choose the best of many by
        **_place("frechet", search, work, track),
    )


def _place(name: str, search: Search, work: Path, track: Track) -> dict[str, Any]:
    """File, identity and progress bar of a tier."""
    return {
        "file": work / f"{name}.json",
        "identity": [search.identity(), search.settings.result_settings()],
        "progress": track(f"polish {name} nfe{search.space.nfe}", unit="step"),
    }
