"""How sure a Fréchet distance is, given the images at hand; the reference is taken as fixed.

The images are cut into two halves, again and again. To second order in the error d of an estimated mean (or
covariance), a distance is T = (c + d)^2, with the variance 4 c^2 s^2 + 2 s^4 for d ~ N(0, s^2). The halves of a cut
have the errors d + h and d - h, with h distributed as d. So half the difference of their distances, 2 (c + d) h,
has the variance 4 c^2 s^2 + 4 s^4, and their mean, (c + d)^2 + h^2, varies over the cuts by 2 s^4: the variance of T
is the first minus the second. Far from the reference this is the spread of random halves [mccarthy1969pseudo]; where
a distance is all bias, that spread alone is too wide, by up to the root of three.
A bootstrap with replacement must not be used: its duplicates act like a smaller set and shift the distance
itself upwards by more than half.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep._typing import AnyArray, Float, Float64
from fewstep.checks import ConfigError, DataError
from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Array, Statistics
from fewstep.rng import generator

RESAMPLES = 100
"""Of 50 cuts: the standard deviation that follows has a relative error of 10 to 20 percent."""

_SEED = 20150


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


def half_samples(
    features: Float[AnyArray, "n d"], reference: Statistics, *, resamples: int = RESAMPLES, seed: int = _SEED
) -> Float64[AnyArray, " {resamples}"]:
    """Fréchet distances of both halves of random cuts of the images to the reference.

    Two sets of the same size are cut at the same indices, so that their replicates are paired. Each replicate
    costs one product and one spectrum, because the reference's factor is applied to all images beforehand.

    Args: features: (N, D), N >= 4. resamples: an even number, at least 4.
    Returns: (resamples,) distances at N/2, the two halves of a cut side by side; `spread` reads them.
    Raises: DataError: fewer than four images. ConfigError: an odd number of replicates.
    """
    n = len(features)
    require_halves(n)
    if resamples < 4 or resamples % 2:
        raise ConfigError(f"resamples must be even and at least 4, both halves of each cut; got {resamples}.")
    rows = features.astype(np.float64) - reference.mu
    projected = rows @ reference.factor
    size = n // 2
    gram = projected @ projected.T if size < projected.shape[1] else None
    norms = np.square(rows).sum(1)
    trace = float(np.trace(reference.cov))
    rng = generator(seed, "halves", n)

    def distance(half: NDArray[np.int64]) -> float:
        mean = rows[half].mean(0)
        mean_term = float(mean @ mean)
        own_trace = (float(norms[half].sum()) - size * mean_term) / (size - 1)
        spectrum = _gram_spectrum(gram, half) if gram is not None else _scatter_spectrum(projected[half])
        roots = np.sqrt((spectrum / (size - 1)).clip(min=0))
        return mean_term + own_trace + trace - 2 * float(roots.sum())

    replicates = []
    for _ in range(resamples // 2):
        order = torch.randperm(n, generator=rng).numpy()
        replicates += [distance(np.sort(order[:size])), distance(np.sort(order[size : 2 * size]))]
    return np.array(replicates)


def require_halves(n: int) -> None:
    """Raise DataError where n images have no two halves with a covariance."""
    if n < 4:
        raise DataError(f"An interval needs at least 4 images, got {n}; draw more samples.")


def spread(replicates: NDArray[Any] | Sequence[float]) -> float:
    """Standard deviation at N of what `half_samples` measured at N/2, or of differences of two such."""
    one, other = np.asarray(replicates, np.float64).reshape(-1, 2).T
    odd = float(np.square(one - other).mean()) / 4
    even = float(((one + other) / 2).var(ddof=1))
    # the variance is no less than 2 s^4, but for chance in the difference
    return float(np.sqrt(max(odd - even, even)))


def _gram_spectrum(gram: Array, half: NDArray[np.int64]) -> Array:
    part = gram[np.ix_(half, half)]
    means = part.mean(0)
    centred = part - means - means[:, None] + means.mean()
    # Centring leaves one exact zero, whose rounding is dropped.
    return np.linalg.eigvalsh(centred)[1:]


def _scatter_spectrum(rows: Array) -> Array:
    mean = rows.mean(0)
    return np.linalg.eigvalsh(rows.T @ rows - len(rows) * np.outer(mean, mean))


def normal_interval(value: float, sd: float, level: float = 0.95) -> Interval:
    """Value -+ z sd with the normal quantile of the level."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    return Interval(value - z * sd, value + z * sd)


