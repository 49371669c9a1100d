"""The search for two learning rates in the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fewstep.checks import ConfigError, DataError
from fewstep.files import read_json
from fewstep.methods.ttur.stage.rates.command import CURVES, RECORD, TRAININGS, TRIALS
from fewstep.pipeline.gan.comparison import fd_ratio, read_table, summary
from fewstep.pipeline.gan.figure import distance_figure
from fewstep.pipeline.report.figures import COLOURS, WIDTH, house_style
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg

_BEST = "two rates"


def panel(folders: Sequence[Path], results: Results) -> Panel:
    """The comparison of the best pair of rates with single rates, and the search.

    Raises:
        DataError: A file is missing or damaged. ConfigError: there are several folders.
    """
    if len(folders) != 1:
        raise ConfigError(f"A report shows one search of learning rates, got {', '.join(map(str, folders))}.")
    (folder,) = folders
    record, trainings = read_json(folder / RECORD), read_table(folder / TRAININGS)
    curves, trials = read_table(folder / CURVES), read_table(folder / TRIALS)
    by_arm = {
        row["arm"]: [part for _, part in curves[curves["arm"] == row["arm"]].groupby("seed")]
        for row in summary(trainings)
    }
    figures = {"curves": distance_figure(by_arm), "rates": rates_figure(trials)}
    values = {
        "settings": record["settings"],
        "counts": record["counts"],
        "importance": record["importance"],
        "rows": [{**row, **record["arms"].get(row["arm"], {})} for row in summary(trainings)],
        "ratios": _ratios(trainings),
        "curves": inline_svg(
            figures["curves"],
            name="ttur-curves",
            label="FD against minutes, discriminator steps and images, a line for each training.",
        ),
        "rates": inline_svg(
            figures["rates"], name="ttur-rates", label="Both rates of every trial, by its FD."
        ),
    }
    return Panel("Two learning rates", rendered(__name__, values), figures)


def rates_figure(trials: pd.DataFrame) -> Figure:
    """Both rates of every trial, larger the better it was; single rates lie on the diagonal."""
    with house_style():
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        done = trials[trials["state"] == "complete"].assign(lr_d=lambda f: f["lr_g"] * f["ratio"])
        best = done["value"].min()
        for steps, colour, marker in ((1, COLOURS[0], "o"), (5, COLOURS[1], "s")):
            part = done[done["d_steps"] == steps]
            sizes = (200 * best / part["value"]).clip(lower=12)
            axes.scatter(
                part["lr_g"], part["lr_d"], s=sizes, color=colour, marker=marker, alpha=0.75, linewidths=0
            )
        ends = [min(done["lr_g"].min(), done["lr_d"].min()), max(done["lr_g"].max(), done["lr_d"].max())]
        axes.plot(ends, ends, linewidth=0.8, color=COLOURS[-1], linestyle="--")
        axes.set(
            xscale="log", yscale="log", xlabel="rate of the generator", ylabel="rate of the discriminator"
        )
        axes.legend(
            handles=[
                Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
                for colour, marker, label in (
                    (COLOURS[0], "o", "1 critic step"),
                    (COLOURS[1], "s", "5 critic steps"),
                )
            ],
            frameon=False,
            fontsize=8,
        )
    return figure


def _ratios(trainings: pd.DataFrame) -> list[dict[str, Any]]:
    """FD of the best pair over that of every other arm, where enough trainings of both have ended."""
    found = []
    for arm in trainings["arm"].unique():
        if arm == _BEST:
            continue
        try:
            found.append(fd_ratio(trainings, _BEST, arm)._asdict() | {"to": arm})
        except DataError:
            continue
    return found
