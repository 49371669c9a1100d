"""The search for the width of each step of a plan, and the plans of its front; the choice has seeds of its own.

1. Search: distance to the full network's images of the same noises, against cost. One width everywhere, a greedy
   descent and the front of additive estimates are where an Optuna study of two objectives starts from.
2. Baseline: the found plans with their widths in random order, which cost the same.
3. Choice: plans spread over the front are compared on seeds that nothing saw before, where there is a reference.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pandas as pd
import torch

from fewstep.checks import ConfigError
from fewstep.methods.ddsm.cost import total_cost
from fewstep.methods.ddsm.stage.width_search import INITIAL, ORIGINS, Evaluated, WidthSearch
from fewstep.methods.ddsm.widths import (
    Widths,
    additive_front,
    greedy_path,
    sensitivities,
    uniform,
    with_widths,
)
from fewstep.pareto import hypervolume, pareto, spread
from fewstep.pipeline import trials as studies
from fewstep.pipeline.conditions import rows_used
from fewstep.progress import Track, noted
from fewstep.rng import generator
from fewstep.sampling.plan import Plan

RANDOM = 3  # orders of the widths of each found plan
DRAWS = 20  # for so many that were not evaluated before

Bar = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class FoundWidths:
    """What a search has to say.

    Attributes:
        plans: Pareto-optimal ones, by decreasing cost.
        frame: all that was evaluated.
        record: evaluations, failures, the area that the front dominates, and how many times the front's error plans of
            one width, and random ones, have at the same cost.
    """

    plans: list[Plan]
    frame: pd.DataFrame
    record: dict[str, Any]


def run_width_search(search: WidthSearch, *, storage: str, track: Track) -> FoundWidths:
    """Search, or resume a search that was interrupted.

    Args:
        search: what to do.
        storage: of the study, see `fewstep.pipeline.trials.open_study`.
        track: makes progress bars.

    Raises:
        ConfigError: as in `WidthSearch`, or the storage is of another search. DataError: the full plan itself fails.
    """
    name = search.plan.name or "plan"

    def bar(what: str) -> Bar:
        return noted(track(f"{what} {name}", unit="plan"), search.note)

    search.evaluated.setdefault((0,) * search.n, Evaluated("uniform", 0.0))
    for widths in uniform(search.n, search.k):
        search.error(widths, "uniform")
    _estimated(search, bar)
    _evolved(search, storage, bar("evolve"))
    _shuffled(search)
    chosen = _chosen(search)
    if search.reference is not None:
        for i in bar("choose")(range(len(chosen))):
            search.distance(chosen[i])
    plans = _plans(search, chosen)
    return FoundWidths([plan for _, plan in plans], _frame(search, plans), _record(search))


def _estimated(search: WidthSearch, bar: Callable[[str], Bar]) -> None:
    """Greedy descent, and the front of additive estimates."""
    costs = search.table.of_steps(search.plan)
    greedy_path(lambda widths: search.error(widths, "greedy"), costs, progress=bar("greedy"))
    # errors of single steps point in different directions: their squares add up
    S = sensitivities(lambda widths: search.error(widths, "additive") ** 2, search.n, search.k)
    front = additive_front(S, costs)
    few = spread([(search.share(widths), 0.0) for widths in front], search.settings.population)
    for i in bar("additive")(few):
        search.error(front[i], "additive")


def _evolved(search: WidthSearch, storage: str, progress: Bar) -> None:
    """NSGA-II from the plans of one width and a spread of the front so far."""
    settings, whole = search.settings, uniform(search.n, search.k)
    known = [(f"uniform-{k}", widths) for k, widths in enumerate(whole)]
    front = [widths for widths in search.front(INITIAL) if widths not in whole]
    few = spread([(search.share(widths), 0.0) for widths in front], max(settings.population - len(known), 0))
    known += [(f"{search.evaluated[front[i]].origin}-{i}", front[i]) for i in few]

    def measure(widths: Widths) -> tuple[float, float]:
        error = search.error(widths, "nsga2")
        if not math.isfinite(error):
            raise studies.Disqualified("The state must stay finite.")
        return search.share(widths), error

    identity = search.identity() | {"evolution": [settings.population, settings.seed]}
    study = studies.open_study(storage, "widths", identity, objectives=2)
    studies.evolve(
        study,
        measure,
        genes=search.n,
        levels=search.k,
        known=known[: settings.population],
        population=settings.population,
        generations=settings.generations,
        seed=settings.seed,
        network_calls=lambda: search.task.calls,
        progress=progress,
    )


def _shuffled(search: WidthSearch) -> None:
    """The baseline: found plans with their widths in random order."""
    before = {widths for widths, one in search.evaluated.items() if one.origin != "random"}
    for i, widths in enumerate(_chosen(search, ORIGINS[:-1])):
        rng = generator(search.settings.seed, "random", i)
        orders = (tuple(widths[j] for j in torch.randperm(search.n, generator=rng)) for _ in range(DRAWS))
        new = [order for order in dict.fromkeys(orders) if order not in before][:RANDOM]
        before.update(new)
        for order in new:
            search.error(order, "random")


def _chosen(search: WidthSearch, origins: Sequence[str] = ORIGINS) -> list[Widths]:
    """Plans spread over the front, and all of one width that work: by decreasing cost."""
    whole = [w for w in uniform(search.n, search.k) if math.isfinite(search.evaluated[w].error)]
    front = [widths for widths in search.front(origins) if widths not in whole]
    few = spread([(search.share(widths), 0.0) for widths in front], search.settings.front_plans)
    return sorted([*whole, *(front[i] for i in few)], key=search.share, reverse=True)


def _plans(search: WidthSearch, chosen: Sequence[Widths]) -> list[tuple[Widths, Plan]]:
    """The Pareto-optimal ones in cost and what they are judged by, as plans: by decreasing cost."""
    judged = [search.evaluated[w].error if search.reference is None else search.distance(w) for w in chosen]
    kept = pareto([(search.share(w), value) for w, value in zip(chosen, judged, strict=True)])
    found = [(chosen[i], _signed(search, chosen[i])) for i in kept]
    # of two with one name, whose costs agree to a percent, the more expensive is the better one
    return list({plan.name: (widths, plan) for widths, plan in found}.values())[::-1]


def _signed(search: WidthSearch, widths: Widths) -> Plan:
    """The plan at some widths with its name, the model it is for, and where it came from."""
    parent, evaluated, share = search.plan, search.evaluated[widths], search.share(widths)
    cost = {
        "kind": search.table.kind,
        "share": share,
        "per_image": total_cost(widths, parent, search.table),
    }
    found = {"widths": list(widths), "cost": cost, "error": evaluated.error, "fd": evaluated.fd}
    return replace(
        with_widths(parent, widths),
        name=f"{parent.name}.w{round(100 * share):03d}",
        fingerprint=search.task.model.fingerprint,
        guidance=parent.guidance if search.task.guidance == 1.0 else search.task.guidance,
        provenance={
            **parent.provenance,
            "sampler": f"{parent.sampler}+widths",
            "grid": f"{parent.provenance.get('grid', 'own')} w{round(100 * share):03d}",
            "parents": [parent.hash],
            "stepaware": found,
            "seeds": {**parent.provenance.get("seeds", {}), **search.seeds.as_json()},
            **rows_used(search.task.model, search.seeds.as_json(), parent.provenance),
        },
    )


def _frame(search: WidthSearch, plans: Sequence[tuple[Widths, Plan]]) -> pd.DataFrame:
    """One row per evaluated plan, in the order of evaluation."""
    names = {widths: plan.name for widths, plan in plans}
    front = set(search.front())
    rows = [
        {
            "parent": search.plan.name,
            "name": names.get(widths, ""),
            "widths": ",".join(map(str, widths)),
            "cost_share": search.share(widths),
            "error": one.error if math.isfinite(one.error) else math.nan,
            "origin": one.origin,
            "on_front": widths in front,
            "fd": math.nan if one.fd is None else one.fd,
        }
        for widths, one in search.evaluated.items()
    ]
    return pd.DataFrame(rows)


def _record(search: WidthSearch) -> dict[str, Any]:
    points = {widths: (search.share(widths), one.error) for widths, one in search.evaluated.items()}
    worst = max(e for e in (points[w][1] for w in uniform(search.n, search.k)) if math.isfinite(e))
    return {
        "evaluations": len(points),
        "failed": sum(not math.isfinite(error) for _, error in points.values()),
        "hypervolume": hypervolume(list(points.values()), (1.0, worst)),
        "uniform": _times_the_front(search, "uniform"),
        "random": _times_the_front(search, "random"),
    }


def _times_the_front(search: WidthSearch, origin: str) -> float | None:
    """Median over plans of an origin of their error in units of the front's at their cost; None without such plans.

    That of least width has no other at its cost, and does not count.
    """
    least = (search.k - 1,) * search.n
    front = [(search.share(w), search.evaluated[w].error) for w in search.front()]
    ratios = []
    for widths, one in search.evaluated.items():
        best = min((error for cost, error in front if cost <= search.share(widths)), default=0.0)
        if one.origin == origin and widths != least and math.isfinite(one.error) and best > 0:
            ratios.append(one.error / best)
    return median(ratios) if ratios else None


def pick(plans: Sequence[Plan], budget: float) -> Plan:
    """The best plan with searched widths, of those of one parent, that costs no more than a share of the full network.
    Raises: ConfigError: no such plan, a plan without searched widths, or plans of several parents.
    """
    found = [plan.provenance.get("stepaware") for plan in plans]
    parents = {tuple(plan.provenance.get("parents", ())) for plan in plans}
    if not plans or not all(found) or len(parents) > 1:
        raise ConfigError(
            f"The plans to pick from must have searched widths and one parent; got {len(plans)} plans of "
            f"{len(parents)}, {sum(not one for one in found)} of them without such widths; name the folder and, with "
            "--plan, the parent."
        )
    shares = [plan.provenance["stepaware"]["cost"]["share"] for plan in plans]
    within = [plan for plan, share in zip(plans, shares, strict=True) if share <= budget]
    if not within:
        raise too_small(budget, min(shares))
    return min(within, key=_judged)


def too_small(budget: float, smallest: float) -> ConfigError:
    """What to raise where no plan is within a budget."""
    return ConfigError(
        f"The budget must be at least {smallest:.4g}, the share of the cheapest plan; got {budget:.4g}."
    )


def _judged(plan: Plan) -> float:
    """What a plan is picked by: its Fréchet distance, where it was measured, or its error."""
    found = plan.provenance["stepaware"]
    value: float = found["error"] if found["fd"] is None else found["fd"]
    return value
