"""How well generated images are distinguished from real ones, against the distance of their sampler."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from fewstep.checks import ConfigError, DataError
from fewstep.methods.multilid.stage.record import (
    POOLED,
    PUBLISHED,
    Detection,
    agreement,
    leak,
    read_detection,
    sentences,
)
from fewstep.pipeline.report.figures import COLOURS, FAINT, MUTED, WIDTH, house_style
from fewstep.pipeline.report.numbers import number, percent
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg

_MEASURES = {"accuracy": "accuracy minus null control", "auroc": "AUROC minus null control"}
_NAME_SIGNS = 34
_DARKEST = 0.7
_ROW = 0.34


def panel(folders: Sequence[Path], results: Results) -> Panel:
    """The detection in the folder of the stage; distances are those of the certificates.

    Raises:
        DataError: The folder holds no detection, or a damaged one, or one of samples of another model.
        ConfigError: There are several folders.
    """
    if len(folders) != 1:
        raise ConfigError(f"A report shows one detection, got {', '.join(map(str, folders))}.")
    detection = read_detection(folders[0])
    table = _with_distances(detection, results)
    measured = table[table["fd"] > 0]
    confusion = confusion_figure(detection)
    figures = {"confusion": confusion}
    distance = None
    if len(measured):
        figures["distance"] = distance_figure(measured, results)
        distance = _distance_svg(figures["distance"], measured)
    values = {
        "sentences": [*sentences(detection), *agreement(list(measured["auroc"]), list(measured["fd"]))],
        "rows": [
            _row(detection, row) for row in table.sort_values("auroc", ascending=False).to_dict("records")
        ],
        "leaks": _leaks(detection),
        "depends_on": _facts(detection.record),
        "distance": distance,
        "confusion": inline_svg(
            confusion, name="detect-confusion", label="Which class images were assigned to."
        ),
    }
    return Panel("Detection", rendered(__name__, values), figures)


def _with_distances(detection: Detection, results: Results) -> pd.DataFrame:
    """Generators under the protocol that counts, with the distance of their certificates, or NaN."""
    generators = detection.record["generators"]
    for one in generators:
        if one["model"] not in results.models:
            raise DataError(
                f"The detection must be of samples of the certified model {results.model.get('fingerprint')}, but "
                f"{one['name']} is of {one['model']}; name another folder."
            )
    distances = dict(zip(results.frame["plan_hash"], results.frame["fd"], strict=True))
    table = detection.headline().merge(pd.DataFrame(generators), left_on="generator", right_on="name")
    table["fd"] = table["plan_hash"].map(distances)
    return table


def _distance_svg(figure: Figure, measured: pd.DataFrame) -> Markup:
    titles = {
        f"point-{what}-{row['plan_hash']}": _title(row, what)
        for row in measured.to_dict("records")
        for what in _MEASURES
    }
    return inline_svg(
        figure,
        name="detect-distance",
        titles=titles,
        label="How well images are distinguished from real ones, above the null control, against the FD of their "
        "sampler.",
    )


def _title(row: Mapping[str, Any], what: str) -> str:
    name = f"{what}_minus_null"
    return (
        f"{row['generator']}: FD {number(row['fd'])}, {_MEASURES[what]} {percent(row[name])} points "
        f"[{percent(row[f'{name}_low'])}, {percent(row[f'{name}_high'])}]"
    )


def _row(detection: Detection, row: Mapping[str, Any]) -> dict[str, str]:
    head = detection.record["protocol"]["headline"]

    def accuracy(**wanted: str) -> str:
        found = detection.rows(generator=row["generator"], classifier=head["classifier"], **wanted)
        return percent(found["accuracy"].iloc[0]) if len(found) else "–"

    network, fair = head["network"], head["protocol"]
    untrained = [one["id"] for one in detection.record["protocol"]["networks"][1:]]
    low, high = percent(row["accuracy_minus_null_low"]), percent(row["accuracy_minus_null_high"])
    return {
        "generator": row["generator"],
        "nfe": str(row["nfe"]),
        "fd": number(row["fd"]),
        "accuracy": percent(row["accuracy"]),
        "null": percent(row["null_accuracy"]),
        "minus_null": f"{percent(row['accuracy_minus_null'])} [{low}, {high}]",
        "auroc": f"{row['auroc']:.3f}",
        "tpr": percent(row["tpr"]),
        "ratios": accuracy(network=network, features="multilid", protocol=fair),
        "lid": accuracy(network=network, features="lid", protocol=fair),
        "pooled": accuracy(features=POOLED),
        "untrained": accuracy(network=untrained[0], protocol=fair) if untrained else "–",
        "published": accuracy(network=network, protocol=PUBLISHED),
    }


def _leaks(detection: Detection) -> list[dict[str, str]]:
    return [
        {
            "network": row["network"],
            "classifier": row["classifier"],
            "accuracy": f"{percent(row['accuracy'])} "
            f"[{percent(row['accuracy_low'])}, {percent(row['accuracy_high'])}]",
            "auroc": f"{row['auroc']:.3f}",
        }
        for row in leak(detection).to_dict("records")
    ]


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    protocol, data = record["protocol"], record["data"]
    head = protocol["headline"]
    return {
        "images": f"{protocol['images']} of each plan, {data['n_real']} real, {data['n_null']} for the null control",
        "bank": f"{data['n_bank']} other real images of {data['name']}; {protocol['k']} nearest",
        "byte values": f"{data['levels']} in real images; generated ones are "
        f"{'rounded to them' if protocol['same_levels'] else 'as they are'}",
        "layers": f"{', '.join(protocol['networks'][0]['layers'])} of {head['network']}{_trained_on(data)}",
        "classifier": f"{head['classifier']}; {protocol['folds']} folds, repeated {protocol['repeats']} times",
        "intervals": f"{100 * protocol['level']:g} %: {protocol['intervals']}",
        "images of the bank among others": ", ".join(
            f"{name} {n}"
            for name, n in [
                *data["equal_to_bank"].items(),
                *((one["name"], one["equal_to_bank"]) for one in record["generators"]),
            ]
            if n
        )
        or "none",
    }


def _trained_on(data: Mapping[str, Any]) -> str:
    share = data["trained_on"]
    return f", which was trained on {percent(share)} % of all images of {data['name']}" if share else ""


def distance_figure(measured: pd.DataFrame, results: Results) -> Figure:
    """Accuracy and AUROC above the null control against Fréchet distance, with intervals, one mark per generator."""
    with house_style():
        figure = Figure(figsize=(WIDTH, 3.9))
        samplers = list(dict.fromkeys(measured.sort_values("fd")["sampler"]))
        for i, (what, title) in enumerate(_MEASURES.items()):
            axes = figure.add_axes((0.075 + 0.49 * i, 0.14, 0.42, 0.74))
            axes.set(xscale="log")
            axes.axhline(0, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
            for row in measured.to_dict("records"):
                _mark(axes, row, what, COLOURS[samplers.index(row["sampler"]) % len(COLOURS)])
            _finish(axes, title, results)
        axes.legend(
            handles=[_handle(axes, s, COLOURS[i % len(COLOURS)]) for i, s in enumerate(samplers[: len(COLOURS)])],
            loc="upper left", fontsize=8.5, frameon=False, labelcolor=MUTED,
        )  # fmt: skip
    return figure


def _mark(axes: Axes, row: Mapping[str, Any], what: str, colour: str) -> None:
    name = f"{what}_minus_null"
    axes.plot([row["fd"]] * 2, [row[f"{name}_low"], row[f"{name}_high"]], color=colour, linewidth=1, zorder=2)
    axes.plot(row["fd"], row[name], "o", color=colour, zorder=3, gid=f"point-{what}-{row['plan_hash']}")


def _handle(axes: Axes, sampler: str, colour: str) -> Any:
    return axes.plot([], [], "o", color=colour, label=sampler)[0]


def _finish(axes: Axes, title: str, results: Results) -> None:
    axes.set_xlabel(results.metric)
    axes.set_title(title, loc="left", fontsize=10, color=MUTED)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=""))


def confusion_figure(detection: Detection) -> Figure:
    """Shares of each class that were assigned to each class, in percent; rows sum to 100."""
    identified = detection.record["identification"]
    shares, names = np.array(identified["confusion"]), [_short(name) for name in identified["classes"]]
    n = len(names)
    with house_style():
        rows = _ROW * n  # inches, as are the margins: a tenth below, room for numbers and title above
        figure = Figure(figsize=(WIDTH, rows + 0.8))
        height = figure.get_figheight()
        axes = figure.add_axes((0.34, 0.1 / height, 0.62, rows / height))
        axes.grid(False)
        axes.set(xlim=(0, n), ylim=(n, 0))
        for (i, j), share in np.ndenumerate(shares):
            # never so dark that the figure in it could not be read, on light paper and on dark
            axes.add_patch(Rectangle((j, i), 1, 1, facecolor=COLOURS[0], alpha=_DARKEST * share, linewidth=0))
            axes.text(
                j + 0.5, i + 0.5, f"{100 * share:.0f}", ha="center", va="center", fontsize=9 if n <= 12 else 6.5
            )  # fmt: skip
        numbered = [f"{name}  {i}" for i, name in enumerate(names, 1)]
        axes.set_yticks(np.arange(n) + 0.5, numbered, fontsize=8.5)
        axes.set_xticks(np.arange(n) + 0.5, [str(i) for i in range(1, n + 1)], fontsize=8.5)
        axes.xaxis.tick_top()
        for side in axes.spines.values():
            side.set_color(FAINT)
        chance = f"chance is {percent(identified['chance'])} %"
        axes.set_title(
            f"assigned to class, % of the images of a row; {chance}", loc="left", fontsize=10, color=MUTED
        )
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _NAME_SIGNS else f"{name[: _NAME_SIGNS - 1]}…"
