"""Whether samples lie nearer to training images than images of the same kind that were not trained on do.

A data-copying test after [meehan2020copying]. Differs: each sample is asked which of equally many training and
held-out images is nearest, where the paper compares distances of samples and of held-out images to the training
set by ranks, cell by cell. Near copies of training images that are not among those compared are not seen.
"""

from dataclasses import dataclass

import numpy as np

from fewstep._typing import AnyArray, Float
from fewstep.checks import DataError
from fewstep.metrics.precision_recall import squared_distances
from fewstep.metrics.statistics import Array

_ROWS = 1024
"""Rows of a distance matrix that are in memory at a time."""


@dataclass(frozen=True)
class Memorisation:
    """Share of samples nearer to training (.5 without copying) and what its error follows from.

    Attributes: median_ratio: of the distance to training over that to held-out images; 1 without copying.
        effective_n: Kish's number of independent answers: samples with one nearest image answer together.
        null_sd: standard deviation of the share if training and held-out images were one kind, exact over all
        ways to tell them apart with the nearest images as they are.
    """

    share: float
    median_ratio: float
    effective_n: float
    null_sd: float


def memorisation(
    fake: Float[AnyArray, "n d"], training: Float[AnyArray, "m d"], heldout: Float[AnyArray, "k d"]
) -> Memorisation:
    """Ask each sample for its nearest of equally many training and held-out images.

    Args: fake: (n, D). training, heldout: (m, D), as many of either.
    Raises: DataError: different numbers of them, or none.
    """
    m = len(training)
    if m != len(heldout) or m == 0 or len(fake) == 0:
        raise DataError(
            f"Copies are looked for among equally many training and held-out images, got {m} and "
            f"{len(heldout)} for {len(fake)} samples; cut the larger set."
        )
    pool = np.concatenate([training, heldout]).astype(np.float64)
    nearest = np.empty((len(fake), 2))
    answers = np.empty(len(fake), np.int64)
    for start in range(0, len(fake), _ROWS):
        part = slice(start, start + _ROWS)
        distance = squared_distances(fake[part].astype(np.float64), pool)
        answers[part] = distance.argmin(1)
        nearest[part, 0], nearest[part, 1] = distance[:, :m].min(1), distance[:, m:].min(1)
    counts = np.bincount(answers, minlength=2 * m)
    concentration = float(np.square(counts / len(fake)).sum())
    pool_size = 2 * m
    null_variance = (concentration - 1 / pool_size) / 4 * pool_size / (pool_size - 1)
    return Memorisation(
        share=int(counts[:m].sum()) / len(fake),
        median_ratio=float(np.median(_ratios(nearest))),
        effective_n=1 / concentration,
        null_sd=max(null_variance, 0.0) ** 0.5,
    )


def _ratios(nearest: Array) -> Array:
    to_training, to_heldout = np.sqrt(nearest.clip(min=0)).T
    equal = to_training == to_heldout
    found: Array = np.where(equal, 1.0, to_training / np.where(equal, 1.0, to_heldout).clip(min=1e-300))
    return found
