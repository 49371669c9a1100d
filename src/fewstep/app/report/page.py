"""The report page: one file of HTML with its style, script, figures and sample images inside."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup
from PIL import Image

from fewstep.app.report.headline import headline
from fewstep.pipeline.report import figures
from fewstep.pipeline.report.images import cells, data_uri
from fewstep.pipeline.report.numbers import count, number
from fewstep.pipeline.report.panel import Panel, beside, rendered
from fewstep.pipeline.report.results import Results, reference_row, shown_lines, winners
from fewstep.pipeline.report.svg import inline_svg
from fewstep.pipeline.report.words import flatten, tooltip

# The same hues as on paper, light enough to read on dark.
_DARK = {
    "ink": "#e6e9ec", "muted": "#a3adb6", "faint": "#4b545d",
    "c0": "#5aaeea", "c1": "#f0854d", "c2": "#3fc39b", "c3": "#dd8abf", "c4": "#d9ae3c", "c5": "#64c4dd",
    "c6": "#a79af0", "c7": "#a9afb6",
}  # fmt: skip
MATRIX_ROWS = 24


@dataclass(frozen=True)
class Strips:
    """The sample images of one number of evaluations: (row of the table, strip) from best to worst."""

    nfe: int
    rows: Sequence[tuple[Mapping[str, Any], Image.Image]]


@dataclass(frozen=True)
class Samples:
    """All strips, the seeds of their columns, the strip that they are compared with, and a prompt a seed, or none."""

    strips: Sequence[Strips]
    seeds: Sequence[int]
    reference: tuple[Mapping[str, Any], Image.Image] | None
    prompts: Sequence[str] = ()


@dataclass(frozen=True)
class Background:
    """What the page says of the run beside the certificates; everything may be missing.

    Attributes:
        card: The model card.
        training: Columns step and loss of the training log.
    """

    card: Mapping[str, Any] | None = None
    training: pd.DataFrame | None = None


def render(
    results: Results,
    *,
    run: str,
    samples: Samples,
    background: Background,
    panels: Mapping[str, Panel],
) -> str:
    """The page as text, with panels by name of their stage; it names no address that a browser would load."""
    lines = figures.highlighted(results)
    rows = results.frame.to_dict("records")
    titles = {f"point-{row['plan_hash']}": tooltip(row) for row in rows}
    has_ms = bool(results.frame["ms"].gt(0).any())
    values = {
        "run": run,
        "results": results,
        "style": Markup(beside(__name__, "css")),
        "script": Markup(beside(__name__, "js")),
        "light": figures.page_colours(),
        "dark": _DARK,
        "headline": headline(results),
        "winners": winners(results),
        "panels": panels,
        "reference": reference_row(results),
        "matrix": _matrix(results),
        "matrix_hidden": max(0, results.frame["sampler"].nunique() - MATRIX_ROWS),
        "rows": rows,
        "has_kid": bool(results.frame["kid"].notna().any()),
        "has_precision": bool(results.frame["precision"].notna().any()),
        "has_ms": has_ms,
        "fd_figure": _svg(results, lines, titles, x="nfe"),
        "ms_figure": _svg(results, lines, titles, x="ms") if has_ms else None,
        "highlighted": {(line.sampler, line.grid) for line in lines},
        "samples": samples,
        "training": None if background.training is None else _training_svg(background.training),
        "uri": data_uri,
        "cells": cells,
        "seeds": _seeds(samples.seeds),
        "off_chart": off_chart(results),
        "paired": all(row["resampling"] is not None for row in rows),
        "protocol": _protocol(results),
        "costs": _costs(results),
        "environments": [flatten(environment) for environment in results.environments],
        "card": flatten(background.card or {}),
    }
    return rendered(__name__, values).rstrip() + "\n"


def render_panels(*, run: str, panels: Mapping[str, Panel]) -> str:
    """The page of a run that has no plans of its own, as text: its panels alone."""
    values = {
        "run": run,
        "style": Markup(beside(__name__, "css")),
        "script": Markup(beside(__name__, "js")),
        "light": figures.page_colours(),
        "dark": _DARK,
        "panels": panels,
    }
    return rendered(f"{__package__}.panels", values).rstrip() + "\n"


def _svg(results: Results, lines: Sequence[figures.Line], titles: Mapping[str, str], *, x: str) -> Markup:
    against = "network evaluations" if x == "nfe" else "network milliseconds per image"
    label = f"{results.metric} against {against}"
    return inline_svg(
        figures.distance_figure(results, lines, x=x),
        name=x,
        label=f"{label}, logarithmic axes; the values are in the leaderboard below.",
        titles=titles,
    )


def _training_svg(log: pd.DataFrame) -> Markup:
    last = number(float(log["loss"].iloc[-1]))
    label = f"Training loss over {int(log['step'].iloc[-1])} steps; the last value is {last}."
    return inline_svg(figures.training_figure(log), name="training", label=label)


def _matrix(results: Results) -> list[dict[str, Any]]:
    """One row per sampler on its best grid, best first; a cell per NFE with its ratio to that NFE's best."""
    cells: dict[tuple[str, str, int], dict[str, Any]] = {}
    for nfe in results.steps:
        rows = results.at(nfe).to_dict("records")
        for row in reversed(rows):  # of plans with one name and NFE the best is kept
            ratio = row["fd"] / rows[0]["fd"] if rows[0]["fd"] > 0 else 1.0
            cells[row["sampler"], row["grid"], nfe] = {"row": row, "ratio": ratio, "shade": _shade(ratio)}
    lines = shown_lines(results.frame, "sampler", MATRIX_ROWS).to_dict("records")
    return [
        line | {"cells": [cells.get((line["sampler"], line["grid"], nfe)) for nfe in results.steps]}
        for line in lines
    ]


def _shade(ratio: float) -> int:
    """Percent of tint: 100 at the best, 0 from twice the best on."""
    return round(100 * max(0.0, 1 - math.log2(ratio)))


def _protocol(results: Results) -> dict[str, str]:
    facts = {"metric": results.metric, "model": results.model, "data": results.data} | results.protocol
    real = {} if math.isnan(results.baseline) else {"real against real": number(results.baseline)}
    return flatten(facts) | real


def _costs(results: Results) -> dict[str, str]:
    frame = results.frame
    images = len(frame) * int(results.protocol["n"])
    facts = {
        "certificates": count(len(frame)),
        "samplers": count(frame["sampler"].nunique()),
        "grids": ", ".join(sorted(set(frame["grid"]))),
        "evaluations per image": ", ".join(map(str, results.steps)),
        "images drawn": count(images),
        "device": ", ".join(sorted(set(frame["device"]))),
    }
    seconds = frame["seconds"].sum(min_count=1)
    return facts | ({} if math.isnan(seconds) else {"sampling time": _duration(float(seconds))})


def off_chart(results: Results) -> int:
    """How many plans lie above the figures."""
    return int(results.frame["fd"].gt(figures.top_of_axis(results)).sum())


def _seeds(seeds: Sequence[int]) -> str:
    consecutive = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if consecutive else ", ".join(map(str, seeds))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
