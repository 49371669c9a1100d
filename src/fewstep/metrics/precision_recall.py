"""Precision, recall [kynkaanniemi2019precision], density and coverage [naeem2020density].

Precision and density rise for blurred images and for images of few modes: rank by distances, read these
beside.
"""

from dataclasses import dataclass

import numpy as np

from fewstep._typing import AnyArray, Float, Float64
from fewstep.checks import DataError
from fewstep.metrics.statistics import Array

K, K_DENSITY = 3, 5
"""Which neighbour a ball reaches to, for precision and recall, and for density and coverage."""

_ROWS = 1024
"""Rows of a distance matrix that are in memory at a time."""


@dataclass(frozen=True)
class PrecisionRecall:
    """Fractions of images, but for density, which may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float
    density_error: float
    """Standard error of the density over the generated images, the real ones taken as fixed."""


def precision_recall(
    fake: Float[AnyArray, "n d"], real: Float[AnyArray, "m d"], *, k: int = K, k_density: int = K_DENSITY
) -> PrecisionRecall:
    """Overlap of two sets of features by balls that reach to each image's k-th neighbour.

    Args: fake, real: (n, D), (m, D), of similar size: balls shrink as a set grows. k: for precision and
        recall. k_density: for density and coverage.
    Raises: DataError: a set has no k-th neighbour.
    """
    require_neighbours(len(fake), len(real), max(k, k_density))
    fake, real = fake.astype(np.float64), real.astype(np.float64)
    fake_radius = _neighbour_distances(fake, k)[:, k - 1]
    real_neighbours = _neighbour_distances(real, max(k, k_density))
    real_radius, real_wide = real_neighbours[:, k - 1], real_neighbours[:, k_density - 1]
    in_real = np.zeros(len(fake), bool)
    in_fake = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    balls = np.zeros(len(fake))
    for start in range(0, len(fake), _ROWS):
        part = slice(start, start + _ROWS)
        distance = squared_distances(fake[part], real)
        in_real[part] = (distance <= real_radius).any(1)
        in_fake |= (distance <= fake_radius[part, None]).any(0)
        inside = distance <= real_wide
        covered |= inside.any(0)
        balls[part] = inside.sum(1)
    return PrecisionRecall(
        precision=float(in_real.mean()),
        recall=float(in_fake.mean()),
        density=float(balls.mean()) / k_density,
        coverage=float(covered.mean()),
        density_error=float(balls.std(ddof=1)) / k_density / len(fake) ** 0.5,
    )


def require_neighbours(n_fake: int, n_real: int, k: int = max(K, K_DENSITY)) -> None:
    """Raise DataError where an image has no k-th neighbour."""
    if min(n_fake, n_real) < k + 1:
        raise DataError(
            f"Neighbours need at least {k + 1} images on either side, got {n_fake} and {n_real}; draw more samples."
        )


def squared_distances(x: Float64[AnyArray, "n d"], y: Float64[AnyArray, "m d"]) -> Float64[AnyArray, "n m"]:
    """(n, m). Rounding may leave it below zero between equal rows, which no comparison minds."""
    distance: Array = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * (x @ y.T)
    return distance


def _neighbour_distances(x: Array, k: int) -> Array:
    """Squared distances (n, k) to the nearest neighbours, in rising order, without the image itself."""
    nearest = np.empty((len(x), k))
    for start in range(0, len(x), _ROWS):
        distance = squared_distances(x[start : start + _ROWS], x)
        rows = np.arange(len(distance))
        distance[rows, start + rows] = np.inf
        nearest[start : start + _ROWS] = np.sort(np.partition(distance, k - 1, axis=1)[:, :k], axis=1)
    return nearest
