"""Seeds that found a plan are never those that it is judged by."""

from collections.abc import Sequence

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
