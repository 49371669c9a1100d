"""The figures of a report, drawn once with matplotlib: as files, and inline with the colours of the page.

Nothing here depends on the clock, the display or the user's matplotlib settings: equal rows give equal bytes.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from fewstep.pipeline.report.images import cells
from fewstep.pipeline.report.numbers import number
from fewstep.pipeline.report.results import Results, shown_lines

# Okabe and Ito's colour-blind-safe hues, darkened until text in them reads on white. A marker and a dash
# pattern go with each, so that no line is known by its colour alone. The page has lighter ones on dark.
COLOURS = ("#0067a5", "#b8430b", "#007a5a", "#9c3d7c", "#8a6400", "#1b7f9e", "#5b4bb3", "#6b6f76")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_DASHES = ("-", (0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), "-", (0, (6, 2)), (0, (1.5, 1.5)), "--")
INK, MUTED, FAINT = "#1c2127", "#5c6670", "#b9c0c7"
FONT = "DejaVu Sans"
WIDTH = 8.6  # inches
_CONTEXT = 0.9
TOP_RATIO = 6

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fewstep",
    "font.family": FONT,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.45,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


@dataclass(frozen=True)
class Line:
    """A highlighted sampler: the best of its family; own if it was made for the model."""

    family: str
    sampler: str
    grid: str
    own: bool
    colour: str
    marker: str
    dash: Any

    @property
    def label(self) -> str:
        """What stands at its end."""
        return f"{self.sampler}, {self.grid}"


def highlighted(results: Results) -> list[Line]:
    """One line per family, original plans and then the best family first, as many as there are colours.

    Plans of reduced width are left out: they trade quality for time, which is no matter of calls.
    """
    frame = results.frame[~results.frame["reduced_width"]]
    best = shown_lines(frame, "family", len(COLOURS))
    own = set(frame["sampler"][frame["own"]])
    rows = best[["family", "sampler", "grid"]].itertuples()
    return [
        Line(str(row.family), str(row.sampler), str(row.grid), row.sampler in own, colour, marker, dash)
        for row, colour, marker, dash in zip(rows, COLOURS, _MARKERS, _DASHES, strict=False)
    ]


def distance_figure(results: Results, lines: Sequence[Line], *, x: str = "nfe") -> Figure:
    """Fréchet distance against network calls (`x="nfe"`) or network time per image (`x="ms"`), both axes log.

    The lines have bands for their intervals and names at their ends; every other (sampler, grid) is a thin
    line of context; the distance between real images is a level.
    """
    frame = results.frame[results.frame["fd"].gt(0) & results.frame[x].gt(0)]
    with house_style():
        figure = Figure(figsize=(WIDTH, 5.0))
        axes = figure.add_axes((0.075, 0.1, 0.68, 0.86))
        axes.set(xscale="log", yscale="log")
        chosen = {(line.sampler, line.grid) for line in lines}
        for key, part in frame.groupby(["sampler", "grid"], sort=True):
            if key not in chosen:
                _draw_context(axes, part.sort_values("nfe"), x)
        ends: list[tuple[float, float, Line]] = []
        for i, line in enumerate(lines):
            part = frame[(frame["sampler"] == line.sampler) & (frame["grid"] == line.grid)].sort_values("nfe")
            if not part.empty:
                _draw_line(axes, part, x, line, order=20 - i)
                ends.append((float(part[x].iloc[-1]), float(part["fd"].iloc[-1]), line))
        if not frame.empty:
            _finish_axes(axes, frame, results, x)
        right = frame[x].max()
        ours = [end for end in ends if end[2].own and end[0] < right]
        for at, fd, line in ours:  # a line to the edge would cross all others
            off = 8 if fd >= results.baseline else -8  # away from the level of real images
            axes.annotate(
                line.sampler, (at, fd), xytext=(8, off), textcoords="offset points", color=line.colour,
                va="center", fontsize=9.5, gid=f"label-{line.family}",
            )  # fmt: skip
        _label_ends(axes, [end for end in ends if end not in ours])
    return figure


def _draw_context(axes: Axes, part: pd.DataFrame, x: str) -> None:
    axes.plot(part[x], part["fd"], color=FAINT, linewidth=_CONTEXT, zorder=1)
    for row in part.to_dict("records"):
        axes.plot(row[x], row["fd"], "o", color=FAINT, markersize=2.6, zorder=1, gid=_point_id(row))


def _draw_line(axes: Axes, part: pd.DataFrame, x: str, line: Line, *, order: int) -> None:
    low = part["fd_low"].clip(lower=part["fd"].min() * 1e-2)  # an interval may reach 0, a log axis may not
    axes.fill_between(
        part[x], low, part["fd_high"], color=line.colour, alpha=0.16, linewidth=0, zorder=2,
        gid=f"band-{line.family}",
    )  # fmt: skip
    axes.plot(
        part[x], part["fd"], color=line.colour, linestyle=line.dash, zorder=order, gid=f"line-{line.family}"
    )
    for row in part.to_dict("records"):
        axes.plot(row[x], row["fd"], line.marker, color=line.colour, zorder=order + 0.5, gid=_point_id(row))


def _point_id(row: Mapping[str, Any]) -> str:
    return f"point-{row['plan_hash']}"


def _finish_axes(axes: Axes, frame: pd.DataFrame, results: Results, x: str) -> None:
    axes.set_xlabel("network evaluations per image (NFE)" if x == "nfe" else "network milliseconds per image")
    axes.set_title(results.metric, loc="left", fontsize=10, color=MUTED)
    axes.margins(x=0.03)
    least = frame["fd"].min()
    bottom = min(least, results.baseline) if results.baseline > 0 else least
    axes.set_ylim(0.8 * bottom, top_of_axis(results))
    if x == "nfe":
        axes.xaxis.set_major_locator(FixedLocator(results.steps))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    narrow = frame["fd"].max() / frame["fd"].min() < 300
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if results.baseline > 0:
        axes.axhline(results.baseline, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=3)
        axes.annotate(
            f"real against real {number(results.baseline)}", (1, results.baseline),
            xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points", ha="right",
            fontsize=8.5, color=MUTED, zorder=4,
        )  # fmt: skip


def top_of_axis(results: Results) -> float:
    """The largest distance drawn: plans far from all use would flatten the differences that matter."""
    frame = results.frame[results.frame["fd"] > 0]
    fewest = frame[frame["nfe"] == frame["nfe"].min()]
    return float(min(frame["fd"].max() * 1.1, TOP_RATIO * fewest["fd"].min()))


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, Line]]) -> None:
    """Names right of the axes, at the heights of the ends, moved apart where they would overlap."""
    axes.autoscale_view()  # limits are settled lazily, and heights are relative to them
    transform = axes.transScale + axes.transLimits
    heights = [float(transform.transform((x, y))[1]) for x, y, _ in ends]
    for (x, y, line), placed in zip(ends, spread(heights, gap=0.048), strict=True):
        axes.annotate(
            line.label, (x, y), xytext=(1.035, placed), textcoords="axes fraction", color=line.colour,
            va="center", fontsize=9.5, annotation_clip=False, gid=f"label-{line.family}",
            arrowprops={
                "arrowstyle": "-", "color": line.colour, "alpha": 0.55, "linewidth": 0.8,
                "shrinkA": 2, "shrinkB": 5, "relpos": (0, 0.5),
            },
        )  # fmt: skip


def spread(positions: Sequence[float], *, gap: float) -> list[float]:
    """Move positions up or down as little as makes neighbours at least `gap` apart, in the same order.

    Blocks of touching positions are centred on the mean of what they hold (pool adjacent violators), then the
    whole is kept within [0, 1] where it fits.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    blocks: list[list[float]] = []  # of positions with the gaps before them taken away
    for rank, i in enumerate(order):
        blocks.append([positions[i] - rank * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [_mean(block) for block in blocks for _ in block]
    top = 1 - (len(order) - 1) * gap
    placed = [0.0] * len(order)
    for rank, i in enumerate(order):
        placed[i] = min(max(level[rank], 0.0), max(top, 0.0)) + rank * gap
    return placed


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def training_figure(log: pd.DataFrame) -> Figure:
    """Training loss by step: every logged value faint, a running median on top.

    Args:
        log: Columns step and loss.
    """
    smooth = log["loss"].rolling(max(3, len(log) // 40), center=True, min_periods=1).median()
    with house_style():
        figure = Figure(figsize=(WIDTH, 2.9))
        axes = figure.add_axes((0.075, 0.17, 0.9, 0.74))
        axes.plot(log["step"], log["loss"], color=FAINT, linewidth=0.7)
        axes.plot(log["step"], smooth, color=COLOURS[0])
        axes.set_xlabel("optimiser step")
        axes.set_title("training loss, with its running median", loc="left", fontsize=10, color=MUTED)
        if log["loss"].min() > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.margins(x=0.01)
    return figure


def samples_figure(strips: Mapping[str, Image.Image], *, columns: int, title: str) -> Figure:
    """Strips of `columns` images each under one another, names at the left; all strips have one size."""
    width, height = next(iter(strips.values())).size
    row = 6.2 * height / width
    tall = len(strips) * (row + 0.06) + 0.4
    with house_style():
        figure = Figure(figsize=(WIDTH, tall))
        figure.text(0.01, 1 - 0.12 / tall, title, va="top", color=MUTED)
        for i, (label, picture) in enumerate(strips.items()):
            bottom = 1 - (0.4 + (i + 1) * (row + 0.06)) / tall
            axes = figure.add_axes((2.3 / WIDTH, bottom, 6.2 / WIDTH, row / tall))
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            for edge in range(1, columns):
                axes.axvline(edge * width / columns - 0.5, color="white", linewidth=1.5)
            figure.text(0.01, bottom + row / tall / 2, label, va="center", fontsize=9)
    return figure


def prompts_figure(strips: Mapping[str, Image.Image], prompts: Sequence[str], *, title: str) -> Figure:
    """A row for each prompt, a column for each strip of as many images; all images have one size."""
    columns = {label: cells(strip, len(prompts)) for label, strip in strips.items()}
    first = next(iter(columns.values()))[0]
    wide = min(1.5, 6.4 / len(columns))
    high = wide * first.height / first.width
    tall = len(prompts) * (high + 0.06) + 1.1
    with house_style():
        figure = Figure(figsize=(2.4 + len(columns) * (wide + 0.06), tall))
        across = float(figure.get_figwidth())
        figure.text(0.01, 1 - 0.12 / tall, title, va="top", color=MUTED)
        for i, prompt in enumerate(prompts):
            middle = 1 - (1.1 + i * (high + 0.06) + high / 2) / tall
            figure.text(
                0.01, middle, textwrap.fill(textwrap.shorten(prompt, 120), 32), va="center", fontsize=8
            )
        for k, (label, images) in enumerate(columns.items()):
            left = (2.35 + k * (wide + 0.06)) / across
            figure.text(left, 1 - 1.02 / tall, label.replace(", ", "\n"), va="bottom", fontsize=7)
            for i, image in enumerate(images):
                bottom = 1 - (1.1 + i * (high + 0.06) + high) / tall
                axes = figure.add_axes((left, bottom, wide / across, high / tall))
                axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
                axes.set_axis_off()
    return figure


@contextmanager
def house_style() -> Iterator[None]:
    """Inside it figures are made and written as those of a report."""
    # matplotlib's own defaults first: a user's matplotlibrc must not change a report.
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)  # type: ignore[arg-type]  # the stubs want the literal names
        yield


def save(figure: Figure, path: Path) -> None:
    """Write `path` with .png and .svg, without dates."""
    with house_style():
        figure.savefig(path.with_suffix(".png"), dpi=200, facecolor="white", metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), facecolor="white", metadata={"Date": None, "Creator": None})


def page_colours() -> dict[str, str]:
    """The style-sheet variable behind each colour that the figures use, as they are on light paper."""
    return {"ink": INK, "muted": MUTED, "faint": FAINT} | {f"c{i}": c for i, c in enumerate(COLOURS)}
