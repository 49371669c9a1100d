"""Seeds, and rows of stored conditions, that found a plan are never those that it is judged by."""

from collections.abc import Mapping, Sequence
from typing import Any

from fewstep.checks import ConfigError
from fewstep.pipeline.conditions import row_ranges
from fewstep.sampling.plan import Plan


def require_unseen(plan: Plan, seeds: Sequence[int]) -> None:
    """Raise ConfigError where images of these seeds, which follow one another, had a part in finding the plan."""
    for purpose, (first, last) in plan.provenance.get("seeds", {}).items():
        if seeds[0] <= last and first <= seeds[-1]:
            raise ConfigError(
                f"Seeds to report on must not have been searched on, but {seeds[0]}-{seeds[-1]} overlaps "
                f"{first}-{last} ({purpose} of {plan.name}); choose other seeds."
            )


def require_unseen_rows(plan: Plan, seeds: Sequence[int], conditions: Mapping[str, Any] | None) -> None:
    """Raise ConfigError where the stored conditions of these seeds had a part in finding the plan.

    Only for what is reported: the stages that find a plan together may share rows, as they share the images that a
    model was trained on. Rows are compared within one set of conditions, which its hash names.

    Args: conditions: `identity` of the model's conditions, or what a certificate names; None for none.
    """
    if conditions is None:
        return
    for purpose, used in plan.provenance.get("conditions", {}).items():
        if used["sha256"] != conditions["sha256"]:
            continue
        for first, last in row_ranges(seeds, conditions["rows"]):
            for low, high in used["rows"]:
                if first <= high and low <= last:
                    raise ConfigError(
                        f"Conditions to report on must not have been searched on, but rows {first}-{last} overlap "
                        f"{low}-{high} ({purpose} of {plan.name}); choose other seeds or other --conditions."
                    )
