"""Held-out images with holes, filled by every plan and by the baselines, and measured."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.data.masks import KINDS
from fewstep.data.packed import Dataset, load_dataset
from fewstep.data.pixels import to_u8, to_unit
from fewstep.diffusion.denoiser import Model
from fewstep.files import read_json, write_json
from fewstep.methods.rad.inpaint import inpaint, repaint
from fewstep.methods.rad.stage.settings import InpaintSettings
from fewstep.methods.rad.stage.strips import before_mask_after
from fewstep.metrics.evaluate import metric_name
from fewstep.metrics.extractor import Extractor, extract
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import half_samples, normal_interval, require_halves, spread, wilson_interval
from fewstep.pipeline.samples import files_in
from fewstep.progress import Track
from fewstep.rng import generator
from fewstep.sampling.plan import Plan, load_plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import Costs

SCHEMA = "fewstep.inpainted/1"
RECORD = "inpaint.json"
LEVEL = 0.95
REGION, REPLACEMENT, REPAINT, MEAN = "region-aware", "replacement", "repaint", "mean image"
"""Methods of a record: times per pixel, the baselines, the mean of the training images."""
SHOWN = (REGION, REPLACEMENT, REPAINT)
"""Methods of a picture, from top to bottom."""

Record = dict[str, Any]
Fill = Callable[[Tensor, Costs], Tensor]
"""From masks, bool (N, 1, H, W), to filled images, uint8 (N, C, H, W); also says what it cost."""
_BATCH = 250  # images read at once


@dataclass(frozen=True)
class Filling:
    """A model with times per pixel, the model of the baselines, and what both are measured by."""

    model: Model
    base: Model
    data: Path
    reference: Reference
    extractor: Extractor
    settings: InpaintSettings

    def all(self, plans: Sequence[Path], track: Track) -> tuple[Record, dict[str, Image.Image]]:
        """The record, and a picture for each mask.

        Raises: ConfigError: no plan matches, or too few images. DataError: the dataset has no held-out ones.
        """
        chosen = self._chosen(plans)
        samplers = {plan.name: plan.sampler for plan in chosen}
        require_halves(len(self._images))
        results: list[Record] = []
        pictures: dict[str, Image.Image] = {}
        names: dict[str, str] = {}
        for kind in self.settings.masks:
            masks = self._masks(kind)
            shown: dict[str, Tensor] = {}
            jobs = track(f"inpaint {kind}", unit="filling")(list(self._jobs(chosen)))
            for method, name, make in jobs:
                costs, started = Costs(), time.perf_counter()
                filled = make(masks, costs)
                seconds = time.perf_counter() - started
                assert torch.equal(torch.where(masks, filled, self._images), filled), (
                    f"{name} changed the known"
                )
                if method != REGION or method not in shown:  # the first plan, the dearest baselines
                    shown[method], names[method] = filled, name
                results.append(
                    {
                        "mask": kind,
                        "method": method,
                        "name": name,
                        "sampler": samplers.get(name, method),
                        "nfe": costs.nfe,
                        "ms": 1000 * seconds / len(masks),
                        "hole": float(masks.float().mean()),
                        **self._measured(filled, masks),
                    }
                )
            rows = [shown[method] for method in SHOWN if method in shown]
            pictures[kind] = before_mask_after(self._images, masks, rows)
        record = {
            "schema": SCHEMA,
            "metric": metric_name("FD", self.extractor, len(self._images)),
            "protocol": {
                "n": len(self._images),
                "model": {"name": self.model.name, "fingerprint": self.model.fingerprint},
                "base": {"name": self.base.name, "fingerprint": self.base.fingerprint},
                "reference": self.reference.protocol,
                "extractor": self.extractor.protocol,
                "jump": self.settings.jump,
                "level": LEVEL,
                "seed": self.settings.seed,
            },
            "real": self._measured(self._images, torch.zeros_like(masks)),
            "results": results,
            "shown": [names[method] for method in SHOWN if method in names],
        }
        return record, pictures

    def _chosen(self, paths: Sequence[Path]) -> list[Plan]:
        plans = [load_plan(path) for path in files_in(paths, ".json")]
        matching = [plan for plan in plans if any(fnmatch(plan.name, one) for one in self.settings.match)]
        if not matching:
            raise ConfigError(
                f"--match must fit a plan or more, {', '.join(sorted(plan.name for plan in plans))}; got "
                f"{', '.join(self.settings.match)}."
            )
        return sorted(matching, key=lambda plan: (plan.sampler, plan.nfe, plan.name))

    def _jobs(self, plans: Sequence[Plan]) -> Iterator[tuple[str, str, Fill]]:
        """Method, name and function of each filling."""
        yield MEAN, MEAN, self._mean_image
        for plan in plans:
            yield REGION, plan.name, partial(self._by_plan, self.model, plan, False)
        for nfe in self.settings.replacement:
            plan = PRESETS["ddpm"](self.base.schedule, nfe, grid="uniform-t", to_zero=True)
            yield REPLACEMENT, f"{REPLACEMENT} {nfe}", partial(self._by_plan, self.base, plan, True)
        for text in self.settings.repaint:
            steps, resamples = map(int, text.split("x"))
            yield REPAINT, f"{REPAINT} {text}", partial(self._repainted, steps, resamples)

    def _by_plan(self, model: Model, plan: Plan, noised: bool, masks: Tensor, costs: Costs) -> Tensor:
        size = self.settings.batch_size
        return inpaint(
            model, plan, self._images, masks, seeds=self.seeds, batch_size=size, noised=noised, costs=costs
        )

    def _repainted(self, steps: int, resamples: int, masks: Tensor, costs: Costs) -> Tensor:
        return repaint(
            self.base,
            self._images,
            masks,
            steps=steps,
            resamples=resamples,
            jump=self.settings.jump,
            seeds=self.seeds,
            batch_size=self.settings.batch_size,
            costs=costs,
        )

    def _mean_image(self, masks: Tensor, costs: Costs) -> Tensor:
        return torch.where(masks, self._mean, self._images)

    @cached_property
    def _dataset(self) -> Dataset:
        split = load_dataset(self.data).heldout_split
        if split is None:
            raise DataError(f"{self.data} must have held-out images, a split test or valid; got none.")
        return load_dataset(self.data, split)

    @cached_property
    def _images(self) -> Tensor:
        n = min(len(self._dataset), self.settings.heldout)
        return self._dataset.batch(range(n))

    @property
    def seeds(self) -> range:
        """One for each image, the same for all methods and masks."""
        return range(self.settings.seed, self.settings.seed + len(self._images))

    def _masks(self, kind: str) -> Tensor:
        height, width = self._images.shape[2:]
        rngs = (generator(self.settings.seed, "mask", kind, i) for i in range(len(self._images)))
        return torch.stack([KINDS[kind](height, width, rng) for rng in rngs])[:, None]

    @cached_property
    def _mean(self) -> Tensor:
        """The mean training image, uint8 (C, H, W)."""
        train = load_dataset(self.data, "train")
        total = torch.zeros(train.shape, dtype=torch.float64)
        for first in range(0, len(train), _BATCH):
            total += to_unit(train.batch(range(first, min(first + _BATCH, len(train))))).double().sum(0)
        return to_u8(total / len(train))

    def _measured(self, filled: Tensor, masks: Tensor) -> Record:
        """Distance to the reference, error in the hole, and whether images are of the class of the whole ones."""
        features = extract(filled, self.extractor)
        value = frechet(Statistics.from_features(features), self.reference.statistics).value
        replicates = half_samples(features, self.reference.statistics, resamples=self.settings.resamples)
        off = (to_unit(filled) - to_unit(self._images)).square().mean(1, keepdim=True)
        pixels = masks.flatten(1).sum(1)
        errors = ((off * masks).flatten(1).sum(1) / pixels.clamp(min=1)).double().numpy()
        return {
            "fd": value,
            "interval": list(normal_interval(value, spread(replicates), LEVEL)),
            "replicates": replicates.tolist(),
            "error": float(errors.mean()),
            "errors": [round(error, 5) for error in errors.tolist()],
            "accuracy": self._accuracy(features),
        }

    def _accuracy(self, features: NDArray[np.float32]) -> Record | None:
        """The share that the extractor's classifier finds to be of the image's class, with its interval."""
        if self._dataset.labels is None or self.extractor.head is None:
            return None
        hits = self.extractor.head.logits(features).argmax(1) == self._dataset.labels[: len(features)]
        value = float(hits.mean())
        return {
            "value": value,
            "interval": list(wilson_interval(value, len(hits), LEVEL)),
            "hits": "".join("1" if hit else "0" for hit in hits),
        }


def save(record: Record, pictures: dict[str, Image.Image], folder: Path) -> None:
    """Write the record and the pictures into a folder."""
    write_json(folder / RECORD, record)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")


def read_record(folder: Path) -> Record:
    """The content of `inpaint.json`.
    Raises: DataError: it is missing, damaged or of another program.
    """
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise DataError(
            f"{folder / RECORD} must be measurements of fewstep inpaint ({SCHEMA}); make it again."
        )
    return record
