"""Quality against time over all plans of a report, and the fastest one that is good enough."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from fewstep.app.stages.compose.record import Composition, read_composition
from fewstep.checks import ConfigError
from fewstep.pareto import pareto
from fewstep.pipeline.report.figures import COLOURS, FAINT, INK, MUTED, WIDTH, house_style, top_of_axis
from fewstep.pipeline.report.numbers import count, number
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.plan_figure import plan_figure
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg
from fewstep.pipeline.report.words import interval, tooltip
from fewstep.sampling.plan import Plan

_MARKERS = ("o", "s", "^", "D", "v")
_LENGTH = 20  # signs of a plan's widths that a table shows


def panel(folders: Sequence[Path], results: Results) -> Panel:
    """The comparison in the folder of the stage; its numbers in this report are those of the certificates.

    Raises:
        DataError: The folder holds no comparison, or a damaged one.
        ConfigError: There are several folders.
    """
    if len(folders) != 1:
        raise ConfigError(f"A report shows one comparison of plans, got {', '.join(map(str, folders))}.")
    composition = read_composition(folders[0])
    table = composition.table
    winner = table[table["winner"]].iloc[0]
    front, picture = front_figure(results, winner["hash"]), plan_figure(_lineage(composition, winner["hash"]))
    values = {
        "sentences": _sentences(table.iloc[0].to_dict(), winner.to_dict(), results),
        "rows": [_row(row, results) for row in table.sort_values("fd").to_dict("records")],
        "front": inline_svg(
            front,
            name="compose-front",
            titles={f"point-{row['plan_hash']}": tooltip(row) for row in results.frame.to_dict("records")},
            label="FD against network time of every plan, by how it was made.",
        ),
        "plan": inline_svg(
            picture, name="compose-plan", label="The fastest good plan and the one it was made from."
        ),
    }
    return Panel("Quality and time", rendered(__name__, values), {"front": front, "plan": picture})


def _row(row: Mapping[str, Any], results: Results) -> dict[str, Any]:
    """A row of the table of `fewstep compose`, with `here`: FD and interval in this report."""
    certified = results.row(row["hash"])
    here = "–" if certified is None else interval(certified, "fd")
    return {**row, "here": here, "shown_widths": _shown(row["widths"])}


def _shown(widths: str) -> str:
    if set(widths) <= {"0"}:
        return "full"
    return widths if len(widths) <= _LENGTH else f"{widths[:_LENGTH]}…"


def _sentences(target: Mapping[str, Any], winner: Mapping[str, Any], results: Results) -> list[str]:
    goal = f"{target['sampler']} in {count(target['nfe'])} calls"
    good = winner["fd"] <= target["fd"]
    start = (
        f"The fastest plan that is as good as {goal} is"
        if good
        else f"No plan is as good as {goal}; the best is"
    )
    sentences = [
        f"{start} {winner['plan']} ({winner['sampler']}): {number(winner['ms'])} ms an image against "
        f"{number(target['ms'])}, {target['ms'] / winner['ms']:.1f} times as fast."
    ]
    ours, theirs = results.row(winner["hash"]), results.row(target["hash"])
    if ours is None or theirs is None:
        return sentences
    sentences.append(
        f"On the seeds of this report its FD is {interval(ours, 'fd')}, and {interval(theirs, 'fd')} of {goal}."
    )
    presets = results.frame[~results.frame["own"]]
    reached = presets[presets["fd"] <= max(theirs["fd"], ours["fd"])].sort_values("ms")
    if len(reached):
        best = reached.iloc[0]
        sentences.append(
            f"The fastest preset that reaches the larger of the two is {best['sampler']} on {best['grid']} in "
            f"{best['nfe']} calls, at {number(best['ms'])} ms in this report against {number(ours['ms'])} of that plan "
            f"({best['ms'] / ours['ms']:.1f} times)."
        )
    return sentences


def _lineage(composition: Composition, winner: str) -> dict[str, Plan]:
    """The plan and, where it is there, the first of its parents."""
    plan = composition.plans[winner]
    found = {plan.name: plan}
    for parent in plan.provenance.get("parents", [])[:1]:
        if parent in composition.plans:
            found[composition.plans[parent].name] = composition.plans[parent]
    return found


def front_figure(results: Results, winner: str) -> Figure:
    """Fréchet distance against network time, by how a plan was made, and the front of all."""
    frame = results.frame[results.frame["fd"].gt(0) & results.frame["ms"].gt(0)]
    own = frame["own"]
    ancestors = frame[own].groupby("sampler")["ancestors"].min()
    groups = sorted(ancestors.index, key=lambda name: (ancestors[name], name))
    with house_style():
        figure = Figure(figsize=(WIDTH, 4.6))
        axes = figure.add_axes((0.075, 0.11, 0.9, 0.82))
        axes.set(xscale="log", yscale="log")
        _scatter(axes, frame[~own], "presets", FAINT, "o")
        for group, colour, marker in zip(groups, COLOURS, _MARKERS, strict=False):
            _scatter(axes, frame[frame["sampler"] == group], group, colour, marker)
        points = list(zip(frame["ms"], frame["fd"], strict=True))
        best = [points[i] for i in pareto(points)]
        axes.plot(*zip(*best, strict=True), drawstyle="steps-post", color=INK, linewidth=0.9, zorder=2)
        chosen = frame[frame["plan_hash"] == winner]
        if len(chosen):
            axes.plot(
                chosen["ms"],
                chosen["fd"],
                "o",
                markersize=13,
                markerfacecolor="none",
                color=INK,
                label="chosen",
            )
        _finish(axes, results)
    return figure


def _scatter(axes: Axes, part: pd.DataFrame, label: str, colour: str, marker: str) -> None:
    order = 3 if colour == FAINT else 4
    for i, row in enumerate(part.to_dict("records")):
        name, title = f"point-{row['plan_hash']}", label if i == 0 else None
        axes.plot(row["ms"], row["fd"], marker, color=colour, zorder=order, gid=name, label=title)


def _finish(axes: Axes, results: Results) -> None:
    least = results.frame["fd"][results.frame["fd"] > 0].min()
    bottom = min(least, results.baseline) if results.baseline > 0 else least
    axes.set_ylim(0.8 * bottom, top_of_axis(results))
    axes.set_xlabel("network milliseconds per image")
    axes.set_title(results.metric, loc="left", fontsize=10, color=MUTED)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    if not math.isnan(results.baseline):
        axes.axhline(results.baseline, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    axes.legend(loc="upper right", fontsize=8.5, frameon=False, labelcolor=MUTED)
