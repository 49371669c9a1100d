"""Distances of images to their nearest neighbours in a bank, layer by layer, and what is read off them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.methods.multilid.taps import Taps
from fewstep.metrics.extractor import BATCH
from fewstep.progress import Progress

Array = NDArray[np.float64]

TILE_BYTES = 2**30
"""Size of the bank's maps in float64; a larger bank is taken in pieces, and queries go through the network for each."""

_EQUAL = 1e-6  # of the norm: matrix products leave some 1e-8 of it between a map and itself
_FLOOR = 1e-9  # before logarithms: distances are 0 between equal images only


def nearest(queries: Tensor, bank: Tensor, taps: Taps, k: int, *, progress: Progress[int] = iter) -> Array:
    """Euclidean distances to the k nearest images of the bank, ascending; exactly 0 where maps are equal.

    Args: queries, bank: uint8 (N, C, H, W) and (M, C, H, W), M >= k. progress: wraps the batches.
    Returns: (N, L, k) float64. Beside it no more memory is taken than twice TILE_BYTES, for the maps that are put
        together, and a batch.
    """
    size = BATCH.get(torch.device(taps.pooled.device).type, 64)
    nearest = torch.full((len(queries), len(taps.layers), k), torch.inf, dtype=torch.float64)
    for tile in _tiles(bank, taps):
        batches = [taps(tile[start : start + size]) for start in range(0, len(tile), size)]
        maps = [torch.cat(layer).double() for layer in zip(*batches, strict=True)]
        norms = [layer.square().sum(1) for layer in maps]
        for start in progress(range(0, len(queries), size)):
            rows = slice(start, start + size)
            for i, layer in enumerate(taps(queries[rows])):
                apart = _distances(layer.double(), maps[i], norms[i])
                nearest[rows, i] = torch.cat([nearest[rows, i], apart.cpu()], 1).topk(k, largest=False).values
    distances: Array = nearest.numpy()
    return distances


def _tiles(bank: Tensor, taps: Taps) -> list[Tensor]:
    bytes_per_image = 8 * sum(layer.shape[1] for layer in taps(bank[:1]))
    size = max(TILE_BYTES // bytes_per_image, 1)
    return [bank[start : start + size] for start in range(0, len(bank), size)]


def _distances(rows: Tensor, others: Tensor, norms: Tensor) -> Tensor:
    """By products, as `torch.cdist`, which would square and copy the whole bank for every batch."""
    own = rows.square().sum(1, keepdim=True)
    squares = own + norms - 2 * rows @ others.T
    return squares.where(squares > _EQUAL**2 * own, 0).sqrt()


def duplicates(distances: Array) -> int:
    """How many queries equal an image of the bank in all layers."""
    return int((distances[:, :, 0] == 0).all(1).sum())


def log_ratios(distances: Array) -> Array:
    """-ln(r_i / r_k), i = 1..k, the terms of the dimensionality before they are averaged [lorenz2022unfolding].
    Args: distances: ascending, (N, L, k).
    Returns: (N, L, k), the last always 0.
    """
    logs = np.log(distances.clip(min=_FLOOR))
    terms: Array = logs[..., -1:] - logs
    return terms


def lid(distances: Array) -> Array:
    """Maximum likelihood estimate of the local intrinsic dimensionality [amsaleg2015lid]: (N, L).

    -(mean of ln(r_i / r_k) over i = 1..k)^-1, with the constant last term as published; its expectation is about
    d k / (k - 2) in d dimensions. Neighbours that are all equally far give a large finite number.
    """
    estimate: Array = 1 / log_ratios(distances).mean(-1).clip(min=_FLOOR)
    return estimate


def ratio_columns(distances: Array) -> Array:
    """The published description: (N, k L), by neighbour and then by layer, constant column included."""
    return _flat(log_ratios(distances))


def scaled_columns(distances: Array) -> Array:
    """Ratios, with ln r_k in place of the constant: (N, k L).

    Ratios do not change when all distances do, so that alone they say nothing of how far an image is from real ones.
    """
    terms = log_ratios(distances)
    terms[..., -1] = np.log(distances[..., -1].clip(min=_FLOOR))
    return _flat(terms)


def _flat(terms: Array) -> Array:
    return terms.transpose(0, 2, 1).reshape(len(terms), -1)


COLUMNS = {"multilid+scale": scaled_columns, "multilid": ratio_columns, "lid": lid}
"""Name -> description (N, columns) of distances (N, L, k)."""
