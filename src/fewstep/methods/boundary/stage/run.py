"""Held-out images edited across boundaries, and measured: success, content, and controls."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.data.packed import Dataset, load_dataset
from fewstep.diffusion.denoiser import Model
from fewstep.files import read_json, write_json
from fewstep.methods.boundary.attribute import WITHOUT, Attribute, Judge, some_of
from fewstep.methods.boundary.boundary import BOTH, WHERE, Boundary, load_boundary
from fewstep.methods.boundary.edit import generated, unedited
from fewstep.methods.boundary.latents import Latents, inverted, require_editable, sampled
from fewstep.methods.boundary.stage.fit.run import content_distance
from fewstep.methods.boundary.stage.settings import EditSettings
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.uncertainty import normal_interval, wilson_interval
from fewstep.pipeline.pictures import stacked
from fewstep.pipeline.samples import files_in
from fewstep.progress import Track

SCHEMA = "fewstep.edited/1"
RECORD = "edit.json"
LEVEL = 0.95
RANDOM, FAR = "random", "random, far"
"""The controls: moved along random directions in both spaces, as far, and `TIMES` as far, so that as much changes."""
TIMES = 3.0
METHODS = (*WHERE, RANDOM, FAR)
SHOWN = 6
"""Images of a picture."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Editing:
    """A model, its boundaries, held-out images, and what edits are judged by."""

    model: Model
    data: Path
    settings: EditSettings
    extractor: Extractor | None = None

    def all(self, paths: Sequence[Path], track: Track) -> tuple[Record, dict[str, Image.Image]]:
        """The record, and a picture for each boundary.

        Raises: ConfigError: a boundary for another model, an attribute that cannot be judged, or a model that cannot be
            edited. DataError: no held-out images, or none without the attribute.
        """
        require_editable(self.model)
        files = {path.stem: load_boundary(path) for path in files_in(paths, ".npz")}
        for boundary in files.values():
            boundary.require(self.model)
        entries: list[Record] = []
        pictures: dict[str, Image.Image] = {}
        for name, boundary in track("edit", unit="boundary")(list(files.items())):
            entry, picture = self._measured(boundary)
            entries.append({"file": name, **entry})
            pictures[name] = picture
        record = {
            "schema": SCHEMA,
            "protocol": {
                "model": {"name": self.model.name, "fingerprint": self.model.fingerprint},
                "data": {"name": self._heldout.name, "fingerprint": self._heldout.fingerprint},
                "judged_by": None if self.extractor is None else self.extractor.protocol,
                "eta": self.settings.eta,
                "lagged": self.settings.lagged,
                "seed": self.settings.seed,
                "level": LEVEL,
            },
            "zeta": self.settings.zeta,
            "shown": self._shown,
            "boundaries": entries,
        }
        return record, pictures

    @property
    def _shown(self) -> list[float]:
        return sorted({-1.0, 0.0, *self.settings.zeta})

    @property
    def _heldout(self) -> Dataset:
        split = load_dataset(self.data).heldout_split
        if split is None:
            raise DataError(f"{self.data} must have held-out images, a split test or valid; got none.")
        return load_dataset(self.data, split)

    def _judge(self, attribute: Attribute) -> Judge:
        judge = attribute.judge(self.data, self.extractor)
        if judge is None:
            raise ConfigError(f"--extractor must be given, with which edits of {attribute.name} are judged.")
        return judge

    def _measured(self, boundary: Boundary) -> tuple[Record, Image.Image]:
        attribute = Attribute(boundary.attribute)
        heldout = self._heldout
        sides = attribute.sides(self.data, heldout.heldout_split or "")
        rows = some_of(np.flatnonzero(sides == WITHOUT), self.settings.heldout)
        if not len(rows):
            raise DataError(f"{self.data} must have held-out images without {attribute.name}; got none.")
        judge, images, size = self._judge(attribute), heldout.batch(rows), self.settings.batch_size
        started = time.perf_counter()
        latents = inverted(self.model, boundary.plan, images, batch_size=size)
        inverting = time.perf_counter() - started
        again = generated(self.model, boundary.plan, unedited(latents), batch_size=size)
        results = []
        started = time.perf_counter()
        for method in METHODS:
            for zeta in self.settings.zeta:
                edited = self._edited(boundary, latents, method, zeta)
                results.append(
                    {
                        "method": method,
                        "zeta": zeta,
                        **_outcome(judge(edited), content_distance(edited, images)),
                    }
                )
        seconds = (time.perf_counter() - started) / (len(results) * len(images))
        entry = {
            "attribute": attribute.name,
            "further": bool(boundary.facts.get("further")),
            "t": boundary.t,
            "calls": boundary.plan.nfe,
            "images": len(images),
            "accuracy": dict(boundary.accuracy),
            "c": {space: plane.c for space, plane in boundary.planes.items()},
            "before": _outcome(judge(images), np.zeros(len(images))),
            "reconstruction": _outcome(judge(again), content_distance(again, images)),
            "results": results,
            "sampled": self._of_noise(boundary, judge, len(images)),
            "ms": {"inversion": 1000 * inverting / len(images), "edit": 1000 * seconds},
        }
        columns = [images, again] + [
            self._edited(boundary, latents[:SHOWN], BOTH, zeta) for zeta in self._shown
        ]
        return entry, stacked(
            list(torch.stack([column[:SHOWN] for column in columns]).transpose(0, 1)), gap=1
        )

    def _edited(self, boundary: Boundary, latents: Latents, method: str, zeta: float) -> Tensor:
        if method in (RANDOM, FAR):
            times = TIMES if method == FAR else 1.0
            start = boundary.start(latents, BOTH, zeta, random=self.settings.seed, times=times)
        else:
            start = boundary.start(latents, method, zeta)
        return edited_from(self.model, boundary, start, self.settings)

    def _of_noise(self, boundary: Boundary, judge: Judge, n: int) -> Record:
        """The same edits of images that the model makes of noise, which have no inversion."""
        seeds = range(self.settings.seed, self.settings.seed + n)
        calls = boundary.plan.nfe
        latents = sampled(self.model, boundary.plan, seeds, calls=calls, batch_size=self.settings.batch_size)
        plain = generated(self.model, boundary.plan, unedited(latents), batch_size=self.settings.batch_size)
        edits = []
        for zeta in self.settings.zeta:
            edited = self._edited(boundary, latents, BOTH, zeta)
            edits.append({"zeta": zeta, **_outcome(judge(edited), content_distance(edited, plain))})
        return {"before": _outcome(judge(plain), np.zeros(n)), "results": edits}


