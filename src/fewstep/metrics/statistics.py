"""Mean and covariance of features in float64, the same bits for every batch size and number of workers.

Images are reduced in chunks of 256 aligned to their global index, and the chunks are folded in index order
with Chan's formula [chan1983variance]; workers may only decide who computes a chunk.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep._typing import AnyArray, Float, Float64
from fewstep.checks import DataError

CHUNK = 256

Array = NDArray[np.float64]


class Moments(NamedTuple):
    """Count, mean (D,) and scatter sum((x - mean)(x - mean)^T) (D, D) of some rows."""

    n: int
    mean: Float64[AnyArray, " d"]
    scatter: Float64[AnyArray, "d d"]


def chunk_moments(features: Float[AnyArray, "n d"]) -> Moments:
    """Moments of one chunk (n, D), promoted to float64 before anything is summed."""
    rows = np.asarray(features, np.float64)
    mean = rows.sum(0) / max(len(rows), 1)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union [chan1983variance]; either side may be empty."""
    return _merge_into(Moments(a.n, a.mean.copy(), a.scatter.copy()), b)


def _merge_into(a: Moments, b: Moments) -> Moments:
    if a.n == 0 or b.n == 0:
        return b if a.n == 0 else a
    n = a.n + b.n
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.n / n)
    scatter = torch.from_numpy(a.scatter).add_(torch.from_numpy(b.scatter))
    direction = torch.from_numpy(delta)
    scatter.addr_(direction, direction, alpha=a.n * b.n / n)
    return Moments(n, mean, a.scatter)


def fold(chunks: Iterable[Moments]) -> Moments:
    """Merge chunks in index order.
    Raises: DataError: there is no chunk.
    """
    total: Moments | None = None
    for chunk in chunks:
        if total is None:
            total = Moments(chunk.n, chunk.mean.copy(), chunk.scatter.copy())
        else:
            total = _merge_into(total, chunk)
    if total is None:
        raise DataError("Statistics need at least one image, got none.")
    return total


class Accumulator:
    """Moments of features that arrive in pieces of any size, in global order."""

    def __init__(self) -> None:
        self._total: Moments | None = None
        self._waiting: list[NDArray[Any]] = []

    def update(self, features: NDArray[Any]) -> None:
        """Take the next rows (n, D)."""
        self._waiting.append(features)
        if sum(map(len, self._waiting)) >= CHUNK:
            rows = np.concatenate(self._waiting)
            whole = len(rows) // CHUNK * CHUNK
            for start in range(0, whole, CHUNK):
                self._take(chunk_moments(rows[start : start + CHUNK]))
            self._waiting = [rows[whole:]]

    def moments(self) -> Moments:
        """Moments of all rows so far.
        Raises: DataError: there were none.
        """
        rest = [rows for rows in self._waiting if len(rows)]
        done = [] if self._total is None else [self._total]
        return fold([*done, *([chunk_moments(np.concatenate(rest))] if rest else [])])

    def _take(self, chunk: Moments) -> None:
        self._total = chunk if self._total is None else _merge_into(self._total, chunk)


class Statistics:
    """Mean, covariance and, where kept, the features; covariance and factor are computed when asked for.

    Attributes: n: number of images, None when a foreign file does not say. mu: (D,) float64.
        features: (n, D) float32 or float64, or None.
    """

    def __init__(
        self,
        n: int | None,
        mu: Array,
        cov: Array | None = None,
        *,
        features: NDArray[Any] | None = None,
        factor: Array | None = None,
    ) -> None:
        if cov is None and features is None:
            raise ValueError("Statistics need a covariance or the features that it follows from.")
        self.n, self.mu, self.features = n, mu, features
        # Values given here stand in for the cached properties of the same name.
        if cov is not None:
            self.__dict__["cov"] = cov
        if factor is not None:
            self.__dict__["factor"] = factor

    @classmethod
    def from_features(cls, features: Float[AnyArray, "n d"]) -> "Statistics":
        """Statistics of features (n, D), n >= 2.
        Raises: DataError: another shape, fewer than two rows, or NaN or infinity among the features.
        """
        if features.ndim != 2 or len(features) < 2:
            raise DataError(f"Features must be an array (N, D) with N >= 2, got {features.shape}.")
        if not np.isfinite(features).all():
            bad = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
            raise DataError(f"Features must be finite; row {bad} holds NaN or infinity: look at that image.")
        return cls(len(features), _mean(features), features=features)

    @classmethod
    def from_moments(cls, moments: Moments) -> "Statistics":
        """Statistics of what was accumulated, without features.
        Raises: DataError: fewer than two rows, or NaN or infinity among them.
        """
        if moments.n < 2:
            raise DataError(f"Statistics need at least two images, got {moments.n}.")
        if not np.isfinite(moments.scatter).all():
            raise DataError("Features must be finite, but NaN or infinity came up: look at the images.")
        return cls(moments.n, moments.mean, moments.scatter / (moments.n - 1))

    @property
    def dim(self) -> int:
        """Number of features D."""
        return len(self.mu)

    @cached_property
    def cov(self) -> Array:
        """Covariance (D, D) with divisor n - 1."""
        assert self.features is not None
        moments = fold(chunk_moments(chunk) for chunk in _chunks(self.features))
        return moments.scatter / (moments.n - 1)

    @cached_property
    def factor(self) -> Array:
        """A factor B (D, r) with B B^T = cov: Cholesky's at full rank, else scaled eigenvectors."""
        if self.n is None or self.n > self.dim:
            try:
                lower = np.linalg.cholesky(self.cov)
            except np.linalg.LinAlgError:
                pass
            else:
                diagonal = np.diagonal(lower)
                if diagonal.min() > 1e-6 * diagonal.max():
                    return lower.astype(np.float64, copy=False)
        values, vectors = np.linalg.eigh(self.cov)
        # n images span at most n - 1 directions; smaller eigenvalues are rounding.
        rank = self.dim if self.n is None else min(self.dim, self.n - 1)
        values, vectors = values[-rank:], vectors[:, -rank:]
        return np.ascontiguousarray(vectors * np.sqrt(values.clip(min=0)))

    def known(self, name: str) -> bool:
        """Whether `cov` or `factor` is at hand without work."""
        return name in self.__dict__

    def centred(self) -> Array:
        """A (n, D) with A^T A = cov; needs the features."""
        assert self.features is not None
        rows: Array = (self.features.astype(np.float64) - self.mu) / np.sqrt(len(self.features) - 1)
        return rows


def _chunks(features: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(features), CHUNK):
        yield features[start : start + CHUNK]


def _mean(features: NDArray[Any]) -> Array:
    """The mean that `fold` gives, to the bit, without any scatter."""
    n, mean = 0, np.zeros(features.shape[1])
    for chunk in _chunks(features):
        rows = np.asarray(chunk, np.float64)
        n += len(rows)
        chunk_mean = rows.sum(0) / len(rows)
        mean = mean + (chunk_mean - mean) * (len(rows) / n)
    return mean
