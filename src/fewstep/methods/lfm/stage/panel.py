"""Latent flow matching in the report: steps, guidance, reconstruction, inpainting, maps, pieces of the bound."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fewstep.methods.lfm.stage.run import read_record
from fewstep.pipeline.report.figures import COLOURS, MUTED, WIDTH, house_style
from fewstep.pipeline.report.images import data_uri
from fewstep.pipeline.report.numbers import number, percent
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg

CAPTIONS = {
    "euler": "The same noises at {nfe} evaluations of Euler, from top to bottom.",
    "guidance": "The same noises at guidance {guidances}, from top to bottom.",
    "reconstruction": "Held-out images above, and what the autoencoder rebuilds of them.",
    "mask": "Held-out images, what the model sees of them, and three fillings of each hole.",
    "map": "What a map says is bright, the image that it is of, and three images of the map.",
}
SIZE = 480
"""Width of a picture of small images in the page."""


def panel(folders: Sequence[Path], results: Results | None) -> Panel:
    """The measurements in the folder of the stage."""
    folder = folders[0]
    record = read_record(folder)
    kinds = {
        kind: [row for row in record["results"] if row["kind"] == kind] for kind in ("euler", "guidance")
    }
    adaptive = next((row for row in record["results"] if row["kind"] == "dopri5"), None)
    figures = {"steps": _figure(kinds["euler"], "nfe", "evaluations of Euler", adaptive)}
    if len(kinds["guidance"]) > 1:
        figures["guidance"] = _figure(kinds["guidance"], "guidance", "guidance", None)
    values = {
        "metric": record["metric"],
        "n": record["protocol"]["n"],
        "steps": _svg(figures, "steps"),
        "guidance": _svg(figures, "guidance"),
        "adaptive": adaptive,
        "pictures": [
            _picture(folder, name, caption, kinds)
            for name, caption in CAPTIONS.items()
            if (folder / f"{name}.png").exists()
        ],
        "reconstruction": record.get("reconstruction"),
        "bound": record.get("bound"),
        "mask": record.get("mask"),
        "map": record.get("map"),
    }
    return Panel("Latent flow matching", rendered(__name__, values), figures)


def _svg(figures: dict[str, Figure], name: str) -> Markup | None:
    if name not in figures:
        return None
    return inline_svg(figures[name], name=f"lfm-{name}", label=f"Distance and accuracy by {name}.")


def _picture(folder: Path, name: str, caption: str, kinds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    with Image.open(folder / f"{name}.png") as picture:
        shown = picture.copy()
    scale = max(1, SIZE // shown.width)
    text = caption.format(
        nfe=", ".join(str(row["nfe"]) for row in kinds["euler"]),
        guidances=", ".join(f"{row['guidance']:g}" for row in kinds["guidance"]),
    )
    return {
        "uri": data_uri(shown),
        "width": scale * shown.width,
        "height": scale * shown.height,
        "caption": text,
    }


def _figure(rows: list[dict[str, Any]], by: str, label: str, adaptive: dict[str, Any] | None) -> Figure:
    """Distance, and accuracy where there are classes, against a setting, with intervals."""
    accurate = all(row["accuracy"] is not None for row in rows)
    figure = Figure(figsize=(WIDTH, 2.9))
    with house_style():
        axes = figure.add_axes((0.08, 0.17, 0.4 if accurate else 0.86, 0.7))
        _line(axes, rows, by, lambda row: (row["value"], *row["interval"]))
        axes.set(yscale="log", xlabel=label)
        axes.yaxis.set_major_formatter(lambda value, _: number(value))
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.set_title("distance", loc="left", color=MUTED, fontsize=10)
        if adaptive is not None:
            axes.axhline(adaptive["value"], color=COLOURS[1], linewidth=1, linestyle=(0, (3, 2)))
            axes.text(
                rows[-1][by], adaptive["value"], f"dopri5, {adaptive['nfe']} evaluations", color=COLOURS[1],
                fontsize=8.5, ha="right", va="bottom",
            )  # fmt: skip
        if accurate:
            right = figure.add_axes((0.57, 0.17, 0.4, 0.7))
            _line(right, rows, by, lambda row: (row["accuracy"]["value"], *row["accuracy"]["interval"]))
            right.yaxis.set_major_formatter(lambda value, _: percent(value))
            right.set(xlabel=label)
            right.set_title("images of the class asked for, %", loc="left", color=MUTED, fontsize=10)
        if by == "nfe":
            for one in figure.axes:
                one.set_xscale("log")
                one.set_xticks([row["nfe"] for row in rows], [str(row["nfe"]) for row in rows])
                one.minorticks_off()
    return figure


def _line(axes: Axes, rows: list[dict[str, Any]], by: str, read: Any) -> None:
    x, points = [row[by] for row in rows], [read(row) for row in rows]
    axes.fill_between(
        x,
        [low for _, low, _ in points],
        [high for *_, high in points],
        color=COLOURS[0],
        alpha=0.2,
        linewidth=0,
    )
    axes.plot(x, [value for value, *_ in points], color=COLOURS[0], marker="o")