def wilson_interval(fraction: float, n: float, level: float = 0.95) -> Interval:
    """Interval of a fraction of n independent images, or of an effective number [wilson1927inference]."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (fraction * (1 - fraction) / n + z * z / (4 * n * n)) ** 0.5
    return Interval(max(centre - half, 0.0), min(centre + half, 1.0))


def _deviation(replicates: Array) -> float:
    return float(np.std(replicates, ddof=1))


SPREADS: dict[str, Callable[[Array], float]] = {"half-sampling": spread, "block jackknife": _deviation}
"""Method of an interval -> the standard deviation that its replicates, or differences of such, stand for."""


class Difference(NamedTuple):
    """A - B with its interval."""

    value: float
    interval: Interval


def paired_difference(
    value_a: float,
    value_b: float,
    replicates_a: NDArray[Any] | Sequence[float],
    replicates_b: NDArray[Any] | Sequence[float],
    level: float = 0.95,
    *,
    spread: Callable[[Array], float] = spread,
) -> Difference:
    """Difference of two distances whose replicates were cut at the same indices.

    Samples drawn from the same seeds move together, so that the difference is surer than either distance.
    Args: spread: how replicates are read, of SPREADS.
    Raises: DataError: different numbers of replicates.
    """
    if len(replicates_a) != len(replicates_b):
        raise DataError(
            f"Replicates must be paired, got {len(replicates_a)} and {len(replicates_b)}; evaluate both anew."
        )
    value = value_a - value_b
    apart = np.asarray(replicates_a) - np.asarray(replicates_b)
    return Difference(value, normal_interval(value, spread(apart), level))


def paired_ratio(
    value_a: float,
    value_b: float,
    replicates_a: NDArray[Any] | Sequence[float],
    replicates_b: NDArray[Any] | Sequence[float],
    level: float = 0.95,
    *,
    spread: Callable[[Array], float] = spread,
) -> Interval:
    """Interval of A / B: the ratios r for which the interval of A - r B holds zero [fieller1954some].

    Args: as of `paired_difference`, with A and B above zero.
    Returns: bounds; the upper one is infinite where B itself is not distinguishable from zero.
    Raises: DataError: different numbers of replicates.
    """

    def apart(ratio: float) -> bool:
        scaled = ratio * np.asarray(replicates_b)
        low, high = paired_difference(
            value_a, ratio * value_b, replicates_a, scaled, level, spread=spread
        ).interval
        return low > 0 or high < 0

    def bound(inside: float, outside: float) -> float:
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if apart(middle) else (middle, outside)
        return inside

    centre = value_a / value_b
    low = bound(centre, 0.0) if apart(0.0) else 0.0
    beyond = next((far for k in range(1, 21) if apart(far := centre * 2.0**k)), np.inf)
    return Interval(low, bound(centre, beyond) if beyond < np.inf else np.inf)


class Extrapolation(NamedTuple):
    """Fit FD(N) = value + slope / N and its coefficient of determination."""

    value: float
    slope: float
    r2: float


def require_extrapolable(n: int, dim: int, *, parts: int = 4) -> None:
    """Raise DataError where the smallest part of n images has no more of them than features."""
    if n // parts <= dim:
        raise DataError(
            f"FD at infinitely many images needs more than {parts * dim} images, {parts} times the number of "
            f"features, got {n}; draw more samples or leave inf out of the metrics."
        )


def extrapolate(
    features: Float[AnyArray, "n d"],
    reference: Statistics,
    *,
    parts: int = 4,
    repeats: int = 4,
    seed: int = _SEED,
) -> Extrapolation:
    """Distance at infinitely many images, by a line in 1/N from N / parts to N [chong2020unbiased].

    The bias of a finite reference remains; it is about slope / n_reference.
    Differs: the images are cut into 1, 2, ... parts whose distances are averaged, instead of random subsets, so
    that each image counts equally at each size and the intercept varies hardly more than FD(N) does.

    Args: features: (N, D). repeats: cuts into more than one part, each after another shuffle.
    Raises: DataError: the smallest part has no more images than features; the law holds beyond them.
    """
    n, dim = features.shape
    require_extrapolable(n, dim, parts=parts)
    rng = generator(seed, "extrapolate", n)
    inverse, distances = np.empty(parts), np.empty(parts)
    for k in range(1, parts + 1):
        size = n // k
        cuts = [
            torch.randperm(n, generator=rng)[: k * size].reshape(k, size).numpy()
            for _ in range(1 if k == 1 else repeats)
        ]
        values = [
            frechet(Statistics.from_features(features[rows]), reference).value for cut in cuts for rows in cut
        ]
        inverse[k - 1], distances[k - 1] = 1 / size, np.mean(values)
    slope, value = np.polyfit(inverse, distances, 1)
    residual = distances - (value + slope * inverse)
    r2 = 1 - float(residual @ residual / np.square(distances - distances.mean()).sum())
    return Extrapolation(float(value), float(slope), r2)


def student_quantile(p: float, dof: int) -> float:
    """The quantile of Student's t above its median, by bisection of its distribution function.

    Args: p: in [0.5, 1). dof: degrees of freedom.
    Raises: ValueError: p out of range, or no degree of freedom.
    """
    if not 0.5 <= p < 1 or dof < 1:
        raise ValueError(f"p must lie in [0.5, 1) and dof be 1 or more; got {p} and {dof}.")
    # with t = sqrt(dof) tan(a) the density becomes cos(a)^(dof - 1), and the axis finite
    angles = np.linspace(0.0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (dof - 1)
    steps = (density[1:] + density[:-1]) / 2
    distribution = 0.5 + 0.5 * np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    return math.sqrt(dof) * math.tan(float(np.interp(p, distribution, angles)))
