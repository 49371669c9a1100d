"""Variations of images in the report: what was shown, what was made of it, and diversity against class match."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from fewstep.methods.semantica.stage.run import read_record
from fewstep.pipeline.report.figures import COLOURS, MUTED, WIDTH, house_style
from fewstep.pipeline.report.images import data_uri
from fewstep.pipeline.report.numbers import number, percent
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg

SIZE = 480
"""Width of a picture of small images in the page."""


def panel(folders: Sequence[Path], results: Results | None) -> Panel:
    """The measurements in the folder of the stage."""
    folder = folders[0]
    record = read_record(folder)
    figure = _figure(record["results"])
    heldout = record["protocol"]["heldout_classes"]
    last = " The last columns are of classes that training never saw." if heldout else ""
    pictures = [
        _picture(
            folder / f"guidance{guidance:g}.png",
            f"Images that the model was shown, above variations of each, at guidance {guidance:g}.{last}",
        )
        for guidance in dict.fromkeys(row["guidance"] for row in record["results"])
    ]
    if "pairs" in record:
        text = "Pairs of the training: what an image was conditioned on, above it."
        pictures.append(_picture(folder / "pairs.png", text))
    values = {
        "protocol": record["protocol"],
        "svg": inline_svg(figure, name="semantica", label="Diversity against class match."),
        "pictures": pictures,
        "rows": [_row(row) for row in record["results"]],
        "mixtures": record["mixtures"],
        "pairs": record.get("pairs"),
    }
    return Panel("Variations of images", rendered(__name__, values), {"diversity": figure})


def _picture(path: Path, caption: str) -> dict[str, Any]:
    with Image.open(path) as picture:
        shown = picture.copy()
    scale = max(1, SIZE // shown.width)
    return {
        "uri": data_uri(shown),
        "width": scale * shown.width,
        "height": scale * shown.height,
        "caption": caption,
    }


def _row(row: dict[str, Any]) -> dict[str, str]:
    shots = row["few_shot"]

    def pair(name: str) -> str:
        if shots is None:
            return "–"
        show = number if name == "fd" else percent
        return f"{show(shots['generated'][name])} ({show(shots['real'][name])})"

    low, high = (percent(bound) for bound in row["class_match"]["interval"])
    return {
        "group": f"{row['group']} classes",
        "guidance": f"{row['guidance']:g}",
        "images": str(row["images"]),
        "match": f"{percent(row['class_match']['value'])} [{low}, {high}]",
        "diversity": f"{row['diversity_of_real']['value']:.2f}",
        "pixel": number(row["pixel_mse"]),
        "fd": pair("fd"),
        "precision": pair("precision"),
        "recall": pair("recall"),
    }


def _figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """One mark for each group and guidance, with intervals, beside the diversity of real images."""
    figure = Figure(figsize=(WIDTH, 3.2))
    with house_style():
        axes = figure.add_axes((0.1, 0.16, 0.86, 0.74))
        groups = list(dict.fromkeys(row["group"] for row in rows))
        for i, group in enumerate(groups):
            own = [row for row in rows if row["group"] == group]
            for row in own:
                match, spread = row["class_match"], row["diversity_of_real"]
                axes.plot(match["interval"], [spread["value"]] * 2, color=COLOURS[i], linewidth=1)
                axes.plot([match["value"]] * 2, spread["interval"], color=COLOURS[i], linewidth=1)
                axes.annotate(
                    f"w = {row['guidance']:g}", (match["value"], spread["value"]), (6, 5),
                    textcoords="offset points", fontsize=8.5, color=MUTED,
                )  # fmt: skip
            x, y = ([row[name]["value"] for row in own] for name in ("class_match", "diversity_of_real"))
            axes.plot(x, y, "o-", color=COLOURS[i], label=f"{group} classes")
        axes.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.set(xlim=(0, 1.05), xlabel="variations of the class of the image, %")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(lambda value, _: percent(value))
        axes.set_title(
            "distance between variations, real images of a class = 1", loc="left", color=MUTED, fontsize=10
        )
        axes.legend(loc="lower left", fontsize=8.5, frameon=False, labelcolor=MUTED)
    return figure
