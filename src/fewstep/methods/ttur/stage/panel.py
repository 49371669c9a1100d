"""Distances of disturbed images in the report."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from fewstep.methods.ttur.disturb import DISTURBANCES
from fewstep.methods.ttur.stage.run import PICTURE, read_disturbed, rising
from fewstep.pipeline.report.figures import COLOURS, MUTED, WIDTH, house_style
from fewstep.pipeline.report.images import data_uri
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg


def panel(folders: Sequence[Path], results: Results | None) -> Panel:
    """FD against the level of each disturbance, and the images."""
    record = read_disturbed(folders[0])
    with Image.open(folders[0] / PICTURE) as picture:
        shown = picture.copy()
    figure = Figure(figsize=(WIDTH, 2.6))
    with house_style():
        for i, kind in enumerate(DISTURBANCES):
            axes = figure.add_subplot(1, len(DISTURBANCES), i + 1)
            rows = rising(record, kind)
            levels = [row["level"] for row in rows]
            axes.fill_between(
                levels,
                [row["interval"][0] for row in rows],
                [row["interval"][1] for row in rows],
                color=COLOURS[0],
                alpha=0.2,
                linewidth=0,
            )
            axes.plot(levels, [row["value"] for row in rows], color=COLOURS[0], marker="o")
            axes.set_title(kind, color=MUTED, fontsize=10)
            axes.set_ylim(bottom=0)
        figure.subplots_adjust(left=0.07, right=0.99, top=0.88, bottom=0.12, wspace=0.45)
    values = {
        "record": record,
        "uri": data_uri(shown),
        "size": shown.size,
        "svg": inline_svg(figure, name="disturb", label="FD against the level of each disturbance."),
    }
    return Panel("Does the distance see what is wrong?", rendered(__name__, values), {"levels": figure})
