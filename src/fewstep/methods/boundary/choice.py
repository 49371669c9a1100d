"""How strong the machine's errors weigh, C: chosen by what edits do, and not by how many latents are on their side.

There are more dimensions than latents, so that any number of planes separates those of the fit, and held-out accuracy
does not say which of them is a direction in which an image changes into another. Small C turns the normal towards the
difference of the means.

Differs: published is C = 1 for all [zhu2023boundary].
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Content distances of a sweep of edits and the share that succeeds at each; both (Z,)."""


def success_at(curve: Curve, content: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """The share that succeeds at a content distance, between the edits of a sweep on a line; from none at 0."""
    distances, success = curve
    order = np.argsort(distances)
    return np.asarray(np.interp(content, np.r_[0.0, distances[order]], np.r_[0.0, success[order]]))


def shared_content(curves: Sequence[Curve]) -> float:
    """The largest content distance that all sweeps reach."""
    return float(min(distances.max() for distances, _ in curves))


def scores(curves: Mapping[float, Curve], *, levels: int = 20) -> dict[float, float]:
    """Of each C the mean share that succeeds, at content distances up to one that all reach: what differs is the
    direction, and not how far images went.
    """
    most = shared_content(list(curves.values()))
    at = most * np.arange(1, levels + 1) / levels
    return {c: float(success_at(curve, at).mean()) for c, curve in curves.items()}


def best(curves: Mapping[float, Curve]) -> float:
    """The C of the highest score, of equal ones the smallest, with the widest margin."""
    found = scores(curves)
    return max(found, key=lambda c: (round(found[c], 9), -c))
