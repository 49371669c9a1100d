"""What tells variations of an image from copies of it: distances of features, shares of classes, few-shot distances.

Scores of each image beside its condition reward copies; sets are compared with other images of the condition's class
instead [kumar2024semantica, Sec. 5].
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.metrics.frechet import frechet
from fewstep.metrics.precision_recall import precision_recall
from fewstep.metrics.statistics import Statistics

Features = NDArray[Any]


class Shots(NamedTuple):
    """A set beside the real images of a class: Fréchet distance, precision and recall."""

    fd: float
    precision: float
    recall: float


def spread_within(features: Features) -> NDArray[np.float64]:
    """Mean distance between the variations of each condition, (M,).
    Args: features: (M, S, D), S variations of each of M conditions.
    Raises: DataError: a single variation.
    """
    m, s, _ = features.shape
    if s < 2:
        raise DataError(f"Variations must be two or more to differ; got {s}.")
    found = torch.from_numpy(np.asarray(features, np.float64))
    distances = torch.cdist(found, found).sum((1, 2)) / (s * (s - 1))
    spread: NDArray[np.float64] = distances.numpy()
    assert spread.shape == (m,)
    return spread


def spread_of_class(features: Features) -> float:
    """Mean distance between two images of one class, of their features (N, D)."""
    return float(spread_within(features[None])[0])


def class_match(predicted: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the variations of each condition that are of its class: (M, S) beside (M,), (M,)."""
    return np.asarray((predicted == wanted[:, None]).mean(1), np.float64)


def total_variation(predicted: NDArray[np.int64], shares: dict[int, float]) -> float:
    """Half of the sum of differences between the shares of predicted classes and the wanted ones, in [0, 1]."""
    classes = {*shares, *np.unique(predicted).tolist()}
    return sum(abs(float((predicted == one).mean()) - shares.get(one, 0.0)) for one in classes) / 2


def shots(generated: Features, others: Features) -> Shots:
    """A generated set beside the other real images of its class; balls of both sets are of equally many images."""
    n = min(len(generated), len(others))
    overlap = precision_recall(generated[:n], others[:n])
    value = frechet(Statistics.from_features(generated), Statistics.from_features(others)).value
    return Shots(value, overlap.precision, overlap.recall)


def nearest_class(features: Features, means: Features) -> NDArray[np.int64]:
    """The class whose mean feature is nearest, (N,), for extractors that are no classifiers. means: (C, D)."""
    distances = torch.cdist(
        torch.from_numpy(np.asarray(features, np.float64)), torch.from_numpy(np.asarray(means, np.float64))
    )
    found: NDArray[np.int64] = distances.argmin(1).numpy()
    return found
