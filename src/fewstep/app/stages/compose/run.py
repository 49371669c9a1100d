"""The last comparison: all plans that were made for the model, by quality and time on images of their own.

A plan is as good as the target, many steps of DDIM, where that was shown: the interval of the paired difference of
their distances, at a level corrected for the number of plans, ends below the margin. Of several such plans the choice
must not hang on how busy the machine happened to be. Those than which another one is faster in every round of timing
are left out. The rest cannot be ordered by the clock, so what does not depend on it decides: the fewest multiply-adds
(`full_calls`), then the least distance, then the hash. Where no plan was shown to be as good, none is chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from fewstep.app.settings import ComposeSettings
from fewstep.app.stages.compose.record import Protocol
from fewstep.app.stages.compose.timing import Seconds, not_slower, speeds, timed
from fewstep.checks import ConfigError
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.non_inferiority import Measured, non_inferior
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
from fewstep.sampling.work import full_calls

TARGET = "ddim"
TARGET_GRID = "uniform-t"
LEVEL = 0.95


@dataclass(frozen=True)
class Composed:
    """Every plan that was compared, with its name and its provenance, and the table of the comparison.

    Attributes:
        plans: one per row of the table but the target's.
        table: columns plan, hash, nfe, sampler, widths, moved (calls with another conditioning timestep or scaled
            noise), full_calls (calls at full width that take as many multiply-adds), fd, fd_low, fd_high, difference
            (FD less the target's), difference_low, difference_high (at the corrected level), margin (in units of FD),
            non_inferior (whether the difference's interval ends below the margin), ms (of the whole sampler on one
            image, the median of all rounds), speed (the target's time over the plan's, the median of all rounds),
            speed_low, speed_high (the range of the rounds), on_front (Pareto-optimal by fd and ms), winner (whether it
            was chosen: one row at most); the first row is the target.
        protocol: how the plans were compared.
    """

    plans: Sequence[Plan]
    table: pd.DataFrame
    protocol: Protocol


def compose(
    task: Task,
    candidates: Sequence[Plan],
    reference: Reference,
    extractor: Extractor,
    settings: ComposeSettings,
    *,
    track: Track,
) -> Composed:
    """Compare plans on unseen seeds, and choose the fastest of those shown to be as good as many steps of DDIM.

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
    every = [target, *plans]
    distances = [
        _distance(task, plan, seeds, reference, extractor) for plan in track("compose", unit="plan")(every)
    ]
    seconds, machine = timed(task, every, seeds[: settings.batch_size], settings.rounds)
    batch = min(settings.batch_size, settings.images)
    table = pd.DataFrame(
        {
            **facts(plan),
            "full_calls": full_calls(plan, task.model.widths),
            **_compared(distance, distances[0], settings.margin, len(plans)),
            "ms": 1000 * float(np.median(own)) / batch,
            **{"speed": speed, "speed_low": low, "speed_high": high},
        }
        for plan, distance, own, (speed, (low, high)) in zip(
            every, distances, seconds.T, speeds(seconds), strict=True
        )
    )
    front = pareto(list(zip(table["ms"].tolist(), table["fd"].tolist(), strict=True)))
    table["on_front"] = [i in front for i in range(len(table))]
    chosen = choice(table, seconds)
    table["winner"] = [i == chosen for i in range(len(table))]
    block = {"compose": [seeds[0], seeds[-1]]}
    signed = [
        _signed(task, p, row, block) for p, row in zip(plans, table.iloc[1:].to_dict("records"), strict=True)
    ]
    protocol = Protocol(
        margin=settings.margin,
        level=LEVEL,
        comparisons=len(plans),
        seeds=(seeds[0], seeds[-1]),
        rounds=settings.rounds,
        machine=machine,
    )
    return Composed(signed, table, protocol)


def choice(table: pd.DataFrame, seconds: Seconds) -> int | None:
    """Position of the chosen row; None where no plan but the target, the first, is non-inferior.

    Of the non-inferior plans, those than which no other of them is faster in every round; of these the one with the
    fewest multiply-adds, then the least distance, then the first hash. So times that do not distinguish plans decide
    nothing.
    """
    good = [i for i in range(1, len(table)) if table["non_inferior"].iloc[i]]
    if not good:
        return None
    fast = [good[k] for k in not_slower(seconds[:, good])]
    return min(fast, key=lambda i: tuple(table[["full_calls", "fd", "hash"]].iloc[i]))


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
) -> Measured:
    features = features_of(task, plan, seeds, extractor)
    value = frechet(Statistics.from_features(features), reference.statistics).value
    return Measured(value, half_samples(features, reference.statistics))


def _compared(distance: Measured, target: Measured, margin: float, comparisons: int) -> dict[str, Any]:
    low, high = normal_interval(distance.value, spread(distance.replicates), LEVEL)
    verdict = non_inferior(distance, target, margin, level=LEVEL, comparisons=comparisons)
    return {
        **{"fd": distance.value, "fd_low": low, "fd_high": high},
        "difference": verdict.difference.value,
        "difference_low": verdict.difference.interval.low,
        "difference_high": verdict.difference.interval.high,
        "margin": verdict.margin,
        "non_inferior": verdict.holds,
    }


def _signed(task: Task, plan: Plan, row: dict[str, Any], block: dict[str, list[int]]) -> Plan:
    said = {
        key: row[key]
        for key in ("fd", "difference", "non_inferior", "ms", "on_front", "winner")
        if not _is_nan(row[key])
    }
    seeds = {**plan.provenance.get("seeds", {}), **block}
    rows = rows_used(task.model, block, plan.provenance)
    return replace(plan, provenance={**plan.provenance, "seeds": seeds, **rows, "composed": said})


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
