"""Images of patches in the report: the same noises in each way of decoding, seams and distances, larger images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image

from fewstep.methods.patchdm.enlarge import COLLAGE, PLAIN, SHIFT
from fewstep.methods.patchdm.seams import ALIGNED, GRID
from fewstep.methods.patchdm.stage.run import SEAMS, Record, read_record
from fewstep.pipeline.report.figures import COLOURS, MUTED, WIDTH, house_style
from fewstep.pipeline.report.images import data_uri
from fewstep.pipeline.report.numbers import number
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg

SIZE = 900
"""Width of a picture of small images in the page."""
SAYS = {
    COLLAGE: "with features of their neighbours",
    SHIFT: "alone, on a grid that moves by half a patch with each call",
    PLAIN: "alone, on one grid",
}
_MARKERS = {COLLAGE: ("o", COLOURS[0]), SHIFT: ("s", COLOURS[2]), PLAIN: ("^", COLOURS[1])}


def panel(folders: Sequence[Path], results: Results | None) -> Panel:
    """The measurements and pictures in the folder of the stage."""
    folder = folders[0]
    record = read_record(folder)
    decodes = list(dict.fromkeys(row["decode"] for row in record["results"]))
    figure = _figure(record, decodes)
    rows = sorted(record["results"], key=lambda row: (row["nfe"], row["name"]))
    sizes = list(dict.fromkeys(row["size"] for row in record["larger"]))
    values = {
        "record": record,
        "seams": _picture(folder / f"{SEAMS}.png"),
        "ways": [(decode, SAYS[decode]) for decode in decodes],
        "svg": inline_svg(figure, name="enlarge", label="Seams and distance by calls, in each way of decoding."),
        "rows": [{"row": row, "cells": [_cell(row["seams"][kind]) for kind in (ALIGNED, GRID)]} for row in rows],
        "real": [_cell(record["real"]["seams"][kind]) for kind in (ALIGNED, GRID)],
        "larger": [{"size": size, "picture": _picture(folder / f"{size}.png"), "seams": _of_size(record, size)}
                   for size in sizes],
        "has_classes": any(row["accuracy"] is not None for row in record["results"]),
    }  # fmt: skip
    return Panel("Patches without seams", rendered(__name__, values), {"seams": figure})


def _picture(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        kept = picture.copy()
    scale = max(1, SIZE // kept.width)
    return {"uri": data_uri(kept), "width": scale * kept.width, "height": scale * kept.height}


def _cell(seam: dict[str, float] | None) -> str:
    return "–" if seam is None else f"{seam['value']:.2f}"


def _of_size(record: Record, size: str) -> str:
    rows = [row for row in record["larger"] if row["size"] == size]
    return "; ".join(
        f"{row['decode']} {_cell(row['seams'][ALIGNED])} and {_cell(row['seams'][GRID])}" for row in rows
    )


def _figure(record: Record, decodes: Sequence[str]) -> Figure:
    """Seams at both kinds of lines, and the distance, by calls."""
    figure = Figure(figsize=(WIDTH, 2.9))
    with house_style():
        axes = figure.subplots(1, 3)
        titles = {ALIGNED: "seams of shifted patches", GRID: "seams of grid patches"}
        for one, (kind, title) in zip(axes, titles.items(), strict=False):
            for decode in decodes:
                rows = [row for row in record["results"] if row["decode"] == decode and row["seams"][kind]]
                points = [
                    (row["nfe"], row["seams"][kind]["value"], 1.96 * row["seams"][kind]["sd"]) for row in rows
                ]
                _marks(one, decode, [(x, y, y - off, y + off) for x, y, off in points])
            real = record["real"]["seams"][kind]
            if real is not None:
                one.axhline(real["value"], color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
            one.set_title(title, color=MUTED, fontsize=10)
        last = axes[2]
        for decode in decodes:
            rows = [row for row in record["results"] if row["decode"] == decode]
            _marks(last, decode, [(row["nfe"], row["fd"], *row["interval"]) for row in rows])
        last.set_yscale("log")
        last.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        last.yaxis.set_major_formatter(lambda value, _: number(value))
        last.yaxis.set_minor_formatter(lambda value, _: "")
        last.set_title("distance", color=MUTED, fontsize=10)
        for one in axes:
            calls = sorted({row["nfe"] for row in record["results"]})
            one.set_xscale("log")
            one.set_xticks(calls, [str(n) for n in calls])
            one.minorticks_off()
            one.set_xlim(min(calls) * 0.75, max(calls) * 1.33)
            one.set_xlabel("calls", fontsize=8.5)
        handles, labels = axes[2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8.5, frameon=False)
        figure.subplots_adjust(left=0.06, right=0.99, top=0.9, bottom=0.26, wspace=0.22)
    return figure


def _marks(axes: Axes, decode: str, points: Sequence[tuple[float, float, float, float]]) -> None:
    marker, colour = _MARKERS[decode]
    axes.errorbar(
        [x for x, *_ in points],
        [y for _, y, _, _ in points],
        yerr=[[y - low for _, y, low, _ in points], [high - y for _, y, _, high in points]],
        color=colour,
        marker=marker,
        linestyle="",
        elinewidth=0.8,
        markersize=4.5,
        label=decode,
    )
