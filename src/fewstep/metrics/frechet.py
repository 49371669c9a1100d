"""Fréchet distance between two Gaussians [dowson1982frechet], without a matrix square root.

tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of B^T S1 B, a symmetric matrix, for any factor
B B^T = S2; and it is the nuclear norm of A1 A2^T for centred features A^T A = S. The smaller one is computed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.metrics.statistics import Array, Statistics


@dataclass(frozen=True)
class Frechet:
    """The squared distance and how it came about.

    A large mean term with a small trace term is a shift of colour or brightness. Rounding leaves a value of
    up to 1e-8 of the trace, of either sign, between equal sets.
    """

    value: float
    mean_term: float
    trace_term: float
    rank: int
    """Eigenvalues that can differ from zero, by the numbers of images and of features."""
    condition: float
    """Smallest over largest of them."""
    clipped: float
    """Sum of the negative ones, which are rounding and count as zero."""
    method: str


def frechet(a: Statistics, b: Statistics, *, method: str = "auto") -> Frechet:
    """Squared Fréchet distance, in float64.

    Args: a, b: in any order; where one of them is used again and again its factor is computed once and kept.
        method: "cross" (both sets of features kept), "small-a" or "small-b" (features of that side kept),
        "factor-a" or "factor-b" (covariances alone), or "auto", the cheapest of them.
    Raises: DataError: different numbers of features, or NaN or infinity.
        ValueError: no such method.
    """
    _check(a, b)
    if method == "auto":
        method = _cheapest(a, b)
    if method not in _SPECTRA:
        raise ValueError(f"method must be auto or one of {', '.join(_SPECTRA)}; got {method!r}.")
    spectrum = _SPECTRA[method](a, b)
    rank = min([a.dim, *(side.n - 1 for side in (a, b) if side.n is not None)])
    roots, clipped, condition = _roots(spectrum, rank, squared=method != "cross")
    difference = a.mu - b.mu
    mean_term = float(difference @ difference)
    trace_term = _trace(a) + _trace(b) - 2 * float(roots.sum())
    value = mean_term + trace_term
    if not np.isfinite(value):
        raise DataError(
            "The Fréchet distance is not finite: the features overflow float64; look at the extractor."
        )
    return Frechet(value, mean_term, trace_term, rank, condition, clipped, method)


def _check(a: Statistics, b: Statistics) -> None:
    if a.dim != b.dim:
        raise DataError(
            f"Both sets must have the same features, got {a.dim} and {b.dim} numbers an image; "
            "extract them with one extractor."
        )
    for side in (a, b):
        arrays = [side.mu, *([side.cov] if side.features is None else [side.features])]
        if not all(np.isfinite(array).all() for array in arrays):
            raise DataError("Statistics must be finite, but they hold NaN or infinity; make them again.")


def _cheapest(a: Statistics, b: Statistics) -> str:
    sizes = {
        name: side.n
        for name, side in (("a", a), ("b", b))
        if side.features is not None and side.n is not None and side.n < a.dim
    }
    if sizes:
        small = min(sizes, key=sizes.__getitem__)
        other = b if small == "a" else a
        return "cross" if other.features is not None and not other.known("cov") else f"small-{small}"
    return "factor-a" if a.known("factor") and not b.known("factor") else "factor-b"


def _cross(a: Statistics, b: Statistics) -> Array:
    return _double(np.linalg.svd(a.centred() @ b.centred().T, compute_uv=False))


def _small(small: Statistics, other: Statistics) -> Array:
    rows = small.centred()
    return _eigenvalues(rows @ other.cov @ rows.T)


def _by_factor(a: Statistics, b: Statistics) -> Array:
    return _eigenvalues(b.factor.T @ a.cov @ b.factor)


def _eigenvalues(matrix: Array) -> Array:
    return _double(np.linalg.eigvalsh((matrix + matrix.T) / 2))


def _double(values: NDArray[Any]) -> Array:
    return values.astype(np.float64, copy=False)


_SPECTRA = {
    "cross": _cross,
    "small-a": lambda a, b: _small(a, b),
    "small-b": lambda a, b: _small(b, a),
    "factor-a": lambda a, b: _by_factor(b, a),
    "factor-b": _by_factor,
}


def _roots(spectrum: Array, rank: int, *, squared: bool) -> tuple[Array, float, float]:
    """Roots of the `rank` largest eigenvalues (singular values are roots), clipped mass, condition."""
    top = np.sort(spectrum)[-rank:]
    clipped = float(-top[top < 0].sum())
    top = top.clip(min=0)
    condition = float(top[0] / top[-1]) if top[-1] > 0 else 0.0
    return (np.sqrt(top), clipped, condition) if squared else (top, clipped, condition**2)


def _trace(side: Statistics) -> float:
    if side.known("cov") or side.features is None:
        return float(np.trace(side.cov))
    return float(np.square(side.centred()).sum())
