"""Pairs of images that stand for two pictures of one web page [kumar2024semantica, Sec. 3].

Of one class; mutual nearest neighbours by the tokens of a frozen encoder, without any label; or an image with itself,
as a control, whose model only rebuilds. Pairs of neighbours are filtered by their similarity: below, images are
unrelated; above, near duplicates. Weights make each condition count as often as any other, whatever its degree.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.data.pairs import Pairs, pairs_of

Ids = NDArray[np.int64]
_ROWS = 1024


def pooled(tokens: Tensor) -> Tensor:
    """One unit vector for each image: the mean of its tokens, less that of all images, (N, D).

    The scalar products are cosine similarities; without the mean of all, features of any two images are alike.
    """
    mean = tokens.float().mean(1)
    centred = mean - mean.mean(0)
    norms: Tensor = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return centred / norms.clamp(min=1e-12)


def of_class(labels: Ids, *, limit: int, rng: torch.Generator) -> tuple[Ids, Ids]:
    """Up to `limit` conditions of its own class for each image, other ones.

    Returns: conditions and targets.
    Raises: DataError: a class with a single image.
    """
    order = torch.randperm(len(labels), generator=rng).numpy()
    conditions, targets = [], []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        if len(members) < 2:
            raise DataError(
                f"Each class must have two images or more to pair, but class {label} has only image {members[0]}; "
                "leave it out with --heldout-classes."
            )
        # image i of the circle gets the next ones: every image is a condition as often as any other
        steps = np.arange(1, min(limit, len(members) - 1) + 1)
        places = (np.arange(len(members))[:, None] + steps) % len(members)
        conditions.append(members[places].ravel())
        targets.append(np.repeat(members, len(steps)))
    return np.concatenate(conditions), np.concatenate(targets)


def mutual_neighbours(features: Tensor, k: int) -> tuple[Ids, Ids]:
    """Pairs of images each of which is among the k nearest of the other, by cosine similarity of `pooled` features.

    Raises: ConfigError: as many neighbours as images, or more.
    """
    n = len(features)
    if not 1 <= k < n:
        raise ConfigError(f"--neighbours must be at least 1 and below the number of images, {n}; got {k}.")
    nearest = torch.empty(n, k, dtype=torch.int64)
    for first in range(0, n, _ROWS):
        rows = features[first : first + _ROWS]
        similarity = rows @ features.T
        similarity[torch.arange(len(rows)), torch.arange(first, first + len(rows))] = -torch.inf
        nearest[first : first + _ROWS] = similarity.topk(k, dim=1).indices
    codes = torch.arange(n)[:, None] * n + nearest
    back = nearest * n + torch.arange(n)[:, None]
    mutual = torch.isin(codes, back)
    targets, conditions = torch.arange(n)[:, None].expand(-1, k)[mutual], nearest[mutual]
    return conditions.numpy(), targets.numpy()


def similarity_of(features: Tensor, conditions: Ids, targets: Ids) -> NDArray[np.float64]:
    """Cosine similarity of pairs, (P,)."""
    found = [
        (features[conditions[first : first + 65536]] * features[targets[first : first + 65536]]).sum(1)
        for first in range(0, len(conditions), 65536)
    ]
    return torch.cat(found).double().numpy() if found else np.empty(0)


def kept(similarity: NDArray[np.float64], quantiles: tuple[float, float]) -> NDArray[np.bool_]:
    """Which pairs lie between two quantiles of the similarities, both included.

    Raises: ConfigError: quantiles that are not in order.
    """
    low, high = quantiles
    if not 0 <= low < high <= 1:
        raise ConfigError(f"--quantiles must be two numbers of [0, 1] in rising order; got {low} and {high}.")
    bounds = np.quantile(similarity, [low, high])
    inside: NDArray[np.bool_] = (similarity >= bounds[0]) & (similarity <= bounds[1])
    return inside


def balanced(conditions: Ids, targets: Ids, similarity: NDArray[np.float64]) -> Pairs:
    """A table whose weights are 1 over how often a condition stands in it, so that hubs count no more than others."""
    _, place, count = np.unique(conditions, return_inverse=True, return_counts=True)
    return pairs_of(conditions, targets, 1.0 / count[place], similarity)


def require_no_self_pairs(pairs: Pairs) -> None:
    """Raise DataError where an image is its own condition."""
    same = np.flatnonzero(pairs.cond_id == pairs.target_id)
    if len(same):
        raise DataError(
            f"An image must not be its own condition, as a model then only rebuilds it, but {pairs.cond_id[same[0]]} "
            f"and {len(same) - 1} more are; leave them out, or take --mode image."
        )
