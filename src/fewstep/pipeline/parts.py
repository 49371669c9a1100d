"""Long work in parts: what is done stays done, and several processes or machines may share it.

Parts are whole batches, as many as the workers need to have equal shares. So the whole is the same as if one process
had made it in one go, however it was cut, and a part that was lost is made again alone.
"""

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from fewstep.checks import ConfigError

log = logging.getLogger(__name__)

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


def part_ranges(n: int, *, batch_size: int = 1, nfe: int = 1, shards: int = 1) -> Iterator[range]:
    """Rows of each part of n images of nfe calls, whole batches: every image is in the batch of undivided work.

    Args: shards: workers, among which parts are shared so that none has more than one batch more than it must.
    """
    most = max(1, min(IMAGES, CALLS // max(1, nfe)) // batch_size)  # batches in a part
    batches = math.ceil(n / batch_size)
    rounds = math.ceil(batches / (most * shards))
    size = (most if shards == 1 else math.ceil(batches / (rounds * shards))) * batch_size
    for start in range(0, n, size):
        yield range(start, min(start + size, n))


def say_idle(parts: int, shard: Shard, what: str) -> None:
    """Warn where there is not a part for each worker."""
    if parts < shard.count:
        log.warning(
            "%s has %d parts of whole batches for %d workers, of which the others have nothing to do; a smaller batch "
            "size makes more",
            what, parts, shard.count,
        )  # fmt: skip


def tiled(found: Mapping[range, Path], n: int) -> list[tuple[range, Path]] | None:
    """Of parts that were cut in one way or another those that make up the whole, in order; None: some are missing.
    Args: found: files by the rows that they hold.
    """
    leads: dict[int, range] = {}  # from a row to the part there, from which others lead on to the end
    for rows in sorted(found, key=lambda rows: rows.start, reverse=True):
        if rows.stop == n or rows.stop in leads:
            leads[rows.start] = rows
    chosen: list[tuple[range, Path]] = []
    at = 0
    while at < n:
        if at not in leads:
            return None
        chosen.append((leads[at], found[leads[at]]))
        at = leads[at].stop
    return chosen
