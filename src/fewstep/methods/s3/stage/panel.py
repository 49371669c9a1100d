"""What a search found and how, for each number of calls: its curves, its plan as a picture, its numbers."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import Schedule, schedule_from_config
from fewstep.pipeline.report.figures import COLOURS, FAINT, INK, MUTED, house_style, inline_svg
from fewstep.app.report.page import count, flatten, interval, of_preset
from fewstep.pipeline.report.results import Results, number, winners
from fewstep.pipeline.samples import parse_seeds
from fewstep.methods.s3.stage.record import Finalist, FinishedSearch, Point, SearchRecord
from fewstep.sampling.linear import Row, linear_form
from fewstep.sampling.plan import Plan, Step
from fewstep.sampling.presets import ANALYTIC, PRESETS, analytical

BARS = 10
NODE = 7.5  # points across a node at full width
SIDE_BY_SIDE = 7  # rows of weights up to which two tables fit beside one another
ENDS = ("complete", "pruned", "disqualified", "lost")
PURPOSES = ("presets", "trials", "validation", "polish", "finalists")  # of calls and seeds, in order of time
STEPS = [1, 2, 5, 10]  # between ticks, times a power of ten
TIERS = {"trajectory": "distance to fine solutions", "frechet": "distance between sets of images"}

_DECISIONS = {
    "gap": "length", "scale": "scales", "order": "order", "points": "order", "pred": "prediction",
    "corr": "corrector", "corr_scale": "corrector", "first_step": "first step", "end": "time of the last call",
}  # fmt: skip
_SYMBOLS = {"x0": "x₀", "eps": "ε"}
_WIDTH = 8.6


@dataclass(frozen=True)
class SearchPanel:
    """What the page tells of one search.

    Attributes:
        nfe: network calls of the plans.
        sentences: the outcome in words.
        finalists: name, error, FD and whether it was chosen, best first.
        has_fd: whether finalists were compared by FD.
        facts: counts, costs and seeds.
        unseen: whether no image of the report had a part in the search.
        settings: those of the search.
        figures: name of the file -> figure.
        svgs: the same for the page, by `search` and `plan`.
    """

    nfe: int
    sentences: Sequence[str]
    finalists: Sequence[Mapping[str, Any]]
    has_fd: bool
    facts: Mapping[str, str]
    unseen: bool
    settings: Mapping[str, str]
    figures: Mapping[str, Figure]
    svgs: Mapping[str, str]


def search_panels(searches: Sequence[FinishedSearch], results: Results) -> list[SearchPanel]:
    """One panel per search.

    Raises:
        DataError: A search was made for another model than the certified one.
    """
    return [_panel(search, results) for search in searches]


def _panel(search: FinishedSearch, results: Results) -> SearchPanel:
    record, nfe = search.record, search.nfe
    if record.model.get("fingerprint") != results.model.get("fingerprint"):
        raise DataError(
            f"{search.files[1]} must be a search for the certified model {results.model.get('fingerprint')}, "
            f"got one for {record.model.get('fingerprint')}; name another folder."
        )
    reported = parse_seeds(results.protocol["seeds"])
    curves = search_figure(search)
    plans = {"searched": search.plan} | best_preset_plan(search, results)
    picture = plan_figure(plans)
    return SearchPanel(
        nfe=nfe,
        sentences=_sentences(search, results),
        finalists=[
            f.model_dump() | {"fd": math.nan if f.fd is None else f.fd, "chosen": f.name == record.winner}
            for f in sorted(record.finalists, key=lambda f: _measured(f, record))
        ],
        has_fd=record.measure == "fd",
        facts=_facts(record),
        unseen=all(last < reported[0] or reported[-1] < first for first, last in record.seeds.values()),
        settings=flatten(record.settings),
        figures={f"search_nfe{nfe:03d}": curves, f"plan_nfe{nfe:03d}": picture},
        svgs={
            "search": inline_svg(
                curves,
                name=f"search{nfe}",
                label=f"The search for {nfe} evaluations: best error against network calls, the polish, and "
                "which decisions matter.",
            ),
            "plan": inline_svg(
                picture, name=f"plan{nfe}", label=f"The nodes and weights of {' and of '.join(plans)}."
            ),
        },
    )


def _sentences(search: FinishedSearch, results: Results) -> list[str]:
    record = search.record
    ours, known = record.finalist(record.winner), record.finalist(record.best_preset)
    what = "FD" if record.measure == "fd" else "distance to the fine solutions"
    sentences = [
        f"The winner is {record.winner}: {what} {number(_measured(ours, record))} on seeds of the search, against "
        f"{number(_measured(known, record))} of {record.best_preset}, the best of the presets that were finalists."
    ]
    entry = next((entry for entry in winners(results) if entry["nfe"] == search.nfe), None)
    row = entry and entry["searched"]
    if entry is None or row is None or row["plan_hash"] != search.plan.hash:
        return [*sentences, "No certificate of this report is about it."]
    reported = f"On the seeds of this report its FD is {interval(row, 'fd')}"
    compared = "" if math.isnan(row["of_preset"]) else f", {of_preset(row, entry['preset'])}"
    return [*sentences, f"{reported}{compared}."]


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
    """The best certified preset of as many calls, else the best of the search, if it can be made again."""
    schedule = schedule_from_config(dict(search.plan.schedule))
    named: list[tuple[str, str, str]] = []
    for entry in winners(results):
        if entry["nfe"] == search.nfe and entry["preset"]:
            row = entry["preset"]
            named.append((row["sampler"], row["grid"], row["plan_hash"]))
    known = search.record.finalist(search.record.best_preset)
    sampler, _, grid = known.name.partition(".")
    named.append((sampler, grid, known.hash))
    for sampler, grid, wanted in named:
        for to_zero in (True, False):
            try:
                make = partial(analytical, PRESETS[sampler]) if grid.endswith(ANALYTIC) else PRESETS[sampler]
                plan = make(schedule, search.nfe, grid=grid.removesuffix(ANALYTIC), to_zero=to_zero)
            except (KeyError, ConfigError):  # of another origin, or on a grid of its own
                continue
            if plan.hash == wanted:
                return {f"{sampler}, {grid}": plan}
    return {}


# The curves


def search_figure(search: FinishedSearch) -> Figure:
    """Best error against network calls, the decisions that matter, and the polishes."""
    record = search.record
    with house_style():
        figure = Figure(figsize=(_WIDTH, 5.4))
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


# The plan


def plan_figure(plans: Mapping[str, Plan]) -> Figure:
    """One or two plans of one schedule: their nodes by log-SNR, and below the weights of every step.

    A node is as large as the network is wide there; a cross beside it is the time that the network is told.

    A step reads x_end = A x_start + sum of c_m x0_m, whatever way it was written; what the step of a
    structured plan is stands beside its weights.
    """
    schedule = schedule_from_config(dict(next(iter(plans.values())).schedule))
    forms = {name: form for name, plan in plans.items() if (form := _form(plan, schedule))}
    cells = max((len(form) for form in forms.values()), default=0)
    columns = 2 if cells <= SIDE_BY_SIDE else 1
    rails, table = 0.6 * len(plans), 0.6 + 0.26 * cells
    tall = 0.3 + rails + 0.65 + table * math.ceil(len(forms) / columns)
    with house_style():
        figure = Figure(figsize=(_WIDTH, tall))
        axes = figure.add_axes((0.02, 1 - (rails + 0.3) / tall, 0.96, rails / tall))
        _draw_nodes(axes, plans, schedule)
        strongest = max(
            (abs(float(c)) for form in forms.values() for row in form for c in row.c), default=1.0
        )
        for i, (name, form) in enumerate(forms.items()):
            down, right = divmod(i, columns)
            bottom = tall - (rails + 0.95) - table * (down + 1)
            place = (0.02 + 0.49 * right, bottom / tall, 0.98 / columns - 0.02, table / tall)
            _draw_weights(figure.add_axes(place), name, plans[name], form, strongest, COLOURS[i], rows=cells)
    return figure


def _form(plan: Plan, schedule: Schedule) -> tuple[Row, ...]:
    return () if plan.stochastic else linear_form(plan, schedule)


def _draw_nodes(axes: Axes, plans: Mapping[str, Plan], schedule: Schedule) -> None:
    finite = [n.lambda_ for plan in plans.values() for n in plan.nodes if math.isfinite(n.lambda_)]
    low, high = min(finite), max(finite)
    wide = high - low
    axes.set(xlim=(low - 0.17 * wide, high + 0.13 * wide), ylim=(-0.5, len(plans) - 0.5))
    for y, (name, plan), colour in zip(reversed(range(len(plans))), plans.items(), COLOURS, strict=False):
        places = [n.lambda_ if math.isfinite(n.lambda_) else high + 0.09 * wide for n in plan.nodes]
        axes.plot(places, [y] * len(places), color=colour, linewidth=1.2, zorder=2)
        for i, (x, node) in enumerate(zip(places, plan.nodes, strict=True)):
            clean, analytic = math.isinf(node.lambda_), node.eval.startswith("afs")
            marker = "s" if clean else "D" if analytic else "o"
            inside = "none" if clean or analytic else colour
            size = NODE / (1 + (node.width or 0)) ** 0.5
            axes.plot(x, y, marker, color=colour, markerfacecolor=inside, markersize=size, zorder=3)
            if node.t_cond is not None:
                told = float(schedule.lambda_(torch.tensor(node.t_cond, dtype=torch.float64)))
                axes.plot([x, told], [y, y + 0.3], color=colour, linewidth=0.8, zorder=2)
                axes.plot(told, y + 0.3, "x", color=colour, markersize=4.5, zorder=3)
            label = "clean" if clean else f"{i} analytic" if analytic else str(i)
            axes.annotate(
                label, (x, y), xytext=(0, -6), textcoords="offset points", ha="center", va="top", fontsize=8,
                color=MUTED,
            )  # fmt: skip
        axes.annotate(
            name, (low - 0.17 * wide, y), xytext=(0, 6), textcoords="offset points", va="bottom", color=colour,
            fontsize=9.5,
        )  # fmt: skip
    axes.grid(visible=False)
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_bounds(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= high])
    axes.set_xlabel("half log-SNR λ")
    times = _round_times(schedule, low, high)
    top = axes.secondary_xaxis("top")
    top.set_xticks(
        [x for x, _ in times], [f"t = {t:g}" if i == 0 else f"{t:g}" for i, (_, t) in enumerate(times)]
    )
    top.spines["top"].set_visible(False)


def _round_times(schedule: Schedule, low: float, high: float) -> list[tuple[float, float]]:
    """(log-SNR, time) of round times between two log-SNRs, far enough apart to be read."""
    chosen: list[tuple[float, float]] = []
    for power in range(math.floor(math.log10(schedule.t_max)), -6, -1):
        for digit in (5, 2, 1):
            t = digit * 10.0**power
            if not schedule.t_min <= t <= schedule.t_max:
                continue
            x = float(schedule.lambda_(torch.tensor(t, dtype=torch.float64)))
            apart = not chosen or x - chosen[-1][0] > 0.08 * (high - low)
            if low - 0.01 <= x <= high + 0.01 and apart:
                chosen.append((x, float(f"{t:.6g}")))
    return chosen


def _draw_weights(
    axes: Axes, name: str, plan: Plan, form: Sequence[Row], strongest: float, colour: str, *, rows: int
) -> None:
    axes.set_axis_off()
    # a column for the names of rows, one for A, a gap, one per prediction, and room for what a step is
    axes.set(xlim=(-1.6, rows + 5.2), ylim=(rows + 0.5, -1.8))
    axes.text(-1.6, -1.1, f"{name}: weights of the state, A, and of x₀", color=colour, fontsize=9.5)
    for m, row in enumerate(form):
        axes.text(m + 1.8, -0.25, str(row.node), ha="center", color=MUTED, fontsize=8)
    axes.text(0.5, -0.25, "A", ha="center", color=MUTED, fontsize=8)
    for k, row in enumerate(form):
        axes.text(-0.2, k + 0.5, f"step {k + 1}", ha="right", va="center", color=MUTED, fontsize=8)
        _cell(axes, 0, k, float(row.A), 1.0, MUTED)
        for m, c in enumerate(row.c):
            _cell(axes, m + 1.3, k, float(c), strongest, COLOURS[0] if c >= 0 else COLOURS[1])
        if len(form) == len(plan.steps):
            axes.text(
                len(row.c) + 1.5, k + 0.5, step_words(plan.steps[k]), va="center", color=MUTED, fontsize=8
            )


def _cell(axes: Axes, x: float, y: float, value: float, full: float, colour: str) -> None:
    strength = 0.04 + 0.5 * min(1.0, abs(value) / full)  # never so strong that the number is lost on it
    axes.add_patch(Rectangle((x + 0.03, y + 0.05), 0.94, 0.9, color=colour, alpha=strength, linewidth=0))
    text = f"{abs(value):.2f}"
    text = "0" if text == "0.00" else ("\N{MINUS SIGN}" if value < 0 else "") + text.removeprefix("0")
    axes.text(x + 0.5, y + 0.51, text, ha="center", va="center", color=INK, fontsize=7)


def step_words(step: Step) -> str:
    """`order 2 of x₀, scale 1.03, corrected` for a structured step; nothing for a raw one."""
    if step.raw is not None:
        return ""
    scales = [
        d.scale.kind if d.scale.value is None else f"{d.scale.value:.2f}"
        for d in step.deriv
        if d.scale.kind != "none"
    ]
    parts = [f"order {step.order} of {_SYMBOLS[step.pred]}"]
    parts += [f"scale {' '.join(scales)}"] if scales else []
    parts += ["corrected"] if step.corr else []
    return ", ".join(parts)
