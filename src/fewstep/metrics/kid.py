"""Kernel distance: unbiased squared maximum mean discrepancy [binkowski2018kid]."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep._typing import AnyArray, Float, Float64
from fewstep.checks import DataError
from fewstep.metrics.statistics import Array
from fewstep.rng import generator

BLOCKS = 10
SEED = 2018
SIGMA = 10.0  # of the kernel of CMMD


@dataclass(frozen=True)
class Kid:
    """Estimate, its standard error, and the replicates behind it; a good model's value may be below zero.

    Attributes: replicates: one for each block left out, spread so that their standard deviation (divisor one
        less than their number) is the standard error. They are linear in the estimates: the standard deviation
        of the differences of two sets' replicates is the standard error of the difference of their values,
        where image i of both sets is of one seed and the real images are the same.
    """

    value: float
    standard_error: float
    replicates: Array


def mmd2(x: Float64[AnyArray, "n d"], y: Float64[AnyArray, "m d"]) -> float:
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


def gaussian(x: Array, y: Array) -> Array:
    """exp(-|x - y|^2 / (2 sigma^2)) with sigma = 10, for features of unit length [jayasumana2024cmmd]."""
    squared = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
    kernel: Array = np.exp(-squared / (2 * SIGMA**2))
    return kernel


def kid(
    fake: Float[AnyArray, "n d"],
    real: Float[AnyArray, "m d"],
    *,
    scale: float = 1.0,
    largest: int = 2000,
    kernel: Callable[[Array, Array], Array] = _kernel,
) -> Kid:
    """Kernel distance of two sets of features, with a standard error from leaving out one block in ten.

    Sets of more than `largest` images are cut into groups, whose estimates are averaged: linear cost.
    One estimate over all pairs of a group is surer than the usual mean over subsets of it.

    Args: fake, real: (n, D), (m, D). scale: features are divided by it; the kernel is not scale-free. kernel: from
        (n, D) and (m, D) to (n, m).
    Raises: DataError: fewer than two images a block.
    """
    require_blocks(len(fake), len(real))
    # Every group needs images of both kinds: a small real set limits how many there are.
    groups = min(-(-len(fake) // largest), len(real) // (2 * BLOCKS))
    pairs = zip(_groups(fake, groups, largest), _groups(real, groups, largest), strict=True)
    found = (_jackknife(x / scale, y / scale, kernel) for x, y in pairs)
    values, without = map(np.array, zip(*found, strict=True))
    value = float(values.mean())
    deviations = without - without.mean(1, keepdims=True)
    error = np.sqrt((BLOCKS - 1) / BLOCKS * np.square(deviations).sum()) / groups
    spread = np.sqrt((deviations.size - 1) * (BLOCKS - 1) / BLOCKS) / groups
    return Kid(value, float(error), value + spread * deviations.ravel())


def require_blocks(n_fake: int, n_real: int) -> None:
    """Raise DataError where there are fewer than two images a block."""
    smaller = min(n_fake, n_real)
    if smaller < 2 * BLOCKS:
        raise DataError(
            f"KID needs at least {2 * BLOCKS} images on either side, got {smaller}; draw more samples."
        )


def _groups(features: NDArray[Any], groups: int, largest: int) -> Iterator[Array]:
    """Disjoint sets of equal size after a fixed shuffle; what is left over is not used."""
    size = min(len(features) // groups, largest)
    order = torch.randperm(len(features), generator=generator(SEED, "groups", len(features))).numpy()
    for rows in order[: groups * size].reshape(groups, size):
        yield features[rows].astype(np.float64)


def _jackknife(x: Array, y: Array, kernel: Callable[[Array, Array], Array]) -> tuple[float, Array]:
    """MMD^2 of all and without each block; the kernel is computed once and summed by blocks."""
    kernel_xx, kernel_yy = kernel(x, x), kernel(y, y)
    np.fill_diagonal(kernel_xx, 0)
    np.fill_diagonal(kernel_yy, 0)
    n_x, starts_x = _block_sizes(len(x))
    n_y, starts_y = _block_sizes(len(y))
    xx = _block_sums(kernel_xx, starts_x, starts_x)
    yy = _block_sums(kernel_yy, starts_y, starts_y)
    xy = _block_sums(kernel(x, y), starts_x, starts_y)

    def estimate(kept: NDArray[np.bool_]) -> float:
        n, m = int(n_x[kept].sum()), int(n_y[kept].sum())
        inside = np.ix_(kept, kept)
        return float(
            xx[inside].sum() / (n * (n - 1))
            + yy[inside].sum() / (m * (m - 1))
            - 2 * xy[inside].sum() / (n * m)
        )

    without = np.array([estimate(np.arange(BLOCKS) != block) for block in range(BLOCKS)])
    return estimate(np.ones(BLOCKS, bool)), without


def _block_sizes(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    edges = np.arange(BLOCKS + 1) * n // BLOCKS
    return np.diff(edges), edges[:-1]


def _block_sums(kernel: Array, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Array:
    sums: Array = np.add.reduceat(np.add.reduceat(kernel, rows, axis=0), columns, axis=1)
    return sums
