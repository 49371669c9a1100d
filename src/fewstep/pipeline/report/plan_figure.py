"""A plan as a picture: where its nodes are, and what each of its steps weighs."""

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator

from fewstep.diffusion.schedule import Schedule, schedule_from_config
from fewstep.pipeline.report.figures import COLOURS, INK, MUTED, WIDTH, house_style
from fewstep.sampling.linear import Row, linear_form
from fewstep.sampling.plan import Plan, Step

NODE = 7.5  # points across a node at full width
SIDE_BY_SIDE = 7  # rows of weights up to which two tables fit beside one another

_SYMBOLS = {"x0": "x₀", "eps": "ε"}


def plan_figure(plans: Mapping[str, Plan]) -> Figure:
    """One or two plans of one schedule: their nodes by log-SNR, and below the weights of every step.

    A node is as large as the network is wide there; a cross beside an aligned one is its conditioning timestep. A step
    reads x_end = A x_start + sum of c_m x0_m, whatever way it was written; what the step of a structured plan is stands
    beside its weights.
    """
    schedule = schedule_from_config(dict(next(iter(plans.values())).schedule))
    forms = {name: form for name, plan in plans.items() if (form := _form(plan, schedule))}
    cells = max((len(form) for form in forms.values()), default=0)
    columns = 2 if cells <= SIDE_BY_SIDE else 1
    rails, table = 0.6 * len(plans), 0.6 + 0.26 * cells
    tall = 0.3 + rails + 0.65 + table * math.ceil(len(forms) / columns)
    with house_style():
        figure = Figure(figsize=(WIDTH, tall))
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
                aligned = float(schedule.lambda_(torch.tensor(node.t_cond, dtype=torch.float64)))
                axes.plot([x, aligned], [y, y + 0.3], color=colour, linewidth=0.8, zorder=2)
                axes.plot(aligned, y + 0.3, "x", color=colour, markersize=4.5, zorder=3)
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
