"""A comparison in the words of a report: what was chosen, whether other seeds confirm it, how sure its times are."""

from collections.abc import Mapping
from typing import Any

from fewstep.app.stages.compose.record import Composition
from fewstep.metrics.non_inferiority import NonInferiority
from fewstep.pipeline.report.numbers import count, number
from fewstep.pipeline.report.results import Results, as_good
from fewstep.pipeline.report.words import describe, interval, ranged, within
from fewstep.pipeline.samples import parse_seeds


def sentences(composition: Composition, results: Results) -> list[str]:
    """What the report says; its own seeds confirm the choice, or do not."""
    target, chosen, allowed = composition.target, composition.chosen, within(composition.protocol.margin)
    goal, n = _named(target), composition.protocol.comparisons
    if chosen is None:
        best = composition.best
        said = [
            f"No plan was shown to be as good as {goal}, {allowed}, so none of the {n} is chosen. The best by FD is "
            f"{_made(best)}: difference {_difference(best)} on seeds of the comparison, where the margin is "
            f"{number(best['margin'])}.",
            *_distances(best, target, results),
        ]
    else:
        shown = int(composition.table["non_inferior"].iloc[1:].sum())
        were = "was" if shown == 1 else "were"
        rounds = composition.protocol.rounds
        ahead, of_time = (
            ("the one of these with the fewest multiply-adds", "once measured")
            if rounds == 1
            else (
                "than which none of these is faster in every round",
                f"the median and the range of {rounds} rounds",
            )
        )
        said = [
            f"Of {n} plans {shown} {were} shown to be as good as {goal}, {allowed}, on seeds of the comparison. Chosen "
            f"is {_made(chosen)}, {ahead}: difference {_difference(chosen)}.",
            _confirmation(composition, chosen, results),
            *_distances(chosen, target, results),
            f"It takes {number(chosen['ms'])} ms an image against {number(target['ms'])}: {_speed(chosen)} times as "
            f"fast, {of_time}.",
        ]
    busy = composition.protocol.machine.warning
    return [*said, *_presets(composition, results), *([] if busy is None else [busy])]


def _confirmation(composition: Composition, chosen: Mapping[str, Any], results: Results) -> str:
    """Whether the choice holds on the seeds of the report."""
    goal, margin = _named(composition.target), composition.protocol.margin
    unconfirmed = "That is not confirmed on seeds that chose nothing"
    ours, theirs = results.row(chosen["hash"]), results.row(composition.target["hash"])
    if ours is None or theirs is None:
        which = chosen["plan"] if ours is None else goal
        return f"{unconfirmed}: this report has no certificate of {which}."
    if _chose(composition, results):
        return f"{unconfirmed}: those of this report chose."
    verdict = as_good(ours, theirs, margin)
    if verdict is None:
        return f"{unconfirmed}: the certificates have no paired replicates."
    if verdict.holds:
        return f"It is as good as {goal} ({within(margin)}), on seeds that chose nothing: difference {_told(verdict)}."
    return (
        f"{unconfirmed}: difference {_told(verdict)}, whose interval does not end below the margin of "
        f"{number(verdict.margin)}."
    )


def _chose(composition: Composition, results: Results) -> bool:
    """Whether the report is on seeds of the comparison."""
    reported, (first, last) = parse_seeds(results.protocol["seeds"]), composition.protocol.seeds
    return first <= reported[-1] and reported[0] <= last


def _distances(row: Mapping[str, Any], target: Mapping[str, Any], results: Results) -> list[str]:
    ours, theirs = results.row(row["hash"]), results.row(target["hash"])
    if ours is None or theirs is None:
        return []
    of_target = f"{interval(theirs, 'fd')} of {_named(target)}"
    return [f"On the seeds of this report its FD is {interval(ours, 'fd')}, and {of_target}."]


def _presets(composition: Composition, results: Results) -> list[str]:
    """The preset with the fewest calls that is shown to be as good; of all presets, so corrected for their number."""
    target, margin = results.row(composition.target["hash"]), composition.protocol.margin
    if target is None:
        return []
    presets = results.frame[~results.frame["own"] & (results.frame["plan_hash"] != target["plan_hash"])]
    if presets.empty:
        return []
    of_all = f"Of {len(presets)} preset{'' if len(presets) == 1 else 's'} of this report"
    allowed = f"{within(margin)} and corrected for their number"
    for preset in presets.sort_values(["nfe", "rank"]).to_dict("records"):
        verdict = as_good(preset, target, margin, comparisons=len(presets))
        if verdict is not None and verdict.holds:
            return [
                f"{of_all} {describe(preset)} in {count(preset['nfe'])} calls is the "
                f"one with the fewest that is shown to be as good, {allowed}: FD {interval(preset, 'fd')}, difference "
                f"{_told(verdict)}."
            ]
    return [f"{of_all} none is shown to be as good, {allowed}."]


def _named(target: Mapping[str, Any]) -> str:
    return f"{target['sampler']} in {count(target['nfe'])} calls"


def _made(row: Mapping[str, Any]) -> str:
    return f"{row['plan']} ({row['sampler']})"


def _difference(row: Mapping[str, Any]) -> str:
    return ranged(row["difference"], row["difference_low"], row["difference_high"])


def _speed(row: Mapping[str, Any]) -> str:
    return ranged(row["speed"], row["speed_low"], row["speed_high"])


def _told(verdict: NonInferiority) -> str:
    return ranged(verdict.difference.value, *verdict.difference.interval)
