"""Inpainting in the report: strips before, with the hole, and after; accuracy, error and distance by network calls."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image

from fewstep.methods.rad.stage.run import MEAN, REGION, REPAINT, REPLACEMENT, Record, read_record
from fewstep.pipeline.report.figures import COLOURS, MUTED, WIDTH, house_style
from fewstep.pipeline.report.images import data_uri
from fewstep.pipeline.report.numbers import number, percent
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg

SIZE = 480
"""Width of a picture of small images in the page."""
TICKS = (5, 50, 500)
SAYS = {
    "box": "a box in the middle",
    "half": "the right half",
    "lines": "every second line",
    "strokes": "strokes",
    "perlin": "half of all pixels by Perlin noise",
}
_BASELINES = {REPLACEMENT: ("s", COLOURS[1]), REPAINT: ("^", COLOURS[2])}
_HUES = (COLOURS[0], *COLOURS[3:])
_SAMPLERS = ("o", "D", "v", "P", "X", "p")

Read = Callable[[dict[str, Any]], tuple[float, float, float] | None]
"""From a row to a value with its interval."""


def panel(folders: Sequence[Path], results: Results | None) -> Panel:
    """The measurements in the folder of the stage."""
    folder = folders[0]
    record = read_record(folder)
    kinds = list(dict.fromkeys(row["mask"] for row in record["results"]))
    figure = _figure(record, kinds)
    values = {
        "record": record,
        "metric": record["metric"],
        "svg": inline_svg(
            figure, name="inpaint", label="Accuracy, error and distance by calls, for each mask."
        ),
        "pictures": [_picture(folder / f"{kind}.png", kind, record["shown"]) for kind in kinds],
        "kinds": kinds,
        "rows": _table(record, kinds),
        "real": record["real"],
    }
    return Panel("Inpainting", rendered(__name__, values), {"calls": figure})


def _picture(path: Path, kind: str, shown: Sequence[str]) -> dict[str, Any]:
    with Image.open(path) as picture:
        kept = picture.copy()
    scale = max(1, SIZE // kept.width)
    return {
        "uri": data_uri(kept),
        "width": scale * kept.width,
        "height": scale * kept.height,
        "caption": f"Before, with the hole ({SAYS[kind]}), and after: {', '.join(shown)}.",
    }


def _table(record: Record, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each method: its calls, and accuracy, error and distance of each mask."""
    names = dict.fromkeys((row["name"], row["nfe"]) for row in record["results"])
    of = {(row["name"], row["mask"]): row for row in record["results"]}
    return [
        {"name": name, "nfe": nfe, "cells": [_cell(of[name, kind]) for kind in kinds]} for name, nfe in names
    ]


def _cell(row: dict[str, Any]) -> str:
    accuracy = "" if row["accuracy"] is None else f"{percent(row['accuracy']['value'])} · "
    return f"{accuracy}{row['error']:.2f} · {number(row['fd'])}"


def _accuracy(row: dict[str, Any]) -> tuple[float, float, float] | None:
    found = row["accuracy"]
    return None if found is None else (found["value"], *found["interval"])


def _error(row: dict[str, Any]) -> tuple[float, float, float]:
    return row["error"], row["error"], row["error"]


def _distance(row: dict[str, Any]) -> tuple[float, float, float]:
    return (row["fd"], *row["interval"])


def _figure(record: Record, kinds: Sequence[str]) -> Figure:
    """A column for each mask; accuracy where there are classes, error in the hole, and distance below each other."""
    measures: list[tuple[str, Read, bool]] = [
        ("squared error in the hole", _error, False),
        ("distance", _distance, True),
    ]
    if record["real"]["accuracy"] is not None:
        measures.insert(0, ("of the right class, %", _accuracy, False))
    figure = Figure(figsize=(WIDTH, 2.1 * len(measures) + 0.5))
    with house_style():
        axes = figure.subplots(len(measures), len(kinds), sharex=True, sharey="row", squeeze=False)
        for i, (title, read, log) in enumerate(measures):
            for j, kind in enumerate(kinds):
                one: Axes = axes[i, j]
                rows = [row for row in record["results"] if row["mask"] == kind]
                _draw(one, rows, read, record["real"] if read is not _error else None)
                one.set_xscale("log")
                one.set_xlim(2, 900)
                if log:
                    one.set_yscale("log")
                    one.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                    one.yaxis.set_major_formatter(lambda value, _: number(value))
                    one.yaxis.set_minor_formatter(lambda value, _: "")
                if read is _accuracy:
                    one.yaxis.set_major_formatter(lambda value, _: percent(value))
                if i == 0:
                    one.set_title(kind, color=MUTED, fontsize=10)
                if j == 0:
                    one.set_ylabel(title, fontsize=8.5)
                if i == len(measures) - 1:
                    one.set_xlabel("calls", fontsize=8.5)
                    one.set_xticks(TICKS, [str(tick) for tick in TICKS])
                    one.minorticks_off()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8.5, frameon=False)
        figure.subplots_adjust(left=0.09, right=0.99, top=0.94, bottom=0.14, wspace=0.12, hspace=0.14)
    return figure


def _draw(axes: Axes, rows: Sequence[dict[str, Any]], read: Read, real: dict[str, Any] | None) -> None:
    """Lines of plans by sampler, marks of the baselines, and levels of the mean image and of images without hole."""
    samplers = list(dict.fromkeys(row["sampler"] for row in rows if row["method"] == REGION))
    for k, sampler in enumerate(samplers):
        own = [row for row in rows if row["sampler"] == sampler and row["method"] == REGION]
        _marks(axes, own, read, _SAMPLERS[k % len(_SAMPLERS)], _HUES[k % len(_HUES)], sampler)
    for method, (marker, colour) in _BASELINES.items():
        _marks(axes, [row for row in rows if row["method"] == method], read, marker, colour, method, line="")
    levels = [(row, (0, (1, 2))) for row in rows if row["method"] == MEAN]
    levels += [] if real is None else [(real, (0, (4, 2)))]
    for row, dashes in levels:
        value = read(row)
        if value is not None:
            axes.axhline(value[0], color=MUTED, linewidth=1, linestyle=dashes)


def _marks(
    axes: Axes,
    rows: Sequence[dict[str, Any]],
    read: Read,
    marker: str,
    colour: str,
    label: str,
    *,
    line: str = "-",
) -> None:
    points = [(row["nfe"], value) for row in rows if (value := read(row)) is not None]
    if not points:
        return
    x = [nfe for nfe, _ in points]
    below = [value - low for _, (value, low, _) in points]
    above = [high - value for _, (value, _, high) in points]
    axes.errorbar(
        x,
        [value for _, (value, _, _) in points],
        yerr=[below, above],
        color=colour,
        marker=marker,
        linestyle=line,
        elinewidth=0.8,
        linewidth=1.4,
        markersize=4,
        label=label,
    )
