"""Batches without state: what step s sees depends on the seed and s alone; nothing has to be resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.data.pairs import Pairs
from fewstep.data.pixels import to_unit
from fewstep.diffusion.condition import Condition
from fewstep.rng import generator


class ImageSource(Protocol):
    """What training needs of a dataset; `data.packed.Dataset` is one."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """One class per image, or None."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the content."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> Tensor:
        """The images of these rows, uint8 `(B, C, H, W)`, or their latents, floating point."""
        ...


@dataclass(frozen=True)
class Batch:
    """One process's part of a global batch.

    x0: `(b, C, H, W)` float32, images in [-1, 1] or latents. labels: int64 `(b,)` or None, the target of a
    classifier. size: images in the global batch. rows: which of its rows these are; noise is drawn for the whole global
    batch and cut to these rows. condition: what the images are conditioned on, b of them, or None.
    """

    x0: Tensor
    labels: Tensor | None
    size: int
    rows: slice
    condition: Condition | None = None

    def cut(self, drawn: Tensor) -> Tensor:
        """This process's rows of something drawn for the global batch, on the device of the images."""
        return drawn[self.rows].to(self.x0.device, non_blocking=True)


def image_batches(
    source: ImageSource,
    *,
    batch_size: int,
    seed: int,
    flip: bool = False,
    condition: Condition | None = None,
    pairs: Pairs | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> Callable[[int], Batch]:
    """A function from the step (0, 1, ...) to its batch.

    Args:
        source: The images; every epoch visits each of them once, in an order of its own.
        batch_size: Images per step over all processes.
        seed: Of the orders and the flips.
        flip: Mirror each image left to right with probability one half, and with it its maps `(B, C, H, W)`.
        condition: Of each image of the source, in its order; floating-point tensors become float32. Where there are k
            times as many rows, each image has those at its own distance modulo the number of images, one of them drawn
            in each step.
        pairs: Which of the rows each image may have instead; images without any are left out.
        rank: This process's number.
        world_size: Number of processes, which share each batch equally.
        device: Where the batch goes.

    Raises:
        ConfigError: An empty source, or a batch that the processes cannot share equally.
        DataError: Another number of conditions than of images, or pairs of others.
    """
    n = len(source)
    if condition is not None and pairs is not None:
        pairs.require_within(len(condition), n)
    elif condition is not None and (len(condition) % max(n, 1) or not len(condition)):
        raise DataError(
            f"training needs one row of conditions for each of the {n} images, in their order, or a whole number of "
            f"such blocks; got {len(condition)}."
        )
    if n < 1:
        raise ConfigError("training needs at least one image; the dataset is empty.")
    if batch_size < 1 or batch_size % world_size:
        raise ConfigError(
            f"batch_size must be a positive multiple of the {world_size} processes that share it; "
            f"got {batch_size}."
        )
    targets = None if pairs is None or condition is None else torch.from_numpy(pairs.targets)
    n_targets = n if targets is None else len(targets)
    share = batch_size // world_size
    rows = slice(rank * share, (rank + 1) * share)
    labels = None if source.labels is None else torch.as_tensor(np.asarray(source.labels))

    def at(step: int) -> Batch:
        drawn = indices(step, n=n_targets, batch_size=batch_size, seed=seed)[rows]
        chosen = drawn if targets is None else targets[drawn]
        images = source.batch(chosen.numpy())
        of_images = None
        if condition is not None and len(condition) == n and pairs is None:
            of_images = condition[chosen]
        elif condition is not None:
            uniform = torch.rand(batch_size, generator=generator(seed, "pairs", step), dtype=torch.float64)
            if pairs is None:
                blocks = (uniform[rows] * (len(condition) // n)).long()
                of_images = condition[blocks * n + chosen]
            else:
                of_images = condition[torch.from_numpy(pairs.drawn(drawn.numpy(), uniform[rows].numpy()))]
        if flip:
            mirror = torch.rand(batch_size, generator=generator(seed, "flip", step))[rows] < 0.5
            images = torch.where(mirror[:, None, None, None], images.flip(-1), images)
            of_images = None if of_images is None else _mirrored(of_images, mirror)
        images = images.to(device, non_blocking=True)
        x0 = images if images.is_floating_point() else to_unit(images)
        x0 = x0.contiguous(memory_format=torch.channels_last)
        return Batch(
            x0,
            None if labels is None else labels[chosen].to(device),
            batch_size,
            rows,
            None if of_images is None else of_images.to(device, x0.dtype),
        )

    return at


def _mirrored(condition: Condition, mirror: Tensor) -> Condition:
    """The maps of some images left to right; what has no width stays."""
    values = condition.values.items()
    return condition.where(
        mirror, Condition({name: value.flip(-1) if value.ndim == 4 else value for name, value in values})
    )


def indices(step: int, *, n: int, batch_size: int, seed: int) -> Tensor:
    """Rows of the global batch of a step, int64 `(batch_size,)`: a window of the endless row of epochs."""
    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // n, (stop - 1) // n + 1)
    row = torch.cat([_epoch(n, seed, epoch) for epoch in epochs])
    return row[start - epochs[0] * n : stop - epochs[0] * n]


@lru_cache(maxsize=4)
def _epoch(n: int, seed: int, epoch: int) -> Tensor:
    """The order of one epoch."""
    return torch.randperm(n, generator=generator(seed, "epoch", epoch))


def in_order(
    source: ImageSource, batch_size: int, device: torch.device | str
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """All images once: rows (B,), and images (B, C, H, W) in [-1, 1] on the device."""
    for start in range(0, len(source), batch_size):
        rows = np.arange(start, min(start + batch_size, len(source)))
        yield rows, to_unit(source.batch(rows)).to(device)


def batch_settings(source: ImageSource, **values: Any) -> dict[str, Any]:
    """The facts about the batches that a checkpoint must agree with."""
    return {"data": source.fingerprint, "images": len(source), **values}
