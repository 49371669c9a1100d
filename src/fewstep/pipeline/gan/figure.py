"""Distance over the training of generators, against each of its costs."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fewstep.pipeline.gan.curve import COST_LABELS
from fewstep.pipeline.report.figures import COLOURS, WIDTH, house_style


def distance_figure(curves: Mapping[str, Sequence[pd.DataFrame]]) -> Figure:
    """FD against wall minutes, discriminator steps and real images seen; several trainings of one name share a colour.

    Args:
        curves: Name -> trainings, from `cost_columns`.
    """
    with house_style():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        for axes, (cost, label) in zip(
            figure.subplots(1, len(COST_LABELS), sharey=True), COST_LABELS.items(), strict=True
        ):
            for (name, trainings), colour in zip(curves.items(), COLOURS * 2, strict=False):
                for i, training in enumerate(trainings):
                    part = training.dropna(subset="fd")
                    axes.plot(
                        part[cost],
                        part["fd"],
                        color=colour,
                        marker="o",
                        markersize=3,
                        linewidth=1.3,
                        label=name if i == 0 else None,
                    )
            axes.set(yscale="log", xlabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(_short))
        figure.axes[0].set_ylabel("FD of samples")
        figure.axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        figure.axes[0].yaxis.set_major_formatter(FuncFormatter(_short))
        figure.axes[0].yaxis.set_minor_locator(NullLocator())
        if len(curves) > 1:
            figure.axes[-1].legend(frameon=False, fontsize=8)
    return figure


def _short(value: float, _: int | None) -> str:
    """`500`, `1.5`, `64k`."""
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"
