"""ViTGAN's ablations in the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from fewstep.checks import ConfigError, DataError
from fewstep.files import read_json
from fewstep.methods.vitgan.stage.command import CURVES, RECORD, TRAININGS
from fewstep.pipeline.gan.comparison import fd_ratio, read_table, summary
from fewstep.pipeline.gan.figure import distance_figure
from fewstep.pipeline.report.figures import COLOURS, WIDTH, house_style
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg


def panel(folders: Sequence[Path], results: Results) -> Panel:
    """All variants, their distance over the training, and the growth of the Jacobian of attention.

    Raises:
        DataError: A file is missing or damaged. ConfigError: there are several folders.
    """
    if len(folders) != 1:
        raise ConfigError(f"A report shows the ablations once, got {', '.join(map(str, folders))}.")
    (folder,) = folders
    record, trainings = read_json(folder / RECORD), read_table(folder / TRAININGS)
    curves = read_table(folder / CURVES)
    rows = summary(trainings)
    by_arm = {
        row["arm"]: [part for _, part in curves[curves["arm"] == row["arm"]].groupby("seed")] for row in rows
    }
    figures = {"curves": distance_figure(by_arm), "jacobian": jacobian_figure(record["jacobian"])}
    values = {
        "settings": record["settings"]["vitgan"],
        "rows": [{**row, "ratio": _ratio(trainings, row["arm"])} for row in rows],
        "curves": inline_svg(
            figures["curves"],
            name="vitgan-curves",
            label="FD against minutes, discriminator steps and images, a line for each training.",
        ),
        "jacobian": inline_svg(
            figures["jacobian"], name="vitgan-jacobian", label="Norm of the Jacobian of attention by scale."
        ),
    }
    return Panel("ViTGAN, part by part", rendered(__name__, values), figures)


def jacobian_figure(norms: Mapping[str, Any]) -> Figure:
    """Spectral norm of the Jacobian against the scale of the inputs, a line for each random attention."""
    with house_style():
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        for kind, label, colour in (("dot", "dot products", COLOURS[1]), ("l2", "distances", COLOURS[0])):
            for i, line in enumerate(norms[kind]):
                axes.plot(
                    norms["scales"], line, color=colour, marker="o", markersize=3, label=None if i else label
                )
        axes.set(
            xscale="log", yscale="log", xlabel="factor on the inputs", ylabel="spectral norm of the Jacobian"
        )
        axes.legend(frameon=False, fontsize=8)
    return figure


def _ratio(trainings: pd.DataFrame, arm: str) -> dict[str, Any] | None:
    """FD of a variant over that of the whole; None for the whole, or where too few trainings have ended."""
    if arm == "full":
        return None
    try:
        return fd_ratio(trainings, arm, "full")._asdict()
    except DataError:
        return None
