"""Pareto fronts of two objectives, both of which are to be small."""

import math
from collections.abc import Sequence

Point = tuple[float, float]
"""Cost and error, of which less is better."""


def pareto(points: Sequence[Point]) -> list[int]:
    """Indices of the Pareto-optimal points, by increasing cost; of equal points the first."""
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
