"""What a plan asks of a network, counted and not timed."""

from collections import Counter
from collections.abc import Sequence

from fewstep.sampling.plan import Plan, network_nodes, widths_of


def evaluations_of(plan: Plan) -> list[int]:
    """How often each node that calls the network does so: twice where an implicit corrector ends."""
    again = Counter(step.end for step in plan.steps if step.corr is not None and step.corr.mode == "implicit")
    return [1 + again[node] for node in network_nodes(plan)]


def full_calls(plan: Plan, shares: Sequence[float]) -> float:
    """Network calls at full width that take about as many multiply-adds: each counts the square of its share.

    Args: shares: of the channels at each width, the full one (1) first, as `Model.widths`.
    """
    calls = zip(evaluations_of(plan), widths_of(plan), strict=True)
    return float(sum(count * shares[width] ** 2 for count, width in calls))
