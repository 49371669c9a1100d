"""The last comparison: all plans that were made for the model, by quality and time on images of their own."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pandas as pd

from fewstep.app.settings import ComposeSettings
from fewstep.checks import ConfigError
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import half_samples, normal_interval, spread
from fewstep.pareto import pareto
from fewstep.pipeline.conditions import identity_of, rows_used
from fewstep.pipeline.measure import features_of
from fewstep.pipeline.seeds import require_unseen, require_unseen_rows
from fewstep.progress import Track
from fewstep.sampling.plan import Plan, network_nodes, widths_of
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task

TARGET = "ddim"
TARGET_GRID = "uniform-t"


@dataclass(frozen=True)
class Composed:
    """Every plan that was compared, with its name and its provenance, and the table of the comparison.

    Attributes:
        plans: one per row of the table but the target's.
        table: columns plan, hash, nfe, sampler, widths, moved (calls with another conditioning timestep or scaled
            noise), fd, fd_low, fd_high, ms (of the whole sampler on one image), on_front, winner; the first row is the
            target.
    """

    plans: Sequence[Plan]
    table: pd.DataFrame


def compose(
    task: Task,
    candidates: Sequence[Plan],
    reference: Reference,
    extractor: Extractor,
    settings: ComposeSettings,
    *,
    track: Track,
) -> Composed:
    """Compare plans on unseen seeds; the winner is the fastest that is as good as many steps of DDIM.

    Where none is as good, it is the best.

    Raises:
        ConfigError: No candidate, or images of the comparison had a part in finding one.
    """
    different: dict[str, Plan] = {}
    for plan in candidates:
        different.setdefault(plan.hash, plan)
    plans = list(different.values())
    if not plans:
        raise ConfigError("There must be a plan to compare, got none; make one first.")
    seeds = range(settings.seed, settings.seed + settings.images)
    for plan in plans:
        require_unseen(plan, seeds)
        require_unseen_rows(plan, seeds, identity_of(task.model))
    target = PRESETS[TARGET](task.model.schedule, settings.target_nfe, grid=TARGET_GRID, to_zero=True)
    table = pd.DataFrame(
        {**facts(plan), **_distance(task, plan, seeds, reference, extractor)}
        for plan in track("compose", unit="plan")([target, *plans])
    )
    table["ms"] = _times(task, [target, *plans], seeds[: settings.batch_size], settings.rounds)
    front = pareto(list(zip(table["ms"].tolist(), table["fd"].tolist(), strict=True)))
    table["on_front"] = [i in front for i in range(len(table))]
    table["winner"] = [False, *_wins(table)]
    block = {"compose": [seeds[0], seeds[-1]]}
    return Composed(
        [
            _signed(task, p, row, block)
            for p, row in zip(plans, table.iloc[1:].to_dict("records"), strict=True)
        ],
        table,
    )


def facts(plan: Plan) -> dict[str, Any]:
    """What a table says of a plan: what was done to it, and to how many of its network calls."""
    calls = [plan.nodes[i] for i in network_nodes(plan)]
    return {
        "plan": plan.name,
        "hash": plan.hash,
        "nfe": plan.nfe,
        "sampler": plan.sampler,
        "widths": "".join(map(str, widths_of(plan))),
        "moved": sum(node.t_cond is not None or node.eps_scale != 1 for node in calls),
    }


def _distance(
    task: Task, plan: Plan, seeds: Sequence[int], reference: Reference, extractor: Extractor
) -> dict[str, float]:
    features = features_of(task, plan, seeds, extractor)
    value = frechet(Statistics.from_features(features), reference.statistics).value
    low, high = normal_interval(value, spread(half_samples(features, reference.statistics)))
    return {"fd": value, "fd_low": low, "fd_high": high}


def _times(task: Task, plans: Sequence[Plan], seeds: Sequence[int], rounds: int) -> list[float]:
    """Milliseconds per image; round by round over all plans, so that drift of the machine hits all alike."""
    seconds: list[list[float]] = [[] for _ in plans]
    for _ in range(rounds):
        for plan, own in zip(plans, seconds, strict=True):
            started = time.perf_counter()
            task.solve(plan, seeds)
            own.append(time.perf_counter() - started)
    return [1000 * median(own) / len(seeds) for own in seconds]


def _wins(table: pd.DataFrame) -> list[bool]:
    """Among all rows but the first, which is the target."""
    target, rows = table.iloc[0], table.iloc[1:]
    good = rows[rows["fd"] <= target["fd"]]
    best = good["ms"].idxmin() if len(good) else rows["fd"].idxmin()
    return [index == best for index in rows.index]


def _signed(task: Task, plan: Plan, row: dict[str, Any], block: dict[str, list[int]]) -> Plan:
    said = {key: row[key] for key in ("fd", "ms", "on_front", "winner") if not _is_nan(row[key])}
    seeds = {**plan.provenance.get("seeds", {}), **block}
    rows = rows_used(task.model, block, plan.provenance)
    return replace(plan, provenance={**plan.provenance, "seeds": seeds, **rows, "composed": said})


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
