"""Measurements of variations, by classes that were seen in training and by those that were held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fewstep.checks import ConfigError, DataError
from fewstep.data.conditions import read_conditions_manifest
from fewstep.data.packed import Dataset, load_dataset
from fewstep.diffusion.denoiser import Model
from fewstep.files import read_json, write_json
from fewstep.methods.semantica.stage.pairs import AUDIT, EXAMPLES
from fewstep.methods.semantica.stage.settings import SemanticaSettings
from fewstep.methods.semantica.variation import (
    class_match,
    nearest_class,
    shots,
    spread_of_class,
    spread_within,
    total_variation,
)
from fewstep.metrics.extractor import Extractor, extract
from fewstep.metrics.uncertainty import normal_interval
from fewstep.progress import Track
from fewstep.rng import generator
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import sample

SCHEMA = "fewstep.variations/1"
RECORD = "variations.json"
COLUMNS, ROWS = 12, 4
SHARES = (0.7, 0.3)
"""Of the two classes of a mixture."""
REAL_IMAGES = 500
"""Real images of a class behind the distance between two of them, at most."""
NEIGHBOURS = 5  # the farthest neighbour that precision and recall ask for

Images = NDArray[np.uint8]
Record = dict[str, Any]


@dataclass(frozen=True)
class Varying:
    """A model with the rows of held-out images bound to it, and what its variations are judged by.

    Attributes:
        rows: the conditions folder of these rows, which says of what images they are.
        extractor: whose features are compared; its classes judge, or the nearest mean of a class where it has none.
        pairs: result of the stage `pairs`, or None.
    """

    model: Model
    data: Path
    rows: Path
    extractor: Extractor
    settings: SemanticaSettings
    pairs: Path | None = None

    def all(self, track: Track) -> tuple[Record, dict[str, Images]]:
        """The record, and pictures by name."""
        labels, chosen = self._chosen()
        heldout = np.isin(labels, self._manifest["heldout_classes"])
        results, pictures, mixtures = [], {}, []
        for guidance in track("semantica", unit="guidance")(self.settings.guidances):
            images = self._varied(chosen, guidance)
            features = extract(images.reshape(-1, *images.shape[2:]), self.extractor)
            features = features.reshape(*images.shape[:2], -1)
            for group, members in (("seen", ~heldout), ("held out", heldout)):
                if members.sum() >= 2:
                    found = self._measured(
                        images[members], features[members], labels[members], chosen[members]
                    )
                    results.append({"group": group, "guidance": guidance, **found})
            pictures[f"guidance{guidance:g}"] = self._picture(images, chosen, heldout)
            if self.settings.mixtures:
                mixtures.append({"guidance": guidance, **self._mixture(guidance)})
        record: Record = {
            "schema": SCHEMA,
            "protocol": {
                "conditions": len(chosen),
                "variations": self.settings.variations,
                "nfe": self.settings.nfe,
                "model": {"name": self.model.name, "fingerprint": self.model.fingerprint},
                "extractor": self.extractor.protocol,
                "judge": "classes of the extractor"
                if self.extractor.head is not None
                else "nearest mean of a class",
                "heldout_classes": self._manifest["heldout_classes"],
                "seed": self.settings.seed,
            },
            "results": results,
            "mixtures": mixtures,
        }
        if self.pairs is not None:
            record["pairs"] = read_json(self.pairs / AUDIT)
            with Image.open(self.pairs / EXAMPLES) as picture:
                shown = np.array(picture)
            pictures["pairs"] = shown[..., None] if shown.ndim == 2 else shown
        return record, pictures

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        """What the rows are of.
        Raises: DataError: they are of no images of the dataset.
        """
        source = read_conditions_manifest(self.rows)["source"]
        if source.get("fingerprint") != self._train.fingerprint or "rows" not in source:
            raise DataError(
                f"--conditions {self.rows} must be tokens of images of {self.data}, from fewstep encode; encode these."
            )
        return {"heldout_classes": [], **source}

    @cached_property
    def _train(self) -> Dataset:
        dataset = load_dataset(self.data, "train")
        if dataset.labels is None:
            raise ConfigError(f"Variations are judged by classes, but {self.data} has no labels.")
        return dataset

    @cached_property
    def _shown(self) -> Dataset:
        """The images of the rows, in their order."""
        from dataclasses import replace

        dataset = load_dataset(self.data, self._manifest["split"])
        first, last = self._manifest["rows"]
        rows = slice(first, last + 1)
        assert dataset.labels is not None
        return replace(dataset, images=dataset.images[rows], labels=dataset.labels[rows])

    @cached_property
    def _real(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features of the training images, and their classes."""
        assert self._train.labels is not None
        return extract(self._train.images, self.extractor), self._train.labels

    def _chosen(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Classes and rows of the images to vary: each class gives as many as the others, while it has some."""
        labels = self._shown.labels
        assert labels is not None
        turn = np.empty(len(labels), np.int64)  # how many of its class came before an image
        for label in np.unique(labels):
            turn[labels == label] = np.arange((labels == label).sum())
        order = np.lexsort((labels, turn))[: self.settings.images]
        return labels[order], order

    def _varied(self, rows: NDArray[np.int64], guidance: float) -> Images:
        """(M, S, H, W, C): variations of each row, by seeds of their own."""
        s = self.settings.variations
        images = self._drawn(np.repeat(rows, s), guidance, first=self.settings.seed)
        return images.reshape(len(rows), s, *images.shape[1:])

    def _drawn(self, rows: NDArray[np.int64], guidance: float, *, first: int) -> Images:
        """Images (N, H, W, C) of these rows by DDIM, whose noises are those of the seeds from `first` on."""
        plan = PRESETS["ddim"](self.model.schedule, self.settings.nfe, grid="uniform-t", to_zero=True)
        assert self.model.conditions is not None
        images = sample(
            self.model,
            plan,
            seeds=range(first, first + len(rows)),
            batch_size=self.settings.batch_size,
            condition=self.model.conditions.of(rows.tolist()),  # the row of seed s is s modulo rows
            guidance=guidance,
        )
        return np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1))

    def _judged(self, features: NDArray[Any]) -> NDArray[np.int64]:
        if self.extractor.head is not None:
            found: NDArray[np.int64] = self.extractor.head.logits(features).argmax(1)
            return found
        real, labels = self._real
        means = np.stack([real[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
        return nearest_class(features, means)

    def _measured(
        self, images: Images, features: NDArray[Any], labels: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> Record:
        predicted = self._judged(features.reshape(-1, features.shape[2])).reshape(features.shape[:2])
        real, real_labels = self._real
        of_class = {
            label: spread_of_class(real[real_labels == label][:REAL_IMAGES]) for label in np.unique(labels)
        }
        spread = spread_within(features)
        relative = spread / np.array([of_class[label] for label in labels])
        off = images.astype(np.float32) / 127.5 - self._shown.images[rows][:, None].astype(np.float32) / 127.5
        return {
            "images": len(labels),
            "class_match": _mean(class_match(predicted, labels)),
            "diversity": _mean(spread),
            "diversity_of_real": _mean(relative),
            "pixel_mse": float(np.square(off).mean()),
            "few_shot": self._few_shot(features, labels),
        }

    def _few_shot(self, features: NDArray[Any], labels: NDArray[np.int64]) -> Record | None:
        """Means over classes, of the variations and of the shown images themselves, beside the training images."""
        real, real_labels = self._real
        shown = extract(self._shown.images, self.extractor)
        assert self._shown.labels is not None
        found: dict[str, list[Sequence[float]]] = {"generated": [], "real": []}
        for label in np.unique(labels):
            others = real[real_labels == label]
            own = shown[self._shown.labels == label]
            made = features[labels == label].reshape(-1, features.shape[2])
            if min(len(own), len(made), len(others)) <= NEIGHBOURS:
                continue
            found["generated"].append(shots(made, others))
            found["real"].append(shots(own, others))
        if not found["real"]:
            return None
        return {
            name: dict(zip(("fd", "precision", "recall"), np.mean(rows, axis=0).tolist(), strict=True))
            for name, rows in found.items()
        }

    def _mixture(self, guidance: float) -> Record:
        """Images of two seen classes shown as seven to three: how far the classes of what is made are from that."""
        labels = self._shown.labels
        assert labels is not None
        seen = [one for one in np.unique(labels) if one not in self._manifest["heldout_classes"]]
        if len(seen) < 2:
            raise DataError("A mixture needs images of two seen classes to show; set --mixtures to 0.")
        rng = generator(self.settings.seed, "mixture")
        n, found = self.settings.mixtures, []
        pairs = list(zip(seen[::2], seen[1::2], strict=False))
        for k, (one, other) in enumerate(pairs):
            counts = (round(SHARES[0] * n), n - round(SHARES[0] * n))
            rows = np.concatenate(
                [
                    members[torch.randint(len(members), (count,), generator=rng).numpy()]
                    for members, count in zip(
                        (np.flatnonzero(labels == one), np.flatnonzero(labels == other)), counts, strict=True
                    )
                ]
            )
            images = self._drawn(rows, guidance, first=self.settings.seed + (1 + k) * n + 10_000_000)
            predicted = self._judged(extract(images, self.extractor))
            found.append(total_variation(predicted, {int(one): counts[0] / n, int(other): counts[1] / n}))
        return {
            "total_variation": float(np.mean(found)),
            "largest": max(found),
            "mixtures": len(pairs),
            "n": n,
        }

    def _picture(self, images: Images, rows: NDArray[np.int64], heldout: NDArray[np.bool_]) -> Images:
        """Shown images above some variations of each; those of held-out classes stand last."""
        order = np.concatenate([np.flatnonzero(~heldout)[: COLUMNS - 4], np.flatnonzero(heldout)[:4]])
        columns = [np.concatenate([self._shown.images[rows[i]], *images[i, :ROWS]], axis=0) for i in order]
        return np.concatenate(columns, axis=1)


def _mean(values: NDArray[np.float64]) -> Record:
    """The mean over conditions, with its interval: variations of one condition are not independent."""
    mean, error = float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5
    return {"value": mean, "interval": list(normal_interval(mean, error))}


def save(record: Record, pictures: dict[str, Images], folder: Path) -> None:
    """Write the record and the pictures into a folder."""
    write_json(folder / RECORD, record)
    for name, picture in pictures.items():
        Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(folder / f"{name}.png")


def read_record(folder: Path) -> Record:
    """The content of `variations.json`.
    Raises: DataError: it is missing, damaged or of another program.
    """
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise DataError(
            f"{folder / RECORD} must be measurements of fewstep semantica ({SCHEMA}); make it again."
        )
    return record
