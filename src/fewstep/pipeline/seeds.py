"""Seeds that found a plan are never those that it is judged by."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from fewstep.checks import ConfigError
from fewstep.sampling.plan import Plan


def require_unseen(plan: Plan, seeds: Sequence[int]) -> None:
    """Raise ConfigError where images of these seeds, which follow one another, had a part in finding the plan."""
    for purpose, (first, last) in plan.provenance.get("seeds", {}).items():
        if seeds[0] <= last and first <= seeds[-1]:
            raise ConfigError(
                f"Seeds to report on must not have been searched on, but {seeds[0]}-{seeds[-1]} overlaps "
                f"{first}-{last} ({purpose} of {plan.name}); choose other seeds."
            )


def require_disjoint(blocks: Mapping[str, range]) -> None:
    """Raise ConfigError where seeds of two purposes meet: what a choice was made on must not judge it, too."""
    named = sorted(((block, name) for name, block in blocks.items() if block), key=lambda pair: pair[0][0])
    for (a, first), (b, second) in combinations(named, 2):
        if b[0] <= a[-1]:
            raise ConfigError(
                f"Seeds of {first} and {second} must not meet, but {first} needs {len(a)} from {a[0]} on and {second} "
                f"starts at {b[0]}; use fewer images."
            )
