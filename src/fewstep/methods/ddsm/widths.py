"""Which step gets which width: searches on abstract error and cost, after [yang2024ddsm, Sec. 3.2].

Differs: two objectives instead of their weighted sum, and a genome of one width per network evaluation of a short
plan, where additive estimates and a greedy descent give what a population starts from.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import ConfigError
from fewstep.sampling.plan import Plan

Widths = tuple[int, ...]
"""Index of a width for each node that asks the network, in order; 0 is the full one."""

Error = Callable[[Widths], float]
"""How far from the full network's images; infinite where a state was not finite."""

Point = tuple[float, float]
"""Cost and error, of which less is better."""

ROUNDING = 1e-12  # of a total cost: sums in another order that mean the same


def network_nodes(plan: Plan) -> list[int]:
    """The nodes that ask the network, in order."""
    return [i for i, node in enumerate(plan.nodes) if node.eval == "net"]


def with_widths(plan: Plan, widths: Sequence[int]) -> Plan:
    """The plan at these widths; at full width everywhere it has the identity of a plan that knows no widths.
    Raises: ConfigError: not one width per node that asks the network, or a negative one.
    """
    asking = network_nodes(plan)
    if len(widths) != len(asking) or min(widths, default=0) < 0:
        raise ConfigError(
            f"widths must be {len(asking)} indices from 0, one for each node of {plan.name or 'the plan'} that asks "
            f"the network; got {list(widths)}."
        )
    chosen = dict(zip(asking, widths, strict=True))
    nodes = (replace(node, width=chosen.get(i) or None) for i, node in enumerate(plan.nodes))
    return replace(plan, nodes=tuple(nodes))


def widths_of(plan: Plan) -> Widths:
    """The inverse of `with_widths`."""
    return tuple(plan.nodes[i].width or 0 for i in network_nodes(plan))


def uniform(n: int, k: int) -> list[Widths]:
    """The plans of n evaluations with one of k widths everywhere, the full one first."""
    return [(width,) * n for width in range(k)]


def sensitivities(error: Error, n: int, k: int) -> NDArray[np.float64]:
    """The error with one step alone at a width, (n, k); none at the full one, 0."""
    found = np.zeros((n, k))
    for step, width in itertools.product(range(n), range(1, k)):
        found[step, width] = error(tuple(width if i == step else 0 for i in range(n)))
    return found


def additive_front(S: NDArray[np.float64], costs: NDArray[np.float64]) -> list[Widths]:
    """The exact Pareto front of sums over steps, by dynamic programming: dearest first.

    Args: S: error of a step at a width, (n, k), infinite where it must not be. costs: of the same, (n, k).
    """
    slack = ROUNDING * float(costs.max(axis=1).sum())
    front: list[tuple[float, float, Widths]] = [(0.0, 0.0, ())]
    for errors, prices in zip(S.tolist(), costs.tolist(), strict=True):
        longer = [
            (cost + prices[k], error + errors[k], (*widths, k))
            for cost, error, widths in front
            for k in range(len(errors))
            if math.isfinite(errors[k])
        ]
        front = _undominated(longer, slack)
    return [widths for _, _, widths in reversed(front)]


def _undominated(
    plans: Iterable[tuple[float, float, Widths]], slack: float
) -> list[tuple[float, float, Widths]]:
    """Those that no other equals in cost, up to rounding, and error, or betters: cheapest first."""
    kept: list[tuple[float, float, Widths]] = []
    for plan in sorted(plans):
        if kept and plan[1] >= kept[-1][1]:
            continue
        if kept and plan[0] - kept[-1][0] <= slack:
            kept.pop()
        kept.append(plan)
    return kept


def greedy_path(
    error: Error,
    costs: NDArray[np.float64],
    *,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Widths]:
    """From full to narrowest, one level of one step at a time: that which adds least error per cost saved.

    Each move is weighed in the plan as it is by then, since errors of narrow steps do not add up. The path ends early
    where every further move makes a state that is not finite.

    Args: costs: of a step at a width, (n, k). progress: wraps the moves.
    Returns: n (k - 1) + 1 plans, each narrower than the one before.
    """
    n, k = costs.shape
    path: list[Widths] = [(0,) * n]
    for _ in progress(range(n * (k - 1))):
        now = path[-1]
        found = error(now)
        moves = []
        for step in (i for i in range(n) if now[i] < k - 1):
            narrower = (*now[:step], now[step] + 1, *now[step + 1 :])
            saved = float(costs[step, now[step]] - costs[step, now[step] + 1])
            added = error(narrower) - found
            # measured times need not fall with the width: a move that saves nothing comes last
            moves.append((saved <= 0, added / saved if saved > 0 else added, step, narrower))
        best = min(moves)
        if not math.isfinite(best[1]):
            break
        path.append(best[-1])
    return path


def pareto(points: Sequence[Point]) -> list[int]:
    """Which points no other equals or betters in both, cheapest first; of equal points the first."""
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (*points[i], i)):
        if math.isfinite(points[i][1]) and (not kept or points[i][1] < points[kept[-1]][1]):
            kept.append(i)
    return kept


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Area that the points dominate, within what lies below the reference in both."""
    area, bound = 0.0, reference[1]
    for i in pareto(points):
        cost, error = points[i]
        if cost < reference[0] and error < bound:
            area += (reference[0] - cost) * (bound - error)
            bound = error
    return area


def spread(points: Sequence[Point], n: int) -> list[int]:
    """At most n of some points, those nearest to costs that lie evenly between the least and the greatest."""
    left = list(range(len(points)))
    if len(left) <= n:
        return left
    low, high = min(cost for cost, _ in points), max(cost for cost, _ in points)
    chosen = []
    for k in range(n):
        wanted = low + (high - low) * (k / (n - 1) if n > 1 else 0.5)
        chosen.append(min(left, key=lambda i: abs(points[i][0] - wanted)))
        left.remove(chosen[-1])
    return chosen
