"""Measures of images one by one: how near to another sampler's image of the same noise, how well a prompt is met.

Images of one prompt are alike, so intervals count prompts and not images: the mean of each prompt is one observation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.metrics.uncertainty import Interval, student_quantile

Scorer = Callable[[NDArray[np.uint8], Sequence[str]], NDArray[np.float64]]
"""From images (N, H, W, C) and the prompt of each to a score of each (N,), higher is better, such as CLIP or HPSv2."""


@dataclass(frozen=True)
class Mean:
    """A mean over prompts with its interval. n: images. prompts: how many groups they are of."""

    value: float
    interval: Interval
    n: int
    prompts: int


def mean_by_prompt(
    values: Sequence[float] | NDArray[np.float64], groups: Sequence[int], level: float = 0.95
) -> Mean:
    """Mean of values, one an image, with the interval of as many observations as there are prompts.

    Args:
        values: (N,).
        groups: the prompt of each.
        level: of the interval.

    Raises:
        DataError: fewer than two prompts, which no interval follows from, or a value that is not finite.
    """
    array = np.asarray(values, np.float64)
    if len(array) != len(groups) or not bool(np.isfinite(array).all()):
        raise DataError(f"There must be a finite value for each of {len(groups)} images; got {len(array)}.")
    means = np.array([array[np.asarray(groups) == group].mean() for group in sorted(set(groups))])
    if len(means) < 2:
        raise DataError(f"An interval over prompts needs two or more; got {len(means)}.")
    half = student_quantile((1 + level) / 2, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5
    value = float(means.mean())
    return Mean(value, Interval(value - half, value + half), len(array), len(means))


def paired_distances(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square difference of images of the same seeds, (N,), in levels of 255.
    Raises: DataError: other shapes.
    """
    if a.shape != b.shape:
        raise DataError(f"Images to be paired must have one shape; got {a.shape} and {b.shape}.")
    off = a.astype(np.float64) - b.astype(np.float64)
    distances: NDArray[np.float64] = np.sqrt(np.square(off).reshape(len(a), -1).mean(1))
    return distances


@dataclass(frozen=True)
class Scored:
    """How well images meet their prompts. floor: the same images under the prompts of others, which is chance."""

    scores: NDArray[np.float64]
    mean: Mean
    floor: Mean


def scored(images: NDArray[np.uint8], prompts: Sequence[str], scorer: Scorer, level: float = 0.95) -> Scored:
    """Score images under their prompts, and under those of the next prompt in order as floor.
    Raises: DataError: one prompt only, or as `mean_by_prompt`.
    """
    order = list(dict.fromkeys(prompts))
    groups = [order.index(prompt) for prompt in prompts]
    others = [order[(group + 1) % len(order)] for group in groups]
    own = scorer(images, prompts)
    return Scored(
        own, mean_by_prompt(own, groups, level), mean_by_prompt(scorer(images, others), groups, level)
    )
