"""Where a search starts: known samplers, ranked by a look at few images, and plans of one network call more or less."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import Flow
from fewstep.methods.s3.space import Decisions, Space, completed, resized
from fewstep.methods.s3.stage.race import race
from fewstep.methods.s3.stage.scoring import Candidate, Search
from fewstep.progress import Track
from fewstep.sampling.presets import ANALYTIC, PRESETS, Grid, analytical

GRIDS = ("uniform-t", "uniform-lambda", "quadratic-t", "karras")
SHIFTS = (1.0, 1.7, 3.0)  # of pipelines: none, AuraFlow's and Flux' at 512 pixels, SD3's and Flux' at 1024
SECOND_LOOK = 30  # presets that get one
LOOK_IMAGES = 128  # of it: where there is a reference, the distance between sets ranks well with so few
KNOWN = 12  # presets that are the first trials


@dataclass(frozen=True)
class Neighbour:
    """The best decisions of a search for another number of network calls."""

    name: str
    nfe: int
    decisions: Decisions


def known_samplers(search: Search) -> list[Candidate]:
    """Every preset on every grid, the dynamic-programming grid among them, that makes `nfe` calls.

    Where the space has an analytical first step, each of them with that, too: one step more for the same calls.
    """
    candidates: dict[str, Candidate] = {}
    space = search.space
    for ending in ("", ANALYTIC) if space.analytic else ("",):
        grids: dict[str, Grid] = {name: name for name in GRIDS}
        if isinstance(space.schedule, Flow):  # what its pipelines use, whose last call is not at t_min
            grids |= {f"shifted-{shift:g}": f"shifted:{shift:g}" for shift in SHIFTS}
        grids["gits"] = search.teacher.grid(space.nfe + bool(ending), to_zero=space.to_zero)
        for (preset, make), (grid, spacing) in product(PRESETS.items(), grids.items()):
            sampler = partial(analytical, make) if ending else make
            try:
                plan = sampler(space.schedule, space.nfe, grid=spacing, to_zero=space.to_zero)
            except ConfigError:  # not every preset can make every number of calls
                continue
            if plan.nfe == space.nfe and not plan.stochastic:
                candidates.setdefault(plan.hash, Candidate(f"{preset}.{grid}{ending}", plan, (plan.hash,)))
    return list(candidates.values())


def best_known(search: Search, track: Track) -> list[Candidate]:
    """The best known samplers, by a first look at few noises and a second one at more; both end early for the worst."""
    first_look = search.teacher.validation[: search.settings.look_noises]
    ranked = race(
        search, known_samplers(search), first_look, by="error", places=SECOND_LOOK, rounds=3,
        progress=_progress(search, track),
    )  # fmt: skip
    return look(search, ranked[:SECOND_LOOK], track, places=KNOWN)[:KNOWN]


def look(
    search: Search, candidates: Sequence[Candidate], track: Track, *, places: int | None = None
) -> list[Candidate]:
    """Best first, by what the winner is chosen by, on validation seeds.
    Args: places: how many of the best are wanted; None: all are measured to the end.
    """
    seeds = search.seeds["validation"][:LOOK_IMAGES]
    return race(
        search, candidates, search.teacher.validation if search.reference is None else seeds, by=search.measure,
        places=len(candidates) if places is None else places, rounds=3, progress=_progress(search, track),
    )  # fmt: skip


def _progress(search: Search, track: Track) -> Callable[[Iterable[int]], Iterable[int]]:
    return track(f"compare nfe{search.space.nfe}", unit="plan")


def first_decisions(
    space: Space, known: Sequence[Candidate], neighbours: Sequence[Neighbour]
) -> list[tuple[str, Decisions]]:
    """What the first trials decide: the known samplers that are points of the space, best first, then neighbours.

    Plans of one call more or less are shortened or lengthened at each of their steps.
    """
    decisions = [(candidate.name, space.decisions(candidate.plan)) for candidate in known]
    for other in neighbours:
        by = space.nfe - other.nfe
        if abs(by) == 1:
            decisions += [
                (
                    f"{other.name}.{'with' if by > 0 else 'without'}-step-{step}",
                    completed(space, resized(other.decisions, step, by)),
                )
                for step in range(other.nfe)
            ]
    return [(name, decided) for name, decided in decisions if decided is not None]
