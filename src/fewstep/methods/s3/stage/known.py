"""Where a search starts: known samplers, ranked by a look at few images, and plans of one network call more or less."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import Flow
from fewstep.methods.s3.space import Decisions, Space, completed, resized
from fewstep.methods.s3.stage.scoring import Candidate, Search
from fewstep.progress import Track
from fewstep.sampling.plan import Plan
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
    """The best known samplers, by a first look at few noises and a second one at more."""
    first_look = search.teacher.validation[: search.settings.look_noises]
    ranked = _ranked(search, known_samplers(search), "error", lambda p: search.error(p, first_look), track)
    return look(search, ranked[:SECOND_LOOK], track)[:KNOWN]


def look(search: Search, candidates: Sequence[Candidate], track: Track) -> list[Candidate]:
    """Best first, by what the winner is chosen by, on validation seeds."""
    if search.reference is None:
        return _ranked(search, candidates, "error", search.error, track)
    seeds = search.seeds["validation"][:LOOK_IMAGES]
    return _ranked(search, candidates, "fd", lambda plan: search.distance(plan, seeds), track)


def _ranked(
    search: Search, candidates: Sequence[Candidate], measure: str, of: Callable[[Plan], float], track: Track
) -> list[Candidate]:
    """Those whose state stays finite, measured, best first."""
    measured: list[tuple[float, Candidate]] = []
    for i in track(f"compare nfe{search.space.nfe}", unit="plan")(range(len(candidates))):
        try:
            value = of(candidates[i].plan)
        except DataError:
            continue
        if math.isfinite(value):
            measured.append((value, replace(candidates[i], **{measure: value})))
    return [candidate for _, candidate in sorted(measured, key=lambda pair: pair[0])]


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
