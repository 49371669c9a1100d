"""Random seeds of images, by purpose; those that found a plan, and their conditions, are never those that judge it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fewstep.checks import ConfigError
from fewstep.pipeline.conditions import prompts_used, row_ranges

if TYPE_CHECKING:
    from fewstep.diffusion.denoiser import Model
    from fewstep.sampling.plan import Plan

BLOCK = 1_000_000
"""From the first seed of one purpose to that of the next."""


class SeedBlocks(Mapping[str, range]):
    """The seeds of a stage's images: one block for each purpose, a million apart, so that no two share a seed.

    Two blocks may share rows of stored conditions, which are seed modulo rows: with 1,000 rows all blocks begin at
    the same row, with other noises. Rows of their own would take as many as all blocks have images, 21,328 by the
    defaults of a search: a smaller folder lacks them, and one that has just these would have none left for a report,
    which must not see rows of a search (`require_unseen_rows`). So it is the report that judges on new conditions;
    the choice among finalists is on new noises alone.

    Args:
        first: seed of the first block.
        sizes: purpose -> number of images, in the order of the blocks; 0 leaves a block empty.
        prefix: before the names of purposes in the provenance of plans, where those of several stages meet.

    Raises:
        ConfigError: a block is longer than a million.
    """

    def __init__(self, first: int, sizes: Mapping[str, int], *, prefix: str = "") -> None:
        self._prefix = prefix
        self._blocks: dict[str, range] = {}
        for k, (purpose, size) in enumerate(sizes.items()):
            if size > BLOCK:
                raise ConfigError(
                    f"Images of one purpose must be at most {BLOCK:,}, so that their seeds meet no others; got "
                    f"{size:,} for {prefix}{purpose}; take fewer images or iterations."
                )
            start = first + k * BLOCK
            self._blocks[purpose] = range(start, start + size)

    def __getitem__(self, purpose: str) -> range:
        return self._blocks[purpose]

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def as_json(self) -> dict[str, list[int]]:
        """First and last seed of each block that is not empty, as provenance and records state them."""
        blocks = self._blocks.items()
        return {f"{self._prefix}{purpose}": [block[0], block[-1]] for purpose, block in blocks if len(block)}


def require_unseen(plan: "Plan", seeds: Sequence[int] | SeedBlocks) -> None:
    """Raise ConfigError where images of some seeds had a part in finding the plan.
    Args: seeds: consecutive ones, or blocks of them.
    """
    for block in seeds.values() if isinstance(seeds, SeedBlocks) else (seeds,):
        for purpose, (first, last) in plan.provenance.get("seeds", {}).items():
            if len(block) and block[0] <= last and first <= block[-1]:
                raise ConfigError(
                    f"Seeds to report on must not have been searched on, but {block[0]}-{block[-1]} overlaps "
                    f"{first}-{last} ({purpose} of {plan.name}); choose other seeds."
                )


def require_unseen_prompts(plan: "Plan", seeds: Sequence[int], model: "Model") -> None:
    """Raise ConfigError where prompts of these seeds had a part in finding the plan, whatever list they are in."""
    searched = set(plan.provenance.get("prompts", ()))
    if not searched:
        return
    reported = prompts_used(model, [seeds])
    if both := len(searched & reported):
        raise ConfigError(
            f"Prompts to report on must not have been searched on, but {both:,} of {len(reported):,} were "
            f"({plan.name}); take others with --prompts."
        )


def require_unseen_rows(plan: "Plan", seeds: Sequence[int], conditions: Mapping[str, Any] | None) -> None:
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
