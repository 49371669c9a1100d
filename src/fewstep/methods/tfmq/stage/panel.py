"""What quantised plans lose and gain: the features of the time call by call, and distance against size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from fewstep.checks import DataError
from fewstep.pipeline.report.figures import COLOURS, INK, MUTED, WIDTH, house_style
from fewstep.pipeline.report.numbers import number
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results, difference
from fewstep.pipeline.report.svg import inline_svg
from fewstep.pipeline.report.words import interval
from fewstep.pipeline.samples import files_in
from fewstep.sampling.plan import Plan, load_plan

_DASHES = {"tfmq": "-", "table": (0, (6, 2)), "block": (0, (1.5, 1.5)), "naive": (0, (6, 2, 1.5, 2))}
_MARKERS = {"tfmq": "o", "table": "P", "block": "s", "naive": "D"}
METHODS = {"tfmq": "TFMQ", "table": "TFMQ, table", "block": "blocks", "naive": "nearest"}


def panel(folders: Sequence[Path], results: Results) -> Panel | None:
    """The quantised plans in the folders of the stage, with the distances of their certificates.

    Raises: DataError: a plan there says nothing of its quantisation.
    """
    plans = [load_plan(path) for path in files_in(folders, ".json")]
    if not plans:
        return None
    for plan in plans:
        _require_record(plan)
    plans.sort(key=lambda plan: (plan.nfe, _said(plan)["bits"], list(METHODS).index(_said(plan)["method"])))
    colours = dict(zip(dict.fromkeys(_said(plan)["bits"] for plan in plans), COLOURS, strict=False))
    nfe = max(plan.nfe for plan in plans)
    features = features_figure([plan for plan in plans if plan.nfe == nfe], colours)
    figures = {"features": features}
    sizes = None
    if any(results.row(plan.hash) for plan in plans):
        figures["sizes"] = size_figure(plans, colours, results)
        sizes = inline_svg(
            figures["sizes"], name="quantize-sizes", label="FD of each quantised plan against its size."
        )
    values = {
        "nfe": nfe,
        "features": inline_svg(
            features, name="quantize-features", label="Error of the temporal features at each network call."
        ),
        "sizes": sizes,
        "rows": [_row(plan, results) for plan in plans],
        "sentences": [_confusion(plans), *_polish(plans)],
    }
    return Panel("Few bits", rendered(__name__, values), figures)


def _require_record(plan: Plan) -> None:
    said = plan.provenance.get("quantize")
    wanted = {"bits", "method", "mse", "fits", "temporal", "bytes", "float_bytes"}
    if not isinstance(said, dict) or not wanted <= said.keys() or said["method"] not in METHODS:
        raise DataError(
            f"A plan in the folder of quantize must say how it was quantised; {plan.name} does not; quantise it again."
        )


def _said(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = plan.provenance["quantize"]
    return found


def _cosines(plan: Plan) -> list[tuple[int, float, bool]]:
    """Number of the call, mean error over classes, and whether all are nearest to their own call."""
    found: dict[int, list[tuple[float, bool]]] = {}
    for part in _said(plan)["temporal"]:
        calls = part["calls"]
        for call, cosine, nearest in zip(calls, part["cosine"], part["nearest"], strict=True):
            found.setdefault(call, []).append((cosine, calls[nearest] == call))
    return [
        (call, sum(c for c, _ in rows) / len(rows), all(own for _, own in rows))
        for call, rows in sorted(found.items())
    ]


def features_figure(plans: Sequence[Plan], colours: Mapping[str, str]) -> Figure:
    """1 - cosine between the temporal features in integers and in floats, at each call, of each plan."""
    with house_style():
        figure = Figure(figsize=(WIDTH, 3.6))
        axes = figure.add_axes((0.08, 0.14, 0.68, 0.78))
        axes.set(yscale="log")
        for plan in plans:
            said, rows = _said(plan), _cosines(plan)
            if said["method"] == "table":  # floats: no error
                continue
            calls, errors = [call + 1 for call, _, _ in rows], [max(error, 1e-9) for _, error, _ in rows]
            colour, dash = colours[said["bits"]], _DASHES[said["method"]]
            label = f"{said['bits']} {METHODS[said['method']]}"
            axes.plot(calls, errors, color=colour, linestyle=dash, label=label)
            taken = [(c, e) for (_, _, own), c, e in zip(rows, calls, errors, strict=True) if not own]
            if taken:
                axes.plot(*zip(*taken, strict=True), "x", color=INK, markersize=9)
        axes.set_xlabel("network call")
        axes.set_title("error of the temporal features, 1 - cosine", loc="left", fontsize=10, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8.5, frameon=False, labelcolor=MUTED
        )
    return figure


def size_figure(plans: Sequence[Plan], colours: Mapping[str, str], results: Results) -> Figure:
    """FD with its interval against the megabytes of weights, and the plans in floats that they were made from."""
    with house_style():
        figure = Figure(figsize=(WIDTH, 3.8))
        axes = figure.add_axes((0.08, 0.14, 0.68, 0.78))
        axes.set(xscale="log", yscale="log")
        named: set[str] = set()
        for plan in plans:
            said, row = _said(plan), results.row(plan.hash)
            if row is not None:
                label = f"{said['bits']} {METHODS[said['method']]}"
                _point(
                    axes, said["bytes"], row, colours[said["bits"]], _MARKERS[said["method"]], label, named
                )
        for parent, said in {plan.provenance["parents"][0]: _said(plan) for plan in plans}.items():
            row = results.row(parent)
            if row is not None:
                _point(axes, said["float_bytes"], row, INK, "*", "floats", named)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
            axis.set_minor_locator(NullLocator())
        axes.set_xlabel("megabytes of weights")
        axes.set_title(results.metric, loc="left", fontsize=10, color=MUTED)
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8.5, frameon=False, labelcolor=MUTED
        )
    return figure


def _point(
    axes: Axes, size: int, row: Mapping[str, Any], colour: str, marker: str, label: str, named: set[str]
) -> None:
    low, high = (row[f"fd_{end}"] for end in ("low", "high"))
    error = None if not high > low else [[row["fd"] - max(low, 0.5 * row["fd"])], [high - row["fd"]]]
    size_in_mb, title = size / 1e6, None if label in named else label
    axes.errorbar(size_in_mb, row["fd"], error, fmt=marker, color=colour, label=title, linewidth=0.9)
    named.add(label)


def _row(plan: Plan, results: Results) -> dict[str, Any]:
    """A plan in the table."""
    said, row = _said(plan), results.row(plan.hash)
    parent = results.row(plan.provenance["parents"][0])
    cosine = [error for _, error, _ in _cosines(plan)]
    differs = "–"
    if row is not None and parent is not None:
        value, (low, high) = (found := difference(row, parent)).value, found.interval
        differs = f"{number(value)} [{number(low)}, {number(high)}]"
    fits = said["fits"]
    return {
        "name": plan.name,
        "nfe": plan.nfe,
        "bits": said["bits"],
        "method": METHODS[said["method"]],
        "fd": "–" if row is None else interval(row, "fd"),
        "differs": differs,
        "mse": f"{said['mse']:.2g}",
        "plain": f"{fits['plain']['mse']:.2g}",
        "drift": f"{fits['drift']['mse']:.2g}" if "drift" in fits else "–",
        "refitted": fits["chosen"] != "plain",
        "cosine": f"{sum(cosine) / len(cosine):.1g}",
        "size": number(said["bytes"] / 1e6),
        "share": said["bytes"] / said["float_bytes"],
    }


def _confusion(plans: Sequence[Plan]) -> str:
    calls = [own for plan in plans for _, _, own in _cosines(plan)]
    wrong = sum(not own for own in calls)
    if not wrong:
        return f"At none of {len(calls)} calls are the features nearest to those of another call."
    return f"At {wrong} of {len(calls)} calls the features are nearest to those of another call (crosses)."


def _polish(plans: Sequence[Plan]) -> list[str]:
    moved = [plan for plan in plans if _said(plan)["fits"]["chosen"] != "plain"]
    if not moved:
        return ["Coefficients that were fitted again to the integers were in no case better for sure."]
    gains = [_said(p)["fits"]["plain"]["mse"] / _said(p)["mse"] for p in moved]
    return [
        f"Coefficients that were fitted again to the integers are better for sure in {len(moved)} of {len(plans)} "
        f"plans, whose squared distance to the images in floats falls by a factor of "
        f"{min(gains):.2f} to {max(gains):.2f}."
    ]
