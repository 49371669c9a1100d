"""The board in the report: papers, claims, numbers of theirs and ours, verdicts, and the figures behind them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from fewstep.app.stages.claims.board import read_board, spelled
from fewstep.pipeline.report.figures import COLOURS, FAINT, INK, MUTED, WIDTH, house_style
from fewstep.pipeline.report.images import data_uri
from fewstep.pipeline.report.numbers import count, number
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg

_COLOURS = {"holds": COLOURS[2], "does not hold": COLOURS[1], "undecided": COLOURS[7]}
_BADGES = {"holds": "yes", "does not hold": "no", "undecided": "tie", "out of scale": "scale"}

_PLURAL = {
    "holds": "hold",
    "does not hold": "do not hold",
    "undecided": "are undecided",
    "out of scale": "are out of scale",
}


def panel(folders: Sequence[Path], results: Results | None) -> Panel | None:
    """The board of the first folder."""
    folder = folders[0]
    board = read_board(folder)
    figures = {
        f"{paper['folder']}-{claim['name']}": forest_figure(claim)
        for paper in board["papers"]
        for claim in paper["claims"]
        if any(one["value"] is not None for one in claim["measurements"])
    }
    verdicts = Counter(claim["verdict"] for paper in board["papers"] for claim in paper["claims"])
    values = {
        "board": board,
        "badges": _BADGES,
        "verdicts": {verdict: verdicts[verdict] for verdict in _BADGES if verdicts[verdict]},
        "plural": _PLURAL,
        "spelled": spelled,
        "span": _span,
        "protocol": _protocol,
        "forest": {
            name: inline_svg(figure, name=f"claims-{name}", label="What was measured, against the bound.")
            for name, figure in figures.items()
        },
        "shown": {
            f"{paper['folder']}-{claim['name']}": Markup(data_uri(Image.open(file)))
            for paper in board["papers"]
            for claim in paper["claims"]
            if (file := folder / f"{paper['folder']}-{claim['name']}.png").is_file()
        },
    }
    return Panel(
        "What the papers claim, and what holds here", rendered(__name__, values), figures, _metrics(board)
    )


def _span(claim: Mapping[str, Any]) -> str:
    """From the least to the greatest of what was measured."""
    values = [one["value"] for one in claim["measurements"] if one["value"] is not None]
    if not values:
        return "open"
    return f"{number(min(values))} to {number(max(values))} {claim.get('unit', '')}".strip()


def _metrics(board: Mapping[str, Any]) -> dict[str, Any]:
    """The board as flat numbers and words, for `dvc metrics` and MLflow."""
    flat: dict[str, Any] = {}
    for paper in board["papers"]:
        for claim in paper["claims"]:
            flat[f"{paper['folder']}.{claim['name']}"] = claim["verdict"]
            for i, one in enumerate(claim["measurements"]):
                if one["value"] is not None:
                    flat[f"{paper['folder']}.{claim['name']}.{i}"] = one["value"]
    counted = Counter(claim["verdict"] for paper in board["papers"] for claim in paper["claims"])
    names = {verdict: verdict.replace(" ", "_") for verdict in _BADGES}
    return {f"claims.{name}": counted[verdict] for verdict, name in names.items()} | flat


def forest_figure(claim: Mapping[str, Any]) -> Figure:
    """Each measurement of a claim with its interval, and the bound that decides."""
    measured = [one for one in claim["measurements"] if one["value"] is not None]
    criterion = claim["criterion"]
    bound = criterion.get("below", criterion.get("above"))
    with house_style():
        figure = Figure(figsize=(WIDTH, 0.75 + 0.3 * len(measured)))
        height = 0.3 * len(measured) / (0.75 + 0.3 * len(measured))
        axes = figure.add_axes((0.46, 0.5 / (0.75 + 0.3 * len(measured)), 0.5, height))
        axes.axvline(bound, color=INK, linewidth=1)
        for y, one in enumerate(measured):
            colour = _COLOURS[one["verdict"]]
            high = (
                one["value"] * 2 if one["high"] is None else one["high"]
            )  # no bound: as far as there is room
            axes.plot([one["low"], high], [y, y], color=colour, linewidth=2)
            axes.plot([one["value"]], [y], color=colour, marker="o")
        axes.set_yticks(range(len(measured)), [one["what"] for one in measured])
        axes.set_ylim(len(measured) - 0.5, -0.5)
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
        side = "left" if "below" in criterion else "right"
        unit = f" ({claim['unit']})" if claim.get("unit") else ""
        axes.set_xlabel(
            f"{claim['metric'].replace('_', ' ')}{unit}; it holds {side} of the line", color=MUTED
        )
    return figure


def _protocol(claim: Mapping[str, Any]) -> str:
    """How a claim was judged, in words."""
    criterion = claim["criterion"]
    side, bound = next(iter(criterion.items()))
    images = {one["n"] for one in claim["measurements"] if one["n"] is not None}
    n = f"; N = {', '.join(map(count, sorted(images)))}" if images else ""
    return (
        f"run {claim['run']}, stage {claim['stage']}, {claim['metric']}; holds where all intervals, which hold jointly "
        f"with 95 %, lie {side} {bound:g}{n}"
    )
