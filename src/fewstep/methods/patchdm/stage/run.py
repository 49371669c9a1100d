"""Images of a model of patches at other sizes, and what is measured of its seams."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from fewstep.checks import ConfigError, DataError
from fewstep.data.packed import load_dataset
from fewstep.diffusion.condition import LABEL
from fewstep.diffusion.denoiser import Model
from fewstep.files import read_json, write_json
from fewstep.methods.patchdm.enlarge import decoded_by, enlarged, patched_net
from fewstep.methods.patchdm.memory import training_bytes
from fewstep.methods.patchdm.seams import ALIGNED, GRID, seam
from fewstep.methods.patchdm.stage.settings import EnlargeSettings
from fewstep.metrics.evaluate import metric_name
from fewstep.metrics.extractor import Extractor, extract
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import half_samples, normal_interval, require_halves, spread, wilson_interval
from fewstep.pipeline.samples import files_in
from fewstep.progress import Track
from fewstep.sampling.plan import Plan, load_plan
from fewstep.sampling.sample import Costs, sample

SCHEMA = "fewstep.enlarged/1"
RECORD = "enlarge.json"
SEAMS = "seams"
"""The picture of the same noises in each way of decoding."""
LEVEL = 0.95
COLUMNS, SHEET, GAP = 12, 256, 1
"""Images of a row of the seams; pixels of the width of a sheet of larger images, at most but for one image; and those
between images."""
_REAL, _LARGER = 2000, 200  # real and larger images whose seams are measured, at most

Record = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What images are measured by: real ones, statistics of them, and an extractor."""

    data: Path
    reference: Reference
    extractor: Extractor


