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
from fewstep.sampling.plan import Plan, network_nodes

Widths = tuple[int, ...]
"""Index of a width for each node that calls the network, in order; 0 is the full one."""

Error = Callable[[Widths], float]
"""How far from the full network's images; infinite where a state was not finite."""

ROUNDING = 1e-12  # of a total cost: sums in another order that mean the same


def with_widths(plan: Plan, widths: Sequence[int]) -> Plan:
    """The plan at these widths; at full width everywhere it has the identity of a plan that knows no widths.
    Raises: ConfigError: not one width per node that calls the network, or a negative one.
    """
    calling = network_nodes(plan)
    if len(widths) != len(calling) or min(widths, default=0) < 0:
        raise ConfigError(
            f"widths must be {len(calling)} indices from 0, one for each node of {plan.name or 'the plan'} that calls "
            f"the network; got {list(widths)}."
        )
    chosen = dict(zip(calling, widths, strict=True))
    nodes = (replace(node, width=chosen.get(i) or None) for i, node in enumerate(plan.nodes))
    return replace(plan, nodes=tuple(nodes))


def uniform(n: int, k: int) -> list[Widths]:
    """The plans of n evaluations with one of k widths everywhere, the full one first."""
    return [(width,) * n for width in range(k)]


def sensitivities(error: Error, n: int, k: int) -> NDArray[np.float64]:
    """The error with one step alone at a width, (n, k); none at the full one, 0."""
    errors = np.zeros((n, k))
    for step, width in itertools.product(range(n), range(1, k)):
        errors[step, width] = error(tuple(width if i == step else 0 for i in range(n)))
    return errors


def additive_front(S: NDArray[np.float64], costs: NDArray[np.float64]) -> list[Widths]:
    """The exact Pareto front of sums over steps, by dynamic programming: by decreasing cost.

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
    """The Pareto-optimal ones in cost, up to rounding, and error, one of equal ones: by rising cost."""
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
    """From full to smallest widths, one level of one step at a time: that which adds least error per cost saved.

    Each move is weighed in the plan as it is by then, since errors of sub-networks do not add up. The path ends early
    where every further move makes a state that is not finite.

    Args: costs: of a step at a width, (n, k). progress: wraps the moves.
    Returns: n (k - 1) + 1 widths, by decreasing cost.
    """
    n, k = costs.shape
    path: list[Widths] = [(0,) * n]
    for _ in progress(range(n * (k - 1))):
        now = path[-1]
        error_now = error(now)
        moves = []
        for step in (i for i in range(n) if now[i] < k - 1):
            smaller = (*now[:step], now[step] + 1, *now[step + 1 :])
            saved = float(costs[step, now[step]] - costs[step, now[step] + 1])
            added = error(smaller) - error_now
            # measured times need not fall with the width: a move that saves nothing comes last
            moves.append((saved <= 0, added / saved if saved > 0 else added, step, smaller))
        best = min(moves)
        if not math.isfinite(best[1]):
            break
        path.append(best[-1])
    return path
