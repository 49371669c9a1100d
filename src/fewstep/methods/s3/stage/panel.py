"""What a search found and how, for each number of calls: its curves, its plan as a picture, its numbers."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fewstep.checks import DataError
from fewstep.methods.s3.stage.record import Finalist, FinishedSearch, Point, SearchRecord, read_searches
from fewstep.pipeline.report.figures import COLOURS, FAINT, MUTED, WIDTH, house_style
from fewstep.pipeline.report.numbers import count, number
from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.plan_figure import plan_figure
from fewstep.pipeline.report.results import Results, winners
from fewstep.pipeline.report.svg import inline_svg
from fewstep.pipeline.report.words import flatten, in_fitted, interval, of_preset
from fewstep.pipeline.samples import parse_seeds
from fewstep.sampling.plan import Plan

BARS = 10
ENDS = ("complete", "pruned", "disqualified", "lost")
PURPOSES = (
    "presets",
    "trials",
    "validation",
    "polish",
    "memory",
    "finalists",
)  # of calls and seeds, in order of time
STEPS = [1, 2, 5, 10]  # between ticks, times a power of ten
TIERS = {"trajectory": "distance to fine solutions", "frechet": "distance between sets of images"}

_DECISIONS = {
    "gap": "length", "scale": "scales", "order": "order", "points": "order", "pred": "prediction",
    "corr": "corrector", "corr_scale": "corrector", "first_step": "first step", "end": "time of the last call",
}  # fmt: skip


@dataclass(frozen=True)
class _Shown:
    """What the panel shows of one search.

    Attributes:
        nfe: network calls of the plans.
        sentences: the outcome in words.
        finalists: name, error, FD and whether it was chosen, best first.
        has_fd: whether finalists were compared by FD.
        images: how many those images were that the winner was measured on.
        facts: counts, costs and seeds.
        unseen: whether no image of the report had a part in the search.
        settings: those of the search.
        curves: the figure of the search, for the page.
        plan: the figure of the plan, for the page.
        figures: both, by name of the file.
    """

    nfe: int
    sentences: Sequence[str]
    finalists: Sequence[Mapping[str, Any]]
    has_fd: bool
    images: int
    facts: Mapping[str, str]
    unseen: bool
    settings: Mapping[str, str]
    curves: Markup
    plan: Markup
    figures: Mapping[str, Figure]


def panel(folders: Sequence[Path], results: Results) -> Panel:
    """The searches that stand in folders of the stage, each on a tab of its own.

    Raises:
        DataError: A folder holds no search or a damaged one, or one for another model than the certified one.
        ConfigError: Two searches are for one number of calls.
    """
    searches = [_shown(search, results) for search in read_searches(folders)]
    first = min((shown.nfe for shown in searches), key=lambda nfe: abs(nfe - results.headline_nfe))
    values = {"searches": searches, "first": first, "reported": results.protocol["seeds"]}
    figures = {name: figure for shown in searches for name, figure in shown.figures.items()}
    return Panel("Search for plans", rendered(__name__, values), figures)


def _shown(search: FinishedSearch, results: Results) -> _Shown:
    record, nfe = search.record, search.nfe
    if record.model.get("fingerprint") != results.model.get("fingerprint"):
        raise DataError(
            f"{search.files[1]} must be a search for the certified model {results.model.get('fingerprint')}, "
            f"got one for {record.model.get('fingerprint')}; name another folder."
        )
    reported = parse_seeds(results.protocol["seeds"])
    plans = {"searched": search.plan} | best_preset_plan(search, results)
    curves, picture = search_figure(search), plan_figure(plans)
    return _Shown(
        nfe=nfe,
        sentences=_sentences(search, results),
        finalists=[
            f.model_dump() | {"fd": math.nan if f.fd is None else f.fd, "chosen": f.name == record.winner}
            for f in sorted(record.finalists, key=lambda f: (-f.images, _measured(f, record)))
        ],
        has_fd=record.measure == "fd",
        images=max(f.images for f in record.finalists),
        facts=_facts(record),
        unseen=all(last < reported[0] or reported[-1] < first for first, last in record.seeds.values()),
        settings=flatten(record.settings),
        curves=inline_svg(
            curves,
            name=f"search{nfe}",
            label=f"The search for {nfe} evaluations: best error against network calls, the polish, and "
            "which decisions matter.",
        ),
        plan=inline_svg(
            picture,
            name=f"search{nfe}-plan",
            label=f"The nodes and weights of {' and of '.join(plans)}.",
        ),
        figures={f"curves_nfe{nfe:03d}": curves, f"plan_nfe{nfe:03d}": picture},
    )


def _sentences(search: FinishedSearch, results: Results) -> list[str]:
    record = search.record
    ours, known = record.finalist(record.winner), record.finalist(record.best_preset)
    what = "FD" if record.measure == "fd" else "distance to the fine solutions"
    sentences = [
        f"The winner is {record.winner}: {what} {number(_measured(ours, record))} on seeds of the search, against "
        f"{number(_measured(known, record))} of {record.best_preset}, the best of the presets that were finalists."
    ]
    row, preset = results.row(search.plan.hash), _best_preset(search.nfe, results)
    if row is None:
        return [*sentences, "No certificate of this report is about it."]
    other = " and in features that it was not fitted in" if results.fitted_metric else ""
    reported = f"On the seeds of this report{other} its FD is {interval(row, 'fd')}"
    compared = "" if preset is None or math.isnan(row["of_preset"]) else f", {of_preset(row, preset)}"
    return [*sentences, f"{reported}{compared}.", *filter(None, [in_fitted(row)])]


def _best_preset(nfe: int, results: Results) -> Mapping[str, Any] | None:
    """Its row among those of as many calls."""
    presets = (entry["preset"] for entry in winners(results) if entry["nfe"] == nfe)
    return next(presets, None)


def _measured(finalist: Finalist, record: SearchRecord) -> float:
    """What the finalists were compared by."""
    value = finalist.fd if record.measure == "fd" else finalist.error
    return math.inf if value is None else value


def _facts(record: SearchRecord) -> dict[str, str]:
    trials = record.trials
    ended = ", ".join(f"{trials.get(how, 0)} {how}" for how in ENDS)
    facts = {
        "trials": f"{ended}; {trials.get('seeded', 0)} known plans were tried first",
        "compared with": f"{record.teacher.get('plan', 'fine solutions')}, the fine solution",
        "network calls": count(sum(record.network_calls.values())),
    }
    for tier in (tier for tier in PURPOSES if tier in record.network_calls):
        seconds = record.seconds.get(tier, math.nan)
        facts[f"calls for {tier}"] = f"{count(record.network_calls[tier])} in {number(seconds)} s"
    for name in (name for name in PURPOSES if name in record.seeds):
        facts[f"seeds of {name}"] = "{} to {}".format(*record.seeds[name])
    return facts


def best_preset_plan(search: FinishedSearch, results: Results) -> dict[str, Plan]:
    """The best certified preset of as many calls, else the best of the search; none where neither is known."""
    row = _best_preset(search.nfe, results)
    if row is not None:
        return {f"{row['sampler']}, {row['grid']}": results.plans[row["plan_hash"]]}
    return {} if search.preset is None else {search.record.best_preset: search.preset}


# The curves


def search_figure(search: FinishedSearch) -> Figure:
    """Best error against network calls, the decisions that matter, and the polishes."""
    record = search.record
    with house_style():
        figure = Figure(figsize=(WIDTH, 5.4))
        _draw_trials(figure.add_axes((0.075, 0.585, 0.4, 0.355)), search)
        if record.importance:
            _draw_importance(figure.add_axes((0.2, 0.085, 0.275, 0.355)), record.importance)
        tiers = [tier for tier in TIERS if tier in record.polish]
        for tier, bottom in zip(tiers, (0.585, 0.085), strict=False):
            _draw_polish(figure.add_axes((0.575, bottom, 0.4, 0.355)), tier, record.polish[tier])
    return figure


def _draw_trials(axes: Axes, search: FinishedSearch) -> None:
    trials, history = search.trials, search.record.history
    _title(axes, "trials: distance to fine solutions")
    axes.set(xscale="log", yscale="log", xlabel="network calls")
    spent = trials["network_calls"].fillna(0).cumsum()
    complete = trials["state"].eq("complete")
    seeded = trials["seed"].ne("") & complete
    drawn = complete & ~seeded
    axes.plot(spent[drawn], trials["value"][drawn], "o", color=FAINT, markersize=3.4, label="trial")
    axes.plot(
        spent[seeded], trials["value"][seeded], "D", color=COLOURS[1], markersize=3.6, label="known plan"
    )
    if history:
        calls, best = zip(*history, strict=True)
        line = [*calls, max(int(spent.max()), calls[-1])], [*best, best[-1]]
        axes.plot(*line, drawstyle="steps-post", color=COLOURS[0], label="best so far")
        axes.set_ylim(0.85 * best[-1], 5 * best[0])
    if seeded.any():
        axes.axhline(trials["value"][seeded].min(), color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    _plain_numbers(axes, "x", count)
    _plain_numbers(axes, "y", "{:g}".format)
    axes.legend(loc="upper left", fontsize=8.5, frameon=False, labelcolor=MUTED, borderaxespad=0.1)


def _draw_polish(axes: Axes, tier: str, curve: Sequence[Point]) -> None:
    _title(axes, f"polish: {TIERS[tier]}")
    axes.set(yscale="log", xlabel="iteration")
    losses = [(p.iteration, p.loss) for p in curve if p.loss is not None and p.loss > 0]
    if losses:
        axes.plot(*zip(*losses, strict=True), color=FAINT, linewidth=1.2, label="in training")
    points = [(p.iteration, p.validation) for p in curve]
    axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[0], markersize=3.4, label="on validation seeds")
    at, best = min(points, key=lambda point: point[1])
    axes.plot(at, best, "o", color=COLOURS[1], markersize=6.5, label=f"kept: {number(best)}")
    _plain_numbers(axes, "y", "{:g}".format)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=STEPS))
    axes.legend(loc="upper right", fontsize=8.5, frameon=False, labelcolor=MUTED, borderaxespad=0.1)


def _draw_importance(axes: Axes, importance: Mapping[str, float]) -> None:
    _title(axes, "what the error depends on")
    shares: dict[str, float] = defaultdict(float)
    for name, share in importance.items():
        shares[decision(name)] += share
    bars = sorted(shares.items(), key=lambda item: -item[1])[:BARS][::-1]
    names, values = zip(*bars, strict=True)
    axes.barh(names, values, color=COLOURS[0], height=0.62)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_locator(NullLocator())
    axes.tick_params(axis="y", labelsize=8.5)
    for y, value in enumerate(values):
        axes.annotate(
            f"{value:.0%}", (value, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8.5,
            color=MUTED,
        )  # fmt: skip


def decision(name: str) -> str:
    """`length, step 3` for `gap_2`: a decision of the space in words, steps counted from 1."""
    match = re.fullmatch(r"(corr_scale|[a-z]+?)_(\d+)(?:_\d+)?", name)
    kind, step = (match[1], f", step {int(match[2]) + 1}") if match else (name, "")
    return f"{_DECISIONS.get(kind, kind)}{step}"


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10, color=MUTED)


def _plain_numbers(axes: Axes, which: Literal["x", "y"], written: Callable[[float], str]) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5 of each decade, fewer where it is long; linear where it is short."""
    axis: Axis = getattr(axes, f"{which}axis")
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    if high / low < 3:
        axes.set(**{f"{which}scale": "linear"})
        axis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
