"""The decision space of solver search [liu2024usf, Sec. 4] as one function from decisions to plans.

A plan is built by asking for one decision after another, each with the range it may have given those before it.
Whoever answers is the search: a sampler that draws, an evolution that inherits, a recorded plan that repeats itself.

    first_step       net, or zero: an analytic first step, which saves a network call and adds a step
    gap_i            length of step i in log-SNR, relative to the others
    end              log-SNR of the last evaluation, from the middle of the range (0) to t_min (1)
    pred_i           eps or x0, whose Taylor expansion step i integrates (they differ at order 1 after a corrector)
    order_i          1 to max_order, at most i + 1
    points_i         from order 3: nodes from which the first derivative is estimated; the others take all
    scale_i_k        factor on the term of derivative k, 1 is Taylor's
    corr_i           none, or pseudo: the step is redone with the new prediction, without a further call
    corr_scale_i     factor on the corrector's first derivative

Differs: the published space scales the first derivative only, by 1 + gamma h. A factor on each is as free, and makes
every linear multistep method a point of it (DEIS, iPNDM, DPM-Solver++(3M)). No EMS prediction, no skip scaling.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import Schedule
from fewstep.sampling.linear import linear_form
from fewstep.sampling.plan import MIN_GAP, Corrector, Derivative, Node, Plan, Scale, Step
from fewstep.sampling.solver import Points, first_order, scale_factor, taylor

Decision = float | int | str
Decisions = dict[str, Decision]

ORDER_WEIGHTS = (0.2, 0.4, 0.3, 0.1)  # how often the authors' search draws each order


@dataclass(frozen=True)
class Real:
    """A number between two bounds; `spread` is the size of a typical change, in log units if `log`."""

    low: float
    high: float
    default: float
    spread: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of some options; `weights` say how often each is drawn."""

    options: tuple[int, ...] | tuple[str, ...]
    weights: tuple[float, ...]


Range = Real | Choice
Ask = Callable[[str, Range], Decision]

GAP = Real(0.05, 20.0, default=1.0, spread=0.25, log=True)
END = Real(0.0, 1.0, default=0.9, spread=0.1)
SCALE = Real(-1.0, 5.0, default=1.0, spread=0.1)
PREDICTION = Choice(("x0", "eps"), (0.5, 0.5))
CORRECTOR = Choice(("none", "pseudo"), (0.5, 0.5))


