"""What models of masks and maps make of them, measured and shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.data.pixels import to_u8, to_unit
from fewstep.methods.lfm.conditions import pasted
from fewstep.metrics.extractor import extract
from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import normal_interval

if TYPE_CHECKING:
    from fewstep.methods.lfm.stage.run import Measuring

COLUMNS, FILLS = 12, 3
"""Images of a row of a picture, and variations of each."""

Images = NDArray[np.uint8]
Record = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """What the rows to report on show in pixels: the images of a dataset, and their masks or maps, by row."""

    kind: str
    images: Tensor
    labels: NDArray[np.int64] | None
    pixels: Tensor

    def rows(self, seeds: Sequence[int]) -> Tensor:
        """The row of each seed, as the model's conditions choose it."""
        return torch.tensor([seed % len(self.pixels) for seed in seeds])


def inpainted(measuring: "Measuring", shown: Shown) -> tuple[Record, Images]:
    """What stands in the hole: its error, and whether the whole is of the image's class."""
    rows = shown.rows(measuring.seeds)
    holes, real = shown.pixels[rows].bool(), shown.images[rows]
    filled = _filled(measuring, shown, holes, real, measuring.seeds)
    mean = to_u8(to_unit(measuring.heldout.batch(range(len(measuring.heldout)))).mean(0))
    kinds = {"filled": filled, "mean": pasted(real, mean.expand_as(real), holes), "real": real}
    record: Record = {
        "nfe": measuring.settings.guided_nfe,
        "n": len(rows),
        "hole": float(holes.float().mean()),
    }
    for name, images in kinds.items():
        features = extract(rows_of(images), measuring.extractor)
        off = (to_unit(images) - to_unit(real)).square().mean(1)
        record[name] = {
            "hole_mse": _ratio(off[holes]),
            "fd": frechet(Statistics.from_features(features), measuring.reference.statistics).value,
            "accuracy": measuring.accuracy(features, measuring.labels()),
        }
    grey = torch.full_like(real, 128)
    picture = [rows_of(real)[:COLUMNS], rows_of(pasted(real, grey, holes))[:COLUMNS]]
    return record, grid(picture + _variations(measuring, shown, holes))


def _filled(
    measuring: "Measuring", shown: Shown, holes: Tensor, real: Tensor, seeds: Sequence[int]
) -> Tensor:
    drawn = torch.from_numpy(
        measuring.euler(measuring.settings.guided_nfe, 1.0, seeds).transpose(0, 3, 1, 2).copy()
    )
    return pasted(real, drawn, holes)


def _variations(measuring: "Measuring", shown: Shown, holes: Tensor | None) -> list[Images]:
    """Some images for each of the first rows: the same conditions with other noises."""
    found, n = [], len(shown.pixels)
    for k in range(FILLS):
        first = measuring.settings.seed + k * n  # seeds n apart have the same row
        seeds = range(first, first + min(COLUMNS, n))
        images = measuring.euler(measuring.settings.guided_nfe, 1.0, seeds)
        if holes is not None:
            rows = shown.rows(seeds)
            whole = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
            images = rows_of(pasted(shown.images[rows], whole, shown.pixels[rows].bool()))
        found.append(images)
    return found


def mapped(measuring: "Measuring", shown: Shown) -> tuple[Record, Images]:
    """Whether what is bright is where the map says, and of the class that it says."""
    rows = shown.rows(measuring.seeds)
    wanted = shown.pixels[rows] > 0
    drawn = measuring.euler(measuring.settings.guided_nfe, 1.0, measuring.seeds)
    features = extract(drawn, measuring.extractor)
    bright = torch.from_numpy(drawn.astype(np.float32).mean(3)) > 127.5
    each = _overlap(bright, wanted)
    others = _overlap(bright, wanted.roll(1, 0))
    of_rows = torch.stack(
        [each[rows == row].mean() for row in torch.unique(rows)]
    )  # noises of a row are not apart
    mean, error = float(of_rows.mean()), float(of_rows.std()) / len(of_rows) ** 0.5
    record = {
        "nfe": measuring.settings.guided_nfe,
        "n": len(rows),
        "overlap": {"value": mean, "interval": list(normal_interval(mean, error))},
        "overlap_of_others": float(others.mean()),
        "fd": frechet(Statistics.from_features(features), measuring.reference.statistics).value,
        "accuracy": measuring.accuracy(features, measuring.labels()),
    }
    shades = (shown.pixels[rows] > 0).to(torch.uint8)[:, None] * 255
    channels = shown.images.shape[1]
    first = [rows_of(shades.expand(-1, channels, -1, -1))[:COLUMNS], rows_of(shown.images[rows])[:COLUMNS]]
    return record, grid(first + _variations(measuring, shown, None))


def rows_of(images: Tensor) -> Images:
    """(N, C, H, W) as (N, H, W, C)."""
    return np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1))


def grid(rows: Sequence[Images]) -> Images:
    """Rows of images one below the other."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of masks (N, H, W), (N,); 1 where both are empty."""
    union = (a | b).flatten(1).sum(1)
    return torch.where(union > 0, (a & b).flatten(1).sum(1) / union.clamp(min=1), 1.0)


def _ratio(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else 0.0
