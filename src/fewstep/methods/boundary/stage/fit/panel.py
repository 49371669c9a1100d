"""Boundaries in the report: the three curves that the mixing step is found from, and what was fitted there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fewstep.methods.boundary.stage.fit.run import Record, read_record
from fewstep.pipeline.report.figures import COLOURS, MUTED, WIDTH, house_style
from fewstep.pipeline.report.numbers import percent
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg

SPACES = (("eps", "state", "o", "-"), ("h", "bottleneck", "s", (0, (4, 2))))


def panel(folders: Sequence[Path], results: Results | None) -> Panel:
    """The record in the folder of the stage."""
    record = read_record(folders[0])
    figure = _figure(record)
    values = {
        "record": record,
        "t": f"{record['chosen']['t']:.2g}",
        "svg": inline_svg(
            figure,
            name="boundary",
            label="Gap of the norms, accuracy of planes and error of reconstructions by step.",
        ),
        "rows": [row for entry in record["boundaries"] for row in _rows(entry)],
    }
    metrics = {"t": record["chosen"]["t"]}
    return Panel("Boundaries", rendered(__name__, values), {"curves": figure}, metrics)


def _rows(entry: Record) -> list[dict[str, Any]]:
    return [
        {
            "attribute": entry["attribute"],
            "t": f"{entry['t']:.2g}",
            "space": name,
            "images": f"{entry['images'][0]} + {entry['images'][1]}",
            "c": f"{entry['spaces'][space]['c']:g}",
            "accuracy": percent(entry["spaces"][space]["accuracy"]),
            "cosine": f"{entry['spaces'][space]['cosine']:.2f}",
            "scores": ", ".join(f"{c}: {score:.2f}" for c, score in entry["spaces"][space]["scores"].items())
            or "–",
        }
        for space, name, _, _ in SPACES
    ]


def _figure(record: Record) -> Figure:
    points = sorted(record["points"], key=lambda point: float(point["t"]))
    ts = [point["t"] for point in points]
    limits = record["protocol"]["limits"]
    figure = Figure(figsize=(WIDTH, 2.9))
    with house_style():
        norms, accuracy, error = figure.subplots(1, 3)
        _norms(norms, points, ts)
        for space, name, marker, dashes in SPACES:
            values = [[100 * of[space] for of in point["accuracy"].values()] for point in points]
            means = [sum(some) / len(some) for some in values]
            colour = COLOURS[0] if space == "eps" else COLOURS[1]
            accuracy.plot(ts, means, color=colour, marker=marker, linestyle=dashes, markersize=4, label=name)
            accuracy.fill_between(
                ts,
                [min(some) for some in values],
                [max(some) for some in values],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        accuracy.legend(fontsize=8, frameon=False, loc="lower left")
        accuracy.set_title("images on their side, %", color=MUTED, fontsize=10)
        error.plot(ts, [point["error"] for point in points], color=COLOURS[0], marker="o", markersize=4)
        error.axhline(limits["error"], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        error.set_yscale("log")
        error.set_title("error of reconstructions", color=MUTED, fontsize=10)
        for axes in (norms, accuracy, error):
            axes.axvline(record["chosen"]["t"], color=COLOURS[2], linewidth=1.2)
            axes.set_xlabel("step (0: data, 1: noise)", fontsize=8.5)
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1])
        figure.subplots_adjust(left=0.06, right=0.975, top=0.89, bottom=0.18, wspace=0.25)
    return figure


def _norms(axes: Axes, points: Sequence[dict[str, Any]], ts: Sequence[float]) -> None:
    """Mean norms, and a standard deviation of the sampled ones around theirs."""
    mean = [point["sampled"]["mean"] for point in points]
    low = [point["sampled"]["mean"] - point["sampled"]["std"] for point in points]
    high = [point["sampled"]["mean"] + point["sampled"]["std"] for point in points]
    axes.fill_between(ts, low, high, color=COLOURS[7], alpha=0.2, linewidth=0)
    axes.plot(ts, mean, color=COLOURS[7], marker="^", markersize=4, label="sampled")
    limit, own, coarse = (
        [point["limit_mean"] for point in points],
        [point["inverted"]["mean"] for point in points],
        [point["coarse"]["mean"] for point in points],
    )
    axes.plot(ts, limit, color=COLOURS[0], linestyle=(0, (1.5, 1.5)), label="in the limit")
    axes.plot(ts, own, color=COLOURS[0], marker="o", markersize=4, label="inverted")
    axes.plot(ts, coarse, color=COLOURS[0], linestyle=(0, (4, 2)), label="in half the calls")
    axes.legend(fontsize=8, frameon=False)
    axes.set_title("mean norm of states", color=MUTED, fontsize=10)
