"""Random seeds of images: blocks of them by purpose, and those that found a plan are never those that judge it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from fewstep.checks import ConfigError

if TYPE_CHECKING:
    from fewstep.sampling.plan import Plan

BLOCK = 1_000_000
"""From the first seed of one purpose to that of the next."""


class SeedBlocks(Mapping[str, range]):
    """The seeds of a stage's images: one block for each purpose, a million apart, so that no two share a seed.

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
