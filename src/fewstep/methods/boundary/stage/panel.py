"""Edits in the report: sweeps from left to right, and success against change of content."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fewstep.methods.boundary.stage.run import FAR, METHODS, RANDOM, Record, read_record
from fewstep.pipeline.report.figures import COLOURS, MUTED, WIDTH, house_style
from fewstep.pipeline.report.images import data_uri
from fewstep.pipeline.report.numbers import number, percent
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg

CELL = 48
"""Pixels of an image in the page, at least."""
ACROSS = 3
"""Attributes side by side in the figure."""
_LOOKS = {
    "eps": ("state", COLOURS[0], "o", "-"),
    "h": ("bottleneck", COLOURS[1], "s", (0, (4, 2))),
    "both": ("both", COLOURS[2], "^", (0, (1.5, 1.5))),
    RANDOM: ("random", COLOURS[7], "v", "-"),
    FAR: ("random, 3 times as far", COLOURS[3], "P", (0, (6, 2, 1.5, 2))),
}


def panel(folders: Sequence[Path], results: Results | None) -> Panel:
    """The measurements in the folder of the stage."""
    folder = folders[0]
    record = read_record(folder)
    figure = _figure(record)
    near = [entry for entry in record["boundaries"] if not entry["further"]]
    values = {
        "record": record,
        "pictures": [_picture(folder, entry, record["shown"]) for entry in near],
        "svg": inline_svg(
            figure, name="edit", label="Success of edits against change of content, by attribute."
        ),
        "zetas": [f"{zeta:g}" for zeta in record["zeta"]],
        "rows": [row for entry in record["boundaries"] for row in _rows(entry)],
        "ms": [max(entry["ms"][what] for entry in record["boundaries"]) for what in ("inversion", "edit")],
    }
    return Panel("Edits", rendered(__name__, values), {"success": figure})


def _picture(folder: Path, entry: Record, shown: Sequence[float]) -> dict[str, Any]:
    columns = ["image", "inverted and back", *(f"{zeta:g}" for zeta in shown)]
    with Image.open(folder / f"{entry['file']}.png") as picture:
        kept = picture.copy()
    side = kept.width // len(columns)
    scale = max(1, -(-CELL // side))
    return {
        "uri": data_uri(kept),
        "width": scale * kept.width,
        "height": scale * kept.height,
        "columns": columns,
        "caption": f"{entry['attribute']}: held-out images without the attribute, what comes back after inversion to "
        f"step {entry['t']:.2g}, and edits there to distances from the plane, in both spaces.",
    }


def _rows(entry: Record) -> list[dict[str, Any]]:
    """A line for each way to edit, and for images from noise."""
    found = []
    lines = [
        (_LOOKS[method][0], [row for row in entry["results"] if row["method"] == method])
        for method in METHODS
    ]
    lines.append(("both, images from noise", entry["sampled"]["results"]))
    for name, rows in lines:
        cells = [f"{percent(row['success']['value'])} · {number(row['content']['value'])}" for row in rows]
        found.append(
            {"attribute": entry["attribute"], "t": f"{entry['t']:.2g}", "name": name, "cells": cells}
        )
    return found


def _figure(record: Record) -> Figure:
    names = list(dict.fromkeys(entry["attribute"] for entry in record["boundaries"]))
    across = min(ACROSS, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(WIDTH, 2.6 * down + 0.5))
    with house_style():
        axes = figure.subplots(down, across, sharey=True, squeeze=False)
        for i, one in enumerate(axes.flat):
            if i >= len(names):
                one.set_visible(False)
                continue
            for entry in record["boundaries"]:
                if entry["attribute"] == names[i]:
                    _draw(one, entry)
            one.set_title(names[i], color=MUTED, fontsize=10)
            one.set_ylim(-3, 103)
            one.set_xlim(left=-0.01)
            if i % across == 0:
                one.set_ylabel("have the attribute, %", fontsize=8.5)
            one.set_xlabel("squared change of pixels", fontsize=8.5)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8.5, frameon=False)
        low = 0.9 / (2.6 * down + 0.5)
        figure.subplots_adjust(left=0.07, right=0.99, top=0.93, bottom=low, wspace=0.08, hspace=0.45)
    return figure


def _draw(axes: Axes, entry: Record) -> None:
    """Lines of all ways at the mixing step; at a further one a pale line of both."""
    for method, (name, colour, marker, dashes) in _LOOKS.items():
        rows = [row for row in entry["results"] if row["method"] == method]
        x = [0.0, *(row["content"]["value"] for row in rows)]
        y = [100 * entry["before"]["success"]["value"], *(100 * row["success"]["value"] for row in rows)]
        if entry["further"]:
            if method == "both":
                axes.plot(
                    x,
                    y,
                    color=MUTED,
                    marker="D",
                    markersize=3,
                    linewidth=1,
                    label=f"both, step {entry['t']:.2g}",
                )
            continue
        below = [0.0, *(100 * (row["success"]["value"] - row["success"]["interval"][0]) for row in rows)]
        above = [0.0, *(100 * (row["success"]["interval"][1] - row["success"]["value"]) for row in rows)]
        axes.errorbar(
            x, y, yerr=[below, above], color=colour, marker=marker, linestyle=dashes, markersize=4, linewidth=1.4,
            elinewidth=0.7, label=name,
        )  # fmt: skip
