"""The report page: one file of HTML with its style, script, figures and sample images inside."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, FunctionLoader, StrictUndefined
from PIL import Image

from fewstep.pipeline.report import figures
from fewstep.pipeline.report.images import data_uri
from fewstep.pipeline.report.results import (
    Results,
    calls_to_match,
    number,
    reference_row,
    shown_lines,
    winners,
)

if TYPE_CHECKING:
    from fewstep.app.stages.compose.panel import CompositionPanel
    from fewstep.methods.multilid.stage.panel import DetectionPanel
    from fewstep.methods.s3.stage.panel import SearchPanel

# The same hues as on paper, light enough to read on dark.
_DARK = {
    "ink": "#e6e9ec", "muted": "#a3adb6", "faint": "#4b545d",
    "c0": "#5aaeea", "c1": "#f0854d", "c2": "#3fc39b", "c3": "#dd8abf", "c4": "#d9ae3c", "c5": "#64c4dd",
    "c6": "#a79af0", "c7": "#a9afb6",
}  # fmt: skip
MATRIX_ROWS = 24


@dataclass(frozen=True)
class Panel:
    """The sample images of one number of evaluations: (row of the table, strip) from best to worst."""

    nfe: int
    rows: Sequence[tuple[Mapping[str, Any], Image.Image]]


@dataclass(frozen=True)
class Samples:
    """All panels, the seeds of their columns, and the strip that each panel is compared with."""

    panels: Sequence[Panel]
    seeds: Sequence[int]
    reference: tuple[Mapping[str, Any], Image.Image] | None


@dataclass(frozen=True)
class Background:
    """What is told about the run beside the certificates; everything may be missing.

    Attributes:
        card: The model card.
        training: Columns step and loss of the training log.
        settings: The resolved settings of the run.
    """

    card: Mapping[str, Any] | None = None
    training: pd.DataFrame | None = None
    settings: Mapping[str, Any] | None = None


def render(
    results: Results,
    *,
    run: str,
    samples: Samples,
    background: Background,
    searches: Sequence["SearchPanel"] = (),
    composition: "CompositionPanel | None" = None,
    detection: "DetectionPanel | None" = None,
) -> str:
    """The page as text; it names no address that a browser would load."""
    lines = figures.highlighted(results)
    titles = {f"point-{row['plan_hash']}": tooltip(row) for row in results.frame.to_dict("records")}
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": _percent, "count": count, "ratio": ratio}
    page = environment.get_template("page.html.j2").render(
        run=run,
        results=results,
        style=_asset("page.css"),
        script=_asset("page.js"),
        light=figures.page_colours(),
        dark=_DARK,
        headline=headline(results),
        winners=winners(results),
        searches=searches,
        composition=composition,
        detection=detection,
        searched_nfe=min(
            (s.nfe for s in searches), key=lambda n: abs(n - results.headline_nfe), default=None
        ),
        reference=reference_row(results),
        matrix=_matrix(results),
        matrix_hidden=max(0, results.frame["sampler"].nunique() - MATRIX_ROWS),
        rows=results.frame.to_dict("records"),
        has_kid=bool(results.frame["kid"].notna().any()),
        has_precision=bool(results.frame["precision"].notna().any()),
        has_ms=bool(results.frame["ms"].gt(0).any()),
        fd_figure=_svg(results, lines, titles, x="nfe"),
        ms_figure=_svg(results, lines, titles, x="ms") if results.frame["ms"].gt(0).any() else None,
        highlighted={(line.sampler, line.grid) for line in lines},
        samples=samples,
        training=None if background.training is None else _training_svg(background.training),
        uri=data_uri,
        seeds=_seeds(samples.seeds),
        off_chart=off_chart(results),
        paired=all(row is not None for row in results.frame["resampling"]),
        protocol=_protocol(results),
        costs=_costs(results),
        environments=[flatten(environment) for environment in results.environments],
        card=flatten(background.card or {}),
        settings=flatten(background.settings or {}),
    )
    return page.rstrip() + "\n"


def headline(results: Results) -> list[str]:
    """The answer in a few sentences."""
    nfe = results.headline_nfe
    entry = next(entry for entry in winners(results) if entry["nfe"] == nfe)
    best, reference = entry["best"], reference_row(results)
    own = entry["own"]
    ours = best is own
    if ours:
        what = "a plan made for this model is best" + (
            f", {best['sampler']}" if "+" in best["sampler"] else ""
        )
    elif entry["candidates"] > 1:
        what = f"the best known sampler is {describe(best)}"
    else:
        what = f"there is one sampler, {describe(best)}"
    sentences = [f"At {nfe} evaluations {what}: FD {interval(best, 'fd')}."]
    if own is not None and not math.isnan(own["of_preset"]):
        start = "Its FD is" if ours else f"The best such plan's FD, {interval(own, 'fd')}, is"
        sentences.append(f"{start} {of_preset(own, entry['preset'])}.")
    if entry["ties"]:
        sentences.append(f"{entry['ties']} of {entry['candidates'] - 1} other plans cannot be told from it.")
    if reference["nfe"] > nfe and reference["sampler"] != best["sampler"]:
        calls = calls_to_match(results, best, reference)
        target = f"{reference['sampler']} at {reference['nfe']} (FD {number(reference['fd'])})"
        if calls is None:
            searched = "searched for" if ours else "measured"
            sentences.append(f"It does not reach {target} within the evaluations {searched}.")
        else:
            who = "Such a plan" if ours else "It"
            sentences.append(f"{who} needs {calls} evaluations to match {target}.")
    if not math.isnan(results.baseline):
        sentences.append(f"Equally many real images are at FD {number(results.baseline)}.")
    return sentences


def of_preset(row: Mapping[str, Any], preset: Mapping[str, Any]) -> str:
    """`0.45 of the best preset's (dpmpp-2m on uniform-t, 23.2), certain`, for a plan made for the model."""
    how = "certain" if row["certain"] else "a difference that may be chance"
    return f"{row['of_preset']:.2f} of the best preset's ({describe(preset)}, {number(preset['fd'])}), {how}"


def describe(row: Mapping[str, Any]) -> str:
    """Sampler and grid in words."""
    return f"{row['sampler']} on {row['grid']}"


def interval(row: Mapping[str, Any], column: str) -> str:
    """`3.12 [2.91, 3.33]`; the value alone when its interval has no width."""
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    if not high > low:
        return number(row[column])
    return f"{number(row[column])} [{number(low)}, {number(high)}]"


def tooltip(row: Mapping[str, Any]) -> str:
    """What a point of a figure says when it is pointed at."""
    text = f"{describe(row)}, NFE {row['nfe']}: FD {interval(row, 'fd')}"
    return text if math.isnan(row["ms"]) else f"{text}, {number(row['ms'])} ms per image"


def flatten(value: Any, name: str = "") -> dict[str, str]:
    """Nested mappings as dotted names and printable values."""
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        for key, below in value.items():
            flat |= flatten(below, f"{name}.{key}" if name else str(key))
        return flat
    if isinstance(value, list | tuple):
        return {name: ", ".join(map(str, value))}
    return {name: f"{value:.6g}" if isinstance(value, float) else str(value)}


def _svg(results: Results, lines: Sequence[figures.Line], titles: Mapping[str, str], *, x: str) -> str:
    against = "network evaluations" if x == "nfe" else "network milliseconds per image"
    label = f"{results.metric} against {against}"
    return figures.inline_svg(
        figures.distance_figure(results, lines, x=x),
        name=x,
        label=f"{label}, logarithmic axes; the values are in the leaderboard below.",
        titles=titles,
    )


def _training_svg(log: pd.DataFrame) -> str:
    last = number(float(log["loss"].iloc[-1]))
    label = f"Training loss over {int(log['step'].iloc[-1])} steps; the last value is {last}."
    return figures.inline_svg(figures.training_figure(log), name="training", label=label)


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


def count(value: float) -> str:
    """Whole numbers with their thousands apart; a dash for no value."""
    if math.isnan(value):
        return "–"
    return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def ratio(value: float) -> str:
    """`0.45×`; a dash for no value."""
    return "–" if math.isnan(value) else f"{value:.2f}×"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
