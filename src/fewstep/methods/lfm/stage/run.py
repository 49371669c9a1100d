"""Measurements of a model of latent flow matching, with the half samples behind their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.data.packed import Dataset, load_dataset
from fewstep.data.pixels import to_u8, to_unit
from fewstep.diffusion.condition import LABEL, Classes
from fewstep.diffusion.denoiser import Model
from fewstep.files import read_json, write_json
from fewstep.interop.autoencoder import load_autoencoder
from fewstep.methods.lfm.dopri5 import dopri5
from fewstep.methods.lfm.stage.pieces import pieces_of
from fewstep.methods.lfm.stage.settings import LfmSettings
from fewstep.methods.lfm.stage.shown import COLUMNS, Images, Shown, grid, inpainted, mapped, rows_of
from fewstep.metrics.evaluate import metric_name
from fewstep.metrics.extractor import Extractor, extract
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import half_samples, normal_interval, spread, wilson_interval
from fewstep.nets import AUTOENCODER
from fewstep.progress import Track
from fewstep.rng import ImageNoise
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import sample

SCHEMA = "fewstep.lfm/1"
RECORD = "lfm.json"
LEVEL = 0.95

Record = dict[str, Any]


@dataclass(frozen=True)
class Measuring:
    """A model and what it is measured by.

    Attributes:
        data: packed dataset of the images.
        latents: those that the model was trained on, or None.
        maps: result of the stage `maps`, or None.
        autoencoder: folder of the model, which holds the autoencoder where there is one.
    """

    model: Model
    data: Path
    reference: Reference
    extractor: Extractor
    settings: LfmSettings
    latents: Path | None
    maps: Path | None
    autoencoder: Path

    def all(self, track: Track) -> tuple[Record, dict[str, Images]]:
        """The record, and pictures by name."""
        if self.settings.images < 8:
            raise ConfigError(f"--images must be at least 8, to be measured; got {self.settings.images}.")
        pictures: dict[str, Images] = {}
        jobs = [("euler", nfe, 1.0) for nfe in self.settings.nfe]
        jobs += [("guidance", self.settings.guided_nfe, w) for w in self.settings.guidances]
        results: list[Record] = []
        rows: dict[str, list[Images]] = {"euler": [], "guidance": []}
        for kind, nfe, guidance in track("lfm", unit="set")(jobs):
            images = self.euler(nfe, guidance, self.seeds)
            results.append({"kind": kind, **self._measured(images, nfe, guidance)})
            rows[kind].append(images[:COLUMNS])
        if self.settings.dopri5:
            results.append({"kind": "dopri5", **self._dopri5()})
        record: Record = {
            "schema": SCHEMA,
            "metric": metric_name("FD", self.extractor, self.settings.images),
            "protocol": {
                "n": self.settings.images,
                "model": {"name": self.model.name, "fingerprint": self.model.fingerprint},
                "reference": self.reference.protocol,
                "extractor": self.extractor.protocol,
                "level": LEVEL,
                "seed": self.settings.seed,
            },
            "results": results,
        }
        for kind, shown in rows.items():
            if len(shown) > 1:
                pictures[kind] = grid(shown)
        if (self.autoencoder / AUTOENCODER).is_dir():
            record["reconstruction"], pictures["reconstruction"] = self._reconstruction()
        if self.settings.bound_images:
            record["bound"] = pieces_of(self)
        if self.shown is not None:
            measure = inpainted if self.shown.kind == "mask" else mapped
            record[self.shown.kind], pictures[self.shown.kind] = measure(self, self.shown)
        return record, pictures

    @property
    def seeds(self) -> range:
        """Those of all measurements: the same noises under every setting."""
        return range(self.settings.seed, self.settings.seed + self.settings.images)

    @cached_property
    def heldout(self) -> Dataset:
        """The held-out images."""
        split = load_dataset(self.data).heldout_split
        if split is None:
            raise DataError(f"{self.data} must have held-out images, a split test or valid; got none.")
        return load_dataset(self.data, split)

    @cached_property
    def shown(self) -> Shown | None:
        """What the rows to report on show; None for a model without masks and maps."""
        if self.maps is None:
            return None
        try:
            with np.load(self.maps / "report.npz", allow_pickle=False) as archive:
                images, pixels = archive["image"], torch.from_numpy(archive["pixels"])
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{self.maps} must be a result of fewstep maps, but {error}; make it again."
            ) from None
        labels = None if self.heldout.labels is None else self.heldout.labels[images]
        kind = str(read_json(self.maps / "report" / "manifest.json")["source"]["kind"])
        return Shown(kind, self.heldout.batch(images), labels, pixels)

    def labels(self) -> NDArray[np.int64] | None:
        """The class that each image is to be of; None where the model is told none."""
        if self.shown is not None and self.shown.labels is not None:
            found: NDArray[np.int64] = self.shown.labels[self.shown.rows(self.seeds).numpy()]
            return found
        if isinstance(self.model.conditions, Classes):
            found = self.model.conditions.of(self.seeds).values[LABEL].numpy()
            return found
        return None

    def euler(self, nfe: int, guidance: float, seeds: Sequence[int]) -> Images:
        """Images (N, H, W, C) by DDIM at the times 1 - i / nfe, which is Euler's method for a flow."""
        plan = PRESETS["ddim"](self.model.schedule, nfe, grid="shifted", to_zero=True)
        images = sample(
            self.model,
            plan,
            seeds=seeds,
            batch_size=self.settings.batch_size,
            condition=self.model.condition_of(seeds),
            guidance=guidance,
        )
        return rows_of(images)

    def _dopri5(self) -> Record:
        """The adaptive solver, with the calls of its dearest batch."""
        images, nfe, size = [], 0, self.settings.batch_size
        for first in range(0, len(self.seeds), size):
            seeds = self.seeds[first : first + size]
            noise = ImageNoise(seeds, self.model.shape)().to(self.model.device)
            x0, calls = dopri5(self.model, noise, condition=self.model.condition_of(seeds))
            images.append(to_u8(self.decoded(x0)).cpu())
            nfe = max(nfe, calls)
        return self._measured(rows_of(torch.cat(images)), nfe, 1.0)

    def decoded(self, x0: Tensor) -> Tensor:
        """Images in [-1, 1] of what was sampled."""
        return x0 if self.model.decode is None else self.model.decode(x0)

    def _measured(self, images: Images, nfe: int, guidance: float) -> Record:
        """The distance of some images with its interval, and how many are of the class that was asked for."""
        features = extract(images, self.extractor)
        value = frechet(Statistics.from_features(features), self.reference.statistics).value
        replicates = half_samples(features, self.reference.statistics, resamples=self.settings.resamples)
        return {
            "nfe": nfe,
            "guidance": guidance,
            "value": value,
            "interval": list(normal_interval(value, spread(replicates), LEVEL)),
            "replicates": replicates.tolist(),
            "accuracy": self.accuracy(features, self.labels()),
        }

    def accuracy(self, features: NDArray[np.float32], labels: NDArray[np.int64] | None) -> Record | None:
        """The share that the extractor's classifier finds to be of the class, with its interval."""
        if labels is None or self.extractor.head is None:
            return None
        hits = int((self.extractor.head.logits(features).argmax(1) == labels).sum())
        return {
            "value": hits / len(labels),
            "interval": list(wilson_interval(hits / len(labels), len(labels), LEVEL)),
        }

    def _reconstruction(self) -> tuple[Record, Images]:
        """How well the autoencoder rebuilds held-out images, from draws of their posteriors."""
        own = load_autoencoder(self.autoencoder / AUTOENCODER, device=self.model.device)
        images = self.heldout.batch(range(len(self.heldout)))
        noise = ImageNoise(range(len(images)), own.latent_shape(tuple(images.shape[1:])))()
        device = self.model.device
        with torch.no_grad():
            rebuilt = torch.cat(
                [
                    own.decode(own.encode(to_unit(part).to(device), eps)).cpu()
                    for part, eps in zip(torch.split(images, 250), torch.split(noise, 250), strict=True)
                ]
            )
        found = rows_of(to_u8(rebuilt))
        fd = {
            name: frechet(
                Statistics.from_features(extract(shown, self.extractor)), self.reference.statistics
            ).value
            for name, shown in (("rebuilt", found), ("real", rows_of(images)))
        }
        record = {
            "mse": float((rebuilt - to_unit(images)).square().mean()),
            "fd": fd,
            "n": len(images),
            "factor": own.factor,
            "scale": own.scale,
        }
        return record, grid([rows_of(images)[:COLUMNS], found[:COLUMNS]])


def save(record: Record, pictures: dict[str, Images], folder: Path) -> None:
    """Write the record and the pictures into a folder."""
    write_json(folder / RECORD, record)
    for name, picture in pictures.items():
        Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(folder / f"{name}.png")


def read_record(folder: Path) -> Record:
    """The content of `lfm.json`.
    Raises: DataError: it is missing, damaged or of another program.
    """
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise DataError(f"{folder / RECORD} must be measurements of fewstep lfm ({SCHEMA}); make it again.")
    return record
