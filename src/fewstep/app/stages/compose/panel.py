"""Quality against time over all plans of a report, and the one that was chosen, if any was."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from fewstep.app.stages.compose.record import Composition, read_composition
from fewstep.app.stages.compose.words import sentences
from fewstep.checks import ConfigError
from fewstep.pareto import pareto
from fewstep.pipeline.report.figures import COLOURS, FAINT, INK, MUTED, WIDTH, house_style, top_of_axis
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.plan_figure import plan_figure
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg
from fewstep.pipeline.report.words import interval, ranged, tooltip, within
from fewstep.sampling.plan import Plan

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # as many as no divisor of the colours: pairs repeat late
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
    chosen = composition.chosen
    shown, role = (composition.best, "best by FD") if chosen is None else (chosen, "chosen")
    front = front_figure(results, shown["hash"], role)
    picture = plan_figure(_lineage(composition, shown["hash"]))
    values = {
        "sentences": sentences(composition, results),
        "role": role,
        "level": composition.protocol.level,
        "comparisons": composition.protocol.comparisons,
        "other_features": results.fitted_metric is not None,
        "margin": within(composition.protocol.margin),
        "rounds": composition.protocol.rounds,
        "rows": [
            _row(row, composition.target["hash"], results)
            for row in composition.table.sort_values("fd").to_dict("records")
        ],
        "front": inline_svg(
            front,
            name="compose-front",
            titles={f"point-{row['plan_hash']}": tooltip(row) for row in results.frame.to_dict("records")},
            label="FD against network time of every plan, by how it was made.",
        ),
        "plan": inline_svg(
            picture, name="compose-plan", label=f"The plan that is {role}, and the one it was made from."
        ),
    }
    return Panel("Quality and time", rendered(__name__, values), {"front": front, "plan": picture})


def _row(row: Mapping[str, Any], target: str, results: Results) -> dict[str, Any]:
    """A row of the table of `fewstep compose`, with `here`: FD and interval in this report."""
    certified = results.row(row["hash"])
    here = "–" if certified is None else interval(certified, "fd")
    return {
        **row,
        "here": here,
        "shown_widths": _shown(row["widths"]),
        "differs": ranged(row["difference"], row["difference_low"], row["difference_high"]),
        "faster": ranged(row["speed"], row["speed_low"], row["speed_high"]),
        "is_target": row["hash"] == target,
    }


def _shown(widths: str) -> str:
    if set(widths) <= {"0"}:
        return "full"
    return widths if len(widths) <= _LENGTH else f"{widths[:_LENGTH]}…"


def _lineage(composition: Composition, shown: str) -> dict[str, Plan]:
    """The plan and, where it is there, the first of its parents."""
    plan = composition.plans[shown]
    found = {plan.name: plan}
    for parent in plan.provenance.get("parents", [])[:1]:
        if parent in composition.plans:
            found[composition.plans[parent].name] = composition.plans[parent]
    return found


def front_figure(results: Results, marked: str, role: str) -> Figure:
    """Fréchet distance against network time, by how a plan was made, the front of all, and a plan in its role."""
    frame = results.frame[results.frame["fd"].gt(0) & results.frame["ms"].gt(0)]
    own = frame["own"]
    ancestors = frame[own].groupby("sampler")["ancestors"].min()
    groups = sorted(ancestors.index, key=lambda name: (ancestors[name], name))
    with house_style():
        figure = Figure(figsize=(WIDTH, 4.6))
        axes = figure.add_axes((0.075, 0.11, 0.9, 0.82))
        axes.set(xscale="log", yscale="log")
        _scatter(axes, frame[~own], "presets", FAINT, "o")
        for group, colour, marker in zip(groups, cycle(COLOURS), cycle(_MARKERS), strict=False):
            _scatter(axes, frame[frame["sampler"] == group], group, colour, marker)
        points = list(zip(frame["ms"], frame["fd"], strict=True))
        best = [points[i] for i in pareto(points)]
        axes.plot(*zip(*best, strict=True), drawstyle="steps-post", color=INK, linewidth=0.9, zorder=2)
        ringed = frame[frame["plan_hash"] == marked]
        if len(ringed):
            axes.plot(
                ringed["ms"],
                ringed["fd"],
                "o",
                markersize=13,
                markerfacecolor="none",
                color=INK,
                label=role,
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
    axes.legend(loc="best", fontsize=8.5, frameon=False, labelcolor=MUTED)  # where it hides fewest plans
