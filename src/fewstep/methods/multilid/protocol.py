"""Which images stand on which side, and the distances that follow: without the published leak, and with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewstep.checks import DataError
from fewstep.methods.multilid.features import Array, nearest
from fewstep.methods.multilid.taps import Taps
from fewstep.progress import Progress
from fewstep.rng import generator

REAL, NULL = "real", "other real"


@dataclass(frozen=True)
class Sides:
    """Disjoint real images for three purposes, and the generated ones; all uint8 (N, C, H, W) of one shape.

    Attributes: bank: what queries are compared with. queries: name of a class -> its images, as many in each: REAL;
        NULL, real images that play the generated ones in the null control; then every generator.
    """

    bank: Tensor
    queries: dict[str, Tensor]


def real_rows(total: int, *, images: int, bank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of real images for the bank, the queries and the null control, which never meet.

    Raises: DataError: there are too few.
    """
    needed = bank + 2 * images
    if total < needed:
        raise DataError(
            f"Detection needs {needed} real images, {bank} for the bank, {images} to distinguish from generated ones "
            f"and {images} for the null control, but the dataset has {total}; lower --images to at most "
            f"{max((total - bank) // 2, 0)} or take a smaller --bank."
        )
    order = torch.randperm(total, generator=generator(seed, "real images"))
    return order[:bank], order[bank : bank + images], order[bank + images : needed]


def make_sides(
    bank: Tensor, real: Tensor, null: Tensor, generated: Mapping[str, Tensor], *, same_levels: bool = True
) -> Sides:
    """Put the classes together.

    Args: same_levels: round generated images to the byte values that real ones take.
    Raises: DataError: some images are not bytes or are of another shape than the real ones, a generator has fewer
        of them, or the name of a class of real ones.
    """
    for name, images in generated.items():
        if name in (REAL, NULL):
            raise DataError(
                f"Generators must not be named {REAL!r} or {NULL!r}, as real images are; rename the plan {name!r}."
            )
        if images.dtype != torch.uint8 or images.shape[1:] != real.shape[1:]:
            raise DataError(
                f"Real and generated images must have one form, uint8 (C, H, W) = {tuple(real.shape[1:])}; {name} has "
                f"{images.dtype} {tuple(images.shape[1:])}: another codec or size would give them away."
            )
        if len(images) < len(real):
            raise DataError(
                f"Each class must have {len(real)} images, but {name} has {len(images)}; draw more or lower --images."
            )
    coded = _to_levels(levels(bank, real, null)) if same_levels else _unchanged
    fakes = {name: coded(images[: len(real)]) for name, images in generated.items()}
    return Sides(bank, {REAL: real, NULL: null, **fakes})


def levels(*images_u8: Tensor) -> Tensor:
    """The byte values that occur, ascending: all 256 in photographs, 17 in scans of four bits."""
    counts = sum(torch.bincount(part.flatten(), minlength=256) for part in images_u8)
    assert isinstance(counts, Tensor)  # there are some images
    return counts.nonzero().flatten()


def _to_levels(values: Tensor) -> Callable[[Tensor], Tensor]:
    """Round to the nearest of some values, the lower of two: what is coded finer would be detected by that alone."""
    apart = (torch.arange(256)[:, None] - values).abs()
    table = values[apart.argmin(1)].to(torch.uint8)
    return lambda images_u8: table[images_u8.long()]


def _unchanged(images_u8: Tensor) -> Tensor:
    return images_u8


def fair_distances(sides: Sides, taps: Taps, k: int, *, progress: Progress[int] = iter) -> dict[str, Array]:
    """Distances of every query to one bank that holds none of them, (N, L, k) per class."""
    return _by_class(
        sides, nearest(torch.cat([*sides.queries.values()]), sides.bank, taps, k, progress=progress)
    )


def published_distances(
    sides: Sides, taps: Taps, k: int, size: int, *, progress: Progress[int] = iter
) -> dict[str, Array]:
    """Distances as published, leak included, (N, L, k) per class.

    Real images come in minibatches, and each is the bank for its own images and for as many of every other class.
    The nearest neighbour is dropped for all: for real images of the minibatch it is the image itself, for all others
    a true neighbour, so that real images are described by neighbours 1..k and others by neighbours 2..k+1.

    Args: size: images of a minibatch at least; where it does not divide their number, minibatches are larger, but
        less than twice as large.
    """
    n = len(sides.queries[REAL])
    parts = np.array_split(np.arange(n), max(n // size, 1))
    found: dict[str, list[Array]] = {name: [] for name in sides.queries}
    for part in progress(range(len(parts))):
        rows = torch.from_numpy(parts[part])
        batch = Sides(
            sides.queries[REAL][rows], {name: images[rows] for name, images in sides.queries.items()}
        )
        for name, distances in fair_distances(batch, taps, k + 1).items():
            found[name].append(distances[..., 1:])
    return {name: np.concatenate(pieces) for name, pieces in found.items()}


def _by_class(sides: Sides, rows: Array) -> dict[str, Array]:
    ends = np.cumsum([len(images) for images in sides.queries.values()])[:-1]
    return dict(zip(sides.queries, np.split(rows, ends), strict=True))
