"""Long work in parts: what is done stays done, and several processes or machines may share it.

The parts of n images are cut at fixed places, whoever makes them and however many do. So the whole is the same
as if one process had made it in one go, and a part that was lost is made again alone.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from fewstep.checks import ConfigError

IMAGES = 4096
"""Images in a part, about, and no more."""
CALLS = 100_000
"""Network calls in a part, about: a plan of many calls has smaller parts, so that an interruption costs minutes."""
PATIENCE = timedelta(days=1)
"""How long one worker waits for the others, whose shares differ by whole parts."""


@dataclass
class Shard:
    """One of `count` workers that go through the same parts in the same order, and take turns."""

    index: int = 0
    count: int = 1
    _turn: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether there is no other worker."""
        return self.count == 1

    def takes_next(self) -> bool:
        """Whether the next part is this worker's; to be called once for every part, made or not."""
        self._turn += 1
        return (self._turn - 1) % self.count == self.index


def parse_shard(text: str | None) -> Shard:
    """Read `3/8`, the third of eight; without a text the place in torchrun's world, or the whole.
    Raises: ConfigError: anything else.
    """
    if text is None:
        return Shard(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(f"--shard must be K/N with 1 <= K <= N, such as 3/8, got {text!r}.")
    return Shard(number - 1, count)


def part_ranges(n: int, *, batch_size: int = 1, nfe: int = 1) -> Iterator[range]:
    """Rows of each part of n images of nfe calls, whole batches: every image is in the batch of undivided work."""
    size = max(1, min(IMAGES, CALLS // max(1, nfe)) // batch_size) * batch_size
    for start in range(0, n, size):
        yield range(start, min(start + size, n))