@dataclass(frozen=True)
class Enlarging:
    """A model of patches and its plans, the one with most calls first."""

    model: Model
    plans: Sequence[Plan]
    settings: EnlargeSettings
    measured: Measured | None = None

    def all(self, track: Track) -> tuple[Record, dict[str, Tensor], dict[str, Tensor]]:
        """The record, the larger images of each size, and sheets to look at; uint8 (N, C, H, W) and (C, H, W).

        Raises: ConfigError: a model that is not one of patches, or a size that is not one of whole patches.
        """
        models = {size: self._at(size) for size in self.settings.size}
        record: Record = {
            "schema": SCHEMA,
            "model": {"name": self.model.name, "fingerprint": self.model.fingerprint},
            "plan": {"name": self.plans[0].name, "hash": self.plans[0].hash, "nfe": self.plans[0].nfe},
            "trained": self._said(self.model),
            "tile": self._tile,
            "seed": self.settings.seed,
        }
        images: dict[str, Tensor] = {}
        sheets: dict[str, Tensor] = {}
        for size, model in track("larger images", unit="size")(list(models.items())):
            images[size] = self._drawn(model, self.plans[0], self.settings.decodes[0], self.settings.pictures)
            sheets[size] = _sheet(images[size], max(1, SHEET // models[size].image_shape[-1]))
        if self.measured is not None:
            require_halves(self.settings.images)
            record |= self._measurements(self.measured, models, track)
            rows = [
                self._drawn(self.model, self.plans[0], decode, min(COLUMNS, self.settings.images))
                for decode in self.settings.decodes
            ]
            sheets[SEAMS] = _sheet(torch.cat(rows), len(rows[0]))
        return record, images, sheets

    def _measurements(self, by: Measured, models: dict[str, Model], track: Track) -> Record:
        real = self._real(by)
        jobs = [(plan, decode) for plan in self.plans for decode in self.settings.decodes]
        results = [
            {"decode": decode, "name": plan.name, "sampler": plan.sampler, "nfe": plan.nfe}
            | self._decoded(by, plan, decode)
            for plan, decode in track("decode", unit="plan")(jobs)
        ]
        larger = [
            {
                "size": size,
                "decode": decode,
                "seams": self._seams(
                    self._drawn(model, self.plans[0], decode, min(_LARGER, self.settings.images))
                ),
            }
            for size, model in models.items()
            for decode in self.settings.decodes
        ]
        memory = [
            dict(
                zip(
                    ("side", "patches", "whole"),
                    (side, *training_bytes(patched_net(self.model), side)),
                    strict=True,
                )
            )
            for side in track("memory", unit="size")(self.settings.memory)
        ]
        return {
            "metric": metric_name("FD", by.extractor, self.settings.images),
            "protocol": {
                "n": self.settings.images,
                "reference": by.reference.protocol,
                "extractor": by.extractor.protocol,
                "level": LEVEL,
            },
            "real": {"n": len(real), "seams": self._seams(real)},
            "results": results,
            "larger": larger,
            "memory": memory,
        }

    def _at(self, size: str) -> Model:
        height, width = map(int, size.split("x"))
        return enlarged(self.model, height, width, rows=self.settings.rows)

    def _drawn(self, model: Model, plan: Plan, decode: str, n: int, costs: Costs | None = None) -> Tensor:
        """Images of the first n seeds, the same noises for each way of decoding, uint8 (N, C, H, W)."""
        seeds = range(self.settings.seed, self.settings.seed + n)
        return sample(
            model,
            plan,
            seeds=seeds,
            batch_size=self.settings.batch_size,
            condition=model.condition_of(seeds),
            select=decoded_by(model, plan, decode),
            costs=costs,
        )

    def _decoded(self, by: Measured, plan: Plan, decode: str) -> Record:
        """Distance, seams and classes of images of one way of decoding."""
        costs, started = Costs(), time.perf_counter()
        images = self._drawn(self.model, plan, decode, self.settings.images, costs)
        seconds = time.perf_counter() - started
        features = extract(images, by.extractor)
        value = frechet(Statistics.from_features(features), by.reference.statistics).value
        replicates = half_samples(features, by.reference.statistics, resamples=self.settings.resamples)
        return {
            "ms": 1000 * seconds / len(images),
            "fd": value,
            "interval": list(normal_interval(value, spread(replicates), LEVEL)),
            "replicates": replicates.tolist(),
            "accuracy": self._accuracy(features, by.extractor),
            "seams": self._seams(images),
        }

    def _seams(self, images: Tensor) -> Record:
        found = {kind: seam(images, self._tile, kind) for kind in (ALIGNED, GRID)}
        return {kind: None if one is None else one._asdict() for kind, one in found.items()}

    def _accuracy(self, features: NDArray[np.float32], extractor: Extractor) -> Record | None:
        """The share that the extractor's classifier finds to be of the class that was asked for."""
        seeds = range(self.settings.seed, self.settings.seed + len(features))
        condition = self.model.condition_of(seeds)
        if extractor.head is None or condition is None or LABEL not in condition.values:
            return None
        hits = extractor.head.logits(features).argmax(1) == condition.values[LABEL].numpy()
        value = float(hits.mean())
        return {"value": value, "interval": list(wilson_interval(value, len(hits), LEVEL))}

    def _real(self, by: Measured) -> Tensor:
        dataset = load_dataset(by.data, "train")
        if tuple(dataset.shape) != tuple(self.model.image_shape):
            raise DataError(
                f"{by.data} must have images of {tuple(self.model.image_shape)}, as the model's; got {dataset.shape}."
            )
        return dataset.batch(range(min(len(dataset), _REAL)))

    @cached_property
    def _tile(self) -> int:
        """Side of a patch in pixels."""
        return patched_net(self.model).tile * (self.model.image_shape[-1] // self.model.shape[-1])

    def _said(self, model: Model) -> str:
        return f"{model.image_shape[-2]}x{model.image_shape[-1]}"


def chosen_plans(paths: Sequence[Path], match: Sequence[str]) -> list[Plan]:
    """The plans whose names match, the one with most calls first.
    Raises: ConfigError: none does.
    """
    plans = [load_plan(path) for path in files_in(paths, ".json")]
    matching = [plan for plan in plans if any(fnmatch(plan.name, one) for one in match)]
    if not matching:
        raise ConfigError(
            f"--match must fit a plan or more, {', '.join(sorted(plan.name for plan in plans))}; got "
            f"{', '.join(match)}."
        )
    return sorted(matching, key=lambda plan: (-plan.nfe, plan.name))


def files(
    images: dict[str, Tensor], sheets: dict[str, Tensor], seed: int
) -> Iterator[tuple[str, Image.Image]]:
    """Names and pictures that are written."""
    for name, sheet in sheets.items():
        yield f"{name}.png", as_picture(sheet)
    for size, several in images.items():
        for i, image in enumerate(several):
            yield f"{size}-{seed + i}.png", as_picture(image)


def as_picture(image: Tensor) -> Image.Image:
    """Uint8 (C, H, W) as a picture."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _sheet(images: Tensor, columns: int) -> Tensor:
    """Images side by side and below each other, white between them and where there is none, (C, H, W)."""
    columns = min(len(images), columns)
    framed = pad(images, (0, GAP, 0, GAP), value=255)
    short = framed.new_full((-len(images) % columns, *framed.shape[1:]), 255)
    rows = torch.split(torch.cat([framed, short]), columns)
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)[:, :-GAP, :-GAP]


def save(record: Record, pictures: Iterator[tuple[str, Image.Image]], folder: Path) -> None:
    """Write the record and the pictures into a folder."""
    write_json(folder / RECORD, record)
    for name, picture in pictures:
        picture.save(folder / name)


def read_record(folder: Path) -> Record:
    """The content of `enlarge.json`, with measurements.
    Raises: DataError: it is missing, damaged, of another program, or without measurements.
    """
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or "results" not in record:
        raise DataError(
            f"{folder / RECORD} must be measurements of fewstep enlarge --data ({SCHEMA}); make it again."
        )
    return record