@dataclass(frozen=True)
class Space:
    """All plans of `nfe` network calls on a schedule.

    Attributes:
        to_zero: end at clean data by a step of order 1, with a free time of the last evaluation; else at t_end.
        t_end: end of the grid without `to_zero`; None for the schedule's t_min.
        max_order: highest Taylor order, 1 to 4.
        analytic: also try an analytic first step, x0_hat = 0.
    """

    schedule: Schedule
    nfe: int
    to_zero: bool = True
    t_end: float | None = None
    max_order: int = 3
    analytic: bool = True

    def __post_init__(self) -> None:
        if self.nfe < 2:
            raise ConfigError(
                f"A search needs at least 2 network calls, got nfe {self.nfe}: one call leaves nothing to decide."
            )
        if not 1 <= self.max_order <= len(ORDER_WEIGHTS):
            raise ConfigError(f"max_order must be 1 to {len(ORDER_WEIGHTS)}; got {self.max_order}.")

    def _ends(self) -> tuple[float, float]:
        t_end = self.schedule.t_min if self.t_end is None else self.t_end
        ends = self.schedule.lambda_(
            torch.tensor([self.schedule.t_start, t_end], dtype=torch.float64)
        ).tolist()
        return ends[0], ends[1]

    def build(self, ask: Ask) -> Plan:
        """The plan of the decisions that `ask` answers with.
        Raises: ConfigError: two nodes are too close for a plan.
        """
        analytic = self.analytic and ask("first_step", Choice(("net", "zero"), (0.7, 0.3))) == "zero"
        n = self.nfe + analytic
        nodes = self._nodes(n, ask, analytic)
        steps = tuple(self._step(i, n, nodes, ask) for i in range(n))
        return Plan(self.schedule.config(), nodes, steps)

    def _nodes(self, n: int, ask: Ask, analytic: bool) -> tuple[Node, ...]:
        start, end = self._ends()
        if self.to_zero:
            middle = (start + end) / 2
            end = middle + float(ask("end", END)) * (end - middle)
        gaps = np.array([float(ask(f"gap_{i}", GAP)) for i in range(n - self.to_zero)])
        lambdas = (
            torch.tensor([0.0, *(np.cumsum(gaps) / gaps.sum())], dtype=torch.float64) * (end - start) + start
        )
        times = self.schedule.t_of_lambda(lambdas)
        # the ends are written out, as the inverse of the log-SNR may round past them
        times[0] = self.schedule.t_start
        pairs = list(zip(times.tolist(), lambdas.tolist(), strict=True))
        pairs += [(0.0, math.inf)] if self.to_zero else []
        kinds = ["afs_zero" if analytic else "net", *["net"] * (n - 1), "none"]
        return tuple(Node(t, lam, eval=kind) for (t, lam), kind in zip(pairs, kinds, strict=True))

    def _step(self, i: int, n: int, nodes: tuple[Node, ...], ask: Ask) -> Step:
        pred = str(ask(f"pred_{i}", PREDICTION))
        if i == n - 1 and self.to_zero:
            return Step(i, i + 1, pred)
        highest = min(self.max_order, i + 1)
        order = int(ask(f"order_{i}", Choice(tuple(range(1, highest + 1)), ORDER_WEIGHTS[:highest])))
        before = tuple(range(i - 1, i - order, -1))
        first = order - 1
        if order > 2:
            first = int(ask(f"points_{i}", Choice(tuple(range(1, order)), (1.0,) * (order - 1))))
        deriv = tuple(
            Derivative(
                before[:first] if k == 1 else before, Scale("const", float(ask(f"scale_{i}_{k}", SCALE)))
            )
            for k in range(1, order)
        )
        corr = None
        if i < n - 1 and ask(f"corr_{i}", CORRECTOR) == "pseudo":
            scale = Scale("const", float(ask(f"corr_scale_{i}", SCALE)))
            points = (i + 1, *before)
            corr = Corrector(
                "pseudo", tuple(Derivative(points, scale if k == 1 else Scale()) for k in range(1, order + 1))
            )
        return Step(i, i + 1, pred, deriv, corr=corr)

    def decisions(self, plan: Plan) -> Decisions | None:
        """The decisions that build a plan; None where it is no point of this space."""
        if dict(plan.schedule) != self.schedule.config():
            return None
        known = dict(_decisions_of(plan, self))
        made: Decisions = {}

        def repeat(name: str, allowed: Range) -> Decision:
            made[name] = known[name]
            if not within(made[name], allowed):
                raise KeyError(name)
            return made[name]

        try:
            built = self.build(repeat)
        except (KeyError, ConfigError):
            return None
        return made if _same(built, plan, self.schedule) else None


def resized(decisions: Decisions, step: int, by: int) -> Decisions:
    """Decisions for one call less (by = -1: without that step) or more (by = 1: with that step twice).

    The step made twice shares the log-SNR that it covered; what the copies may not decide is left out.
    """
    made: Decisions = {}
    for name, value in decisions.items():
        kind, _, index = (
            name.partition("_") if not name.startswith("corr_scale") else ("corr_scale", "", name[11:])
        )
        place, _, rest = index.partition("_")
        if not place.isdigit():
            made[name] = value
            continue
        i, tail = int(place), f"_{rest}" if rest else ""
        if i <= step - (by < 0):
            made[name] = value
        if i >= step + (by < 0):
            made[f"{kind}_{i + by}{tail}"] = value
    if by > 0 and f"gap_{step}" in decisions:
        made[f"gap_{step}"] = made[f"gap_{step + 1}"] = float(decisions[f"gap_{step}"]) / 2
    return made


def plan_of(space: "Space", decisions: Decisions) -> Plan:
    """The plan that complete decisions stand for."""
    return space.build(lambda name, _: decisions[name])


def default(allowed: Range) -> Decision:
    """The default decision of a range."""
    return allowed.default if isinstance(allowed, Real) else allowed.options[0]


def completed(space: "Space", decisions: Decisions) -> Decisions | None:
    """Decisions of which some are missing or out of range, completed with defaults; None where no plan results."""
    made: Decisions = {}

    def ask(name: str, allowed: Range) -> Decision:
        value = decisions.get(name)
        if value is None or not within(value, allowed):
            value = default(allowed)
        made[name] = value
        return value

    try:
        space.build(ask)
    except ConfigError:
        return None
    return made


