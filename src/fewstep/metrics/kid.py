"""Kernel distance: unbiased squared maximum mean discrepancy [binkowski2018kid]."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.metrics.statistics import Array
from fewstep.rng import generator

_SEED = 2018


@dataclass(frozen=True)
class Kid:
    """Mean over disjoint blocks and its standard error; a good model's value may be below zero."""

    value: float
    standard_error: float
    blocks: int


def mmd2(x: Array, y: Array) -> float:
    """Unbiased MMD^2 with the kernel (x.y / D + 1)^3 [binkowski2018kid].
    Args: x, y: (n, D) and (m, D), n and m at least 2.
    """
    kernel_xx, kernel_yy, kernel_xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    n, m = len(x), len(y)
    within_x = (kernel_xx.sum() - np.trace(kernel_xx)) / (n * (n - 1))
    within_y = (kernel_yy.sum() - np.trace(kernel_yy)) / (m * (m - 1))
    return float(within_x + within_y - 2 * kernel_xy.mean())


def _kernel(x: Array, y: Array) -> Array:
    base = x @ y.T / x.shape[1] + 1
    cubed: Array = base * base * base
    return cubed


def kid(
    fake: NDArray[Any], real: NDArray[Any], *, scale: float = 1.0, blocks: int = 10, largest: int = 1000
) -> Kid:
    """Kernel distance of two sets of features, each cut into disjoint blocks after a fixed shuffle.

    Args: fake, real: (n, D), (m, D). scale: features are divided by it; the kernel is not scale-free.
        blocks: at least 2; more of them where a block would exceed `largest` images.
    Raises: DataError: fewer than two images a block.
    """
    smaller = min(len(fake), len(real))
    if smaller < 2 * blocks:
        raise DataError(
            f"KID needs at least {2 * blocks} images on either side, got {smaller}; draw more samples."
        )
    blocks = max(blocks, -(-len(fake) // largest))
    values = np.array(
        [
            mmd2(x, y)
            for x, y in zip(
                _blocks(fake, blocks, largest, scale), _blocks(real, blocks, largest, scale), strict=True
            )
        ]
    )
    return Kid(float(values.mean()), float(values.std(ddof=1) / np.sqrt(blocks)), blocks)


def _blocks(features: NDArray[Any], blocks: int, largest: int, scale: float) -> list[Array]:
    size = min(len(features) // blocks, largest)
    order = torch.randperm(len(features), generator=generator(_SEED, "blocks", len(features))).numpy()
    rows = order[: blocks * size].reshape(blocks, size)
    return [features[np.sort(block)].astype(np.float64) / scale for block in rows]
