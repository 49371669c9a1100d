"""A generator's training in the report: distance over the training, signs of collapse, and images on the way."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from fewstep.checks import ConfigError, DataError
from fewstep.files import read_json
from fewstep.nets import CARD, CURVE, PICTURES, WEIGHTS
from fewstep.pipeline.gan.curve import cost_columns
from fewstep.pipeline.gan.figure import distance_figure
from fewstep.pipeline.record import curve_rows
from fewstep.pipeline.report.figures import COLOURS, WIDTH, house_style, samples_figure
from fewstep.pipeline.report.images import data_uri
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg
from fewstep.pipeline.report.words import interval

_MOST_STRIPS = 8


def panel(folders: Sequence[Path], results: Results) -> Panel:
    """The training of the generator in a model folder, and its row of this report.

    Raises:
        DataError: The folder lacks its curve or its pictures, or they are damaged.
        ConfigError: There are several folders.
    """
    if len(folders) != 1:
        raise ConfigError(f"A report shows one generator, got {', '.join(map(str, folders))}.")
    (folder,) = folders
    card = read_json(folder / CARD)
    settings = card["settings"]["gan"]
    curve = cost_columns(list(curve_rows(folder / CURVE)), d_steps=settings["d_steps"])
    strips = _strips(folder / PICTURES)
    figures = {"losses": loss_figure(curve)}
    if "fd" in curve:
        figures = {"distance": distance_figure({settings["network"]: [curve]}), **figures}
    svgs = {
        name: inline_svg(figure, name=f"gan-{name}", label=_LABELS[name]) for name, figure in figures.items()
    }
    pictures = samples_figure(
        {f"step {step}": picture for step, picture in strips.items()},
        columns=16,
        title="The same seeds during training",
    )
    values = {
        "settings": settings,
        "card": card,
        "row": _row(results),
        "level": results.level,
        "interval": interval,
        "best": _best(curve),
        "svgs": svgs,
        "strips": [(step, data_uri(picture), picture.size) for step, picture in strips.items()],
        "weights": (folder / WEIGHTS).stat().st_size / 1e6,
    }
    return Panel("The generator of one call", rendered(__name__, values), {**figures, "samples": pictures})


_LABELS = {
    "distance": "FD of the generator's samples against minutes, discriminator steps and images.",
    "losses": "Losses of both sides and the gap between the logits of real and generated images, by step.",
}


def _row(results: Results) -> dict[str, Any] | None:
    """The row of the report that is of a generator."""
    found = results.frame[
        [
            "generator" in results.plans[name].provenance if name in results.plans else False
            for name in results.frame["plan_hash"]
        ]
    ]
    rows: list[dict[str, Any]] = found.to_dict("records")
    return rows[0] if rows else None


def _best(curve: pd.DataFrame) -> Mapping[str, Any] | None:
    if "fd" not in curve:
        return None
    measured = curve.dropna(subset="fd")
    return {"best": measured.loc[measured["fd"].idxmin()].to_dict(), "last": measured.iloc[-1].to_dict()}


def loss_figure(curve: pd.DataFrame) -> Figure:
    """Losses, the gap of the logits, and the spread of the images where it was measured."""
    with house_style():
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, label, colour in (
            ("loss_d", "discriminator", COLOURS[0]),
            ("loss_g", "generator", COLOURS[1]),
        ):
            left.plot(curve["step"], curve[name], color=colour, linewidth=1.2, label=label)
        left.set(xlabel="steps of the generator", ylabel="loss")
        right.plot(curve["step"], curve["gap"], color=COLOURS[0], linewidth=1.2, label="D(real) − D(fake)")
        if "spread" in curve:
            part = curve.dropna(subset="spread")
            right.plot(
                part["step"],
                part["spread"],
                color=COLOURS[2],
                marker="o",
                markersize=3,
                label="spread of images, of real ones",
            )
        right.set(xlabel="steps of the generator")
        for axes in (left, right):
            axes.legend(frameon=False, fontsize=8)
    return figure


def _strips(path: Path) -> dict[int, Image.Image]:
    """A picture per step, images of the same seeds side by side; of many steps, some."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            steps, images = archive["steps"], archive["images"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} must hold the pictures of a generator's training, but {error!r} came up; train it again."
        ) from error
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(_MOST_STRIPS, len(steps))).round().astype(int))
    return {int(steps[k]): _strip(images[k]) for k in chosen}


def _strip(images: NDArray[np.uint8]) -> Image.Image:
    n, height, width, channels = images.shape
    row = images.transpose(1, 0, 2, 3).reshape(height, n * width, channels)
    return Image.fromarray(row[..., 0] if channels == 1 else row)