def within(value: Decision, allowed: Range) -> bool:
    """Whether a decision is one of the range."""
    if isinstance(allowed, Choice):
        return value in allowed.options
    return allowed.low <= float(value) <= allowed.high


def _decisions_of(plan: Plan, space: Space) -> Iterator[tuple[str, Decision]]:
    """What the decisions would be if the plan were a point of the space, which is for the caller to check."""
    yield "first_step", "net" if plan.nodes[0].eval == "net" else "zero"
    lambdas = [node.lambda_ for node in plan.nodes if math.isfinite(node.lambda_)]
    start, end = space._ends()
    yield "end", min(1.0, max(0.0, 2 * (lambdas[-1] - start) / (end - start) - 1))
    gaps = np.diff(lambdas)
    if len(gaps):
        for i, gap in enumerate(gaps / gaps.mean()):
            yield f"gap_{i}", float(gap)
    points = Points.of(space.schedule, torch.tensor([n.lambda_ for n in plan.nodes], dtype=torch.float64))
    for i, step in enumerate(plan.steps):
        yield f"pred_{i}", step.pred
        yield f"order_{i}", step.order
        h = points.lambda_[step.end] - points.lambda_[step.start]
        if step.raw is not None:
            yield from ((f"scale_{i}_{k}", factor) for k, factor in _scales_of_raw(points, step))
            yield f"points_{i}", step.order - 1
        else:
            yield f"points_{i}", len(step.deriv[0].points) if step.deriv else 0
            for k, derivative in enumerate(step.deriv, start=1):
                yield f"scale_{i}_{k}", _factor(derivative.scale, h, step.pred)
        yield f"corr_{i}", "none" if step.corr is None else step.corr.mode
        if step.corr is not None and step.corr.deriv:
            yield f"corr_scale_{i}", _factor(step.corr.deriv[0].scale, h, step.pred)


def _factor(scale: Scale, h: float | torch.Tensor, pred: str) -> float:
    return float(scale_factor(scale.kind, scale.value, h, pred))


def _scales_of_raw(points: Points, step: Step) -> Iterator[tuple[int, float]]:
    """The factors on the derivatives that give a raw step its weights, by least squares."""
    assert step.raw is not None
    if points.sigma[step.end] == 0:  # the last step, whose order is 1
        return
    used = sorted((m for m, _ in step.raw.c), reverse=True)
    before = tuple(m for m in used if m != step.start)
    _, base = first_order(points, step.start, step.end, step.pred)
    columns = []
    for k in range(1, len(before) + 1):
        ones = tuple(
            Derivative(before, Scale("const", 1.0 if j == k else 0.0)) for j in range(1, len(before) + 1)
        )
        factors = iter([d.scale.value or 0.0 for d in ones])
        c = taylor(points, step.start, step.end, step.pred, ones, factors).c
        columns.append([float(c[m]) - (float(base) if m == step.start else 0.0) for m in used])
    if columns:
        weights = dict(step.raw.c)
        wanted = [weights[m] - (float(base) if m == step.start else 0.0) for m in used]
        factors = np.linalg.lstsq(np.array(columns).T, np.array(wanted), rcond=None)[0]
        yield from ((k, float(factor)) for k, factor in enumerate(factors, start=1))


def _calls(plan: Plan) -> tuple[object, ...]:
    """How the network is called at each node, and what becomes of the result."""
    nodes = [(n.eval, n.t_cond, n.eps_scale, n.width, n.quant) for n in plan.nodes]
    return nodes, plan.skip_scale, plan.clip


def _same(a: Plan, b: Plan, schedule: Schedule) -> bool:
    """Whether two plans give the same images: equal nodes and, in the linear form, equal weights."""
    if _calls(a) != _calls(b):
        return False
    moved = [
        abs(m.lambda_ - n.lambda_) for m, n in zip(a.nodes, b.nodes, strict=True) if m.lambda_ != n.lambda_
    ]
    if max(moved, default=0.0) > MIN_GAP / 10 or b.stochastic:
        return False
    rows = zip(linear_form(a, schedule), linear_form(b, schedule), strict=False)
    return all(
        np.allclose([float(w) for w in (r.A, *r.c)], [float(w) for w in (s.A, *s.c)], rtol=1e-6, atol=1e-7)
        for r, s in rows
    )
