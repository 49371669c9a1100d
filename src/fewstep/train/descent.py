"""One optimiser step: parts of a batch, gradients summed over parts and processes, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fewstep.checks import ConfigError
from fewstep.train.world import World


def descend(
    loss: Callable[[slice], Tensor],
    net: nn.Module,
    optimiser: Optimizer,
    *,
    size: int,
    world: World,
    parts: int = 1,
    clip: float | None = None,
) -> dict[str, Tensor]:
    """Lower the mean of a loss over the global batch by one step of an optimiser.

    Args:
        loss: From rows of this process's part of the batch to their losses, one per image.
        net: Whose gradients are used; gradients of other networks are left alone.
        optimiser: Over parameters of `net`.
        size: Images in the global batch.
        world: The processes that share it.
        parts: Pieces into which this process's rows are cut to save memory; the result is the same.
        clip: Largest norm of the whole gradient; None: no limit.

    Returns:
        `loss` and `grad_norm` (before clipping), scalars.
    """
    optimiser.zero_grad(set_to_none=True)
    parameters = [p for p in net.parameters() if p.requires_grad]
    total = torch.zeros((), device=parameters[0].device)
    for rows in slices(size // world.size, parts):
        share = loss(rows).sum() / size
        share.backward()  # type: ignore[no-untyped-call]
        total += share.detach()
    world.add_up(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip, foreach=True)
    optimiser.step()
    return {"loss": world.mean(total) * world.size, "grad_norm": norm.detach()}


def slices(n: int, parts: int) -> list[slice]:
    """Cut `n` rows into `parts` slices of nearly equal length.

    Raises:
        ConfigError: More parts than rows.
    """
    if not 1 <= parts <= n:
        raise ConfigError(f"a batch of {n} images per process can be cut into 1 to {n} parts; got {parts}.")
    edges = [n * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
