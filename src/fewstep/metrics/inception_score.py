"""Inception score: how sure a classifier is of each image, and how evenly its classes come up [salimans2016improved].

It looks at no real image, so that it says little beside a distance; on another classifier than the official one
it is that classifier's score, and is reported under another name.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep._typing import AnyArray, Float
from fewstep.checks import DataError
from fewstep.metrics.statistics import Array
from fewstep.rng import generator

SPLITS = 10
_SEED = 2016


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over the splits, as published, and the standard error of the mean.

    The published deviation is the spread of a tenth of the images, not the error of the value.
    """

    value: float
    split_sd: float
    standard_error: float


def inception_score(logits: Float[AnyArray, "n classes"], *, splits: int = SPLITS) -> InceptionScore:
    """Mean over splits of exp(E_x KL(p(y|x) || p(y))).

    The error is the delta method's: the derivative of the mean divergence by the weight of image x is
    KL(p(y|x) || p(y)) less its mean, the shift of p(y) adding nothing to first order. So the variance of the
    logarithm of the score is var(KL) / N. The bias of a finite split, downwards, is part of the score.

    Args: logits: (N, classes), at least two images a split; shuffled after a fixed seed, then split evenly.
    Raises: DataError: fewer images, NaN or infinity.
    """
    n = len(logits)
    require_splits(n, splits)
    log_p = _log_softmax(logits.astype(np.float64)[shuffled_rows(n)])
    if not np.isfinite(log_p).all():
        raise DataError("Logits must be finite, but they hold NaN or infinity: look at the images.")
    scores, variances = [], []
    edges = np.arange(splits + 1) * n // splits
    for part in (log_p[low:high] for low, high in pairwise(edges)):
        p = np.exp(part)
        divergence = (p * (part - np.log(p.mean(0)))).sum(1)
        score = np.exp(divergence.mean())
        scores.append(score)
        variances.append(score**2 * divergence.var(ddof=1) / len(part))
    return InceptionScore(
        float(np.mean(scores)), float(np.std(scores)), float(np.sqrt(np.sum(variances)) / splits)
    )


def require_splits(n: int, splits: int = SPLITS) -> None:
    """Raise DataError where there are fewer than two images a split."""
    if n < 2 * splits:
        raise DataError(f"The score needs at least {2 * splits} images, got {n}; draw more samples.")


def shuffled_rows(n: int) -> NDArray[np.int64]:
    """The order in which n images are split: samples of a class often lie side by side."""
    order: NDArray[np.int64] = torch.randperm(n, generator=generator(_SEED, "splits", n)).numpy()
    return order


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found