def edited_from(model: Model, boundary: Boundary, start: Any, settings: EditSettings) -> Tensor:
    """Images generated from a start, as settings say, uint8 (N, C, H, W)."""
    return generated(
        model,
        boundary.plan,
        start,
        eta=settings.eta,
        seeds=range(settings.seed, settings.seed + len(start.eps)),
        lagged=settings.lagged,
        batch_size=settings.batch_size,
    )


def _outcome(hits: NDArray[np.bool_], content: NDArray[np.float64]) -> Record:
    value, n = float(hits.mean()), len(hits)
    spread = float(content.std(ddof=1)) / n**0.5 if n > 1 else 0.0
    return {
        "success": {
            "value": value,
            "interval": list(wilson_interval(value, n, LEVEL)),
            "hits": _letters(hits),
        },
        "content": {
            "value": float(content.mean()),
            "interval": list(normal_interval(float(content.mean()), spread, LEVEL)),
            "values": [round(one, 5) for one in content.tolist()],
        },
    }


def _letters(hits: NDArray[np.bool_]) -> str:
    return "".join("1" if hit else "0" for hit in hits)


def save(record: Record, pictures: dict[str, Image.Image], folder: Path) -> None:
    """Write the record and the pictures into a folder."""
    write_json(folder / RECORD, record)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")


def read_record(folder: Path) -> Record:
    """The content of `edit.json`.
    Raises: DataError: it is missing, damaged or of another program.
    """
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise DataError(f"{folder / RECORD} must be measurements of fewstep edit ({SCHEMA}); make it again.")
    return record
