"""The latents of a packed dataset: what an autoencoder made of its images, once, so that no training encodes again.

- `latents.npy`: float16 (N, h, w, c), scaled, one drawn from the posterior of each image
- `labels.npy`: those of the images, where they have some
- `manifest.json`: dataset, autoencoder, splits, classes, hashes of the arrays
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.data.packed import Dataset, classes_of, fingerprint_of, open_array
from fewstep.data.pixels import to_unit
from fewstep.files import object_or_empty, read_json, sha256_file, write_json
from fewstep.rng import ImageNoise

SCHEMA = "fewstep.latents/1"
ARRAY, LABELS, MANIFEST = "latents.npy", "labels.npy", "manifest.json"
FIELDS = ("name", "images", "autoencoder", "n", "shape", "classes", "splits", "sha256")


@dataclass(frozen=True)
class Latents:
    """The latents of one split of a dataset; they stay on disk until they are read.

    latents: float16 (N, h, w, c), read-only memory map. labels: int64 (N,) or None. manifest: of all splits.
    """

    latents: NDArray[np.float16]
    labels: NDArray[np.int64] | None
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def name(self) -> str:
        """The name of the dataset that they are of."""
        return str(self.manifest["name"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one latent."""
        height, width, channels = self.latents.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the labels 0, 1, ...; None when there are no labels."""
        return classes_of(self.manifest)

    @property
    def fingerprint(self) -> str:
        """Sha256 over the recorded hashes of the arrays; the same for every split."""
        return fingerprint_of(self.manifest)

    @property
    def of_images(self) -> str:
        """Fingerprint of the dataset whose images they are of."""
        return str(self.manifest["images"])

    def batch(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> Tensor:
        """Some latents, float32 (B, c, h, w), contiguous, on the CPU; indices: rows of this split, in any order."""
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        return torch.from_numpy(np.ascontiguousarray(self.latents[rows].transpose(0, 3, 1, 2))).float()


def draw_latents(
    dataset: Dataset,
    encode: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, int, int],
    *,
    seed: int,
    batch_size: int,
    device: torch.device | str,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> NDArray[np.float16]:
    """A latent of each image, drawn from its posterior; image i has the noise of seed + i, whatever the batch.

    Args:
        dataset: The images of all splits.
        encode: From images in [-1, 1] and unit noise to latents, `Autoencoder.encode`.
        shape: Of one latent, (c, h, w).
        seed: Of the first image's noise.
        batch_size: Images at once.
        device: Where they are encoded.
        progress: Wraps the batches.

    Returns:
        (N, h, w, c).
    """
    c, h, w = shape
    array = np.empty((len(dataset), h, w, c), np.float16)
    for first in progress(range(0, len(dataset), batch_size)):
        rows = range(first, min(first + batch_size, len(dataset)))
        noise = ImageNoise([seed + row for row in rows], shape)()
        drawn = encode(to_unit(dataset.batch(list(rows))).to(device), noise)
        array[first : rows[-1] + 1] = drawn.cpu().permute(0, 2, 3, 1).numpy()
    return array


def write_latents(
    folder: Path, array: NDArray[np.float16], dataset: Dataset, *, autoencoder: Mapping[str, Any]
) -> None:
    """Write the files of latents into a folder; `array` (N, h, w, c) has a row for each image of all splits."""
    np.save(folder / ARRAY, array)
    digests: dict[str, str | None] = {"latents": sha256_file(folder / ARRAY), "labels": None}
    if dataset.labels is not None:
        np.save(folder / LABELS, dataset.labels)
        digests["labels"] = sha256_file(folder / LABELS)
    manifest = {
        "schema": SCHEMA,
        "name": dataset.name,
        "images": dataset.fingerprint,
        "autoencoder": dict(autoencoder),
        "n": len(array),
        "shape": list(array.shape[1:]),
        "classes": None if dataset.classes is None else list(dataset.classes),
        "splits": dataset.manifest["splits"],
        "sha256": digests,
    }
    write_json(folder / MANIFEST, manifest)


def is_latents(folder: str | Path) -> bool:
    """Whether a folder is one of latents."""
    return object_or_empty(Path(folder) / MANIFEST).get("schema") == SCHEMA


def load_latents(folder: str | Path, split: str) -> Latents:
    """Open the latents of a split; checks the manifest, the array headers and the file sizes, not the bytes.
    Raises: DataError: a file is missing, damaged or of another form. ConfigError: there is no such split.
    """
    folder = Path(folder)
    manifest = read_json(folder / MANIFEST)
    lacks = [name for name in FIELDS if not isinstance(manifest, dict) or name not in manifest]
    if lacks or manifest.get("schema") != SCHEMA:
        raise DataError(
            f"{folder / MANIFEST} must describe latents ({SCHEMA}), but lacks {', '.join(lacks) or 'its schema'}; make "
            "them again with fewstep latents."
        )
    if split not in manifest["splits"]:
        raise ConfigError(f"split must be one of {', '.join(manifest['splits'])} in {folder}, got {split!r}.")
    rows = slice(*manifest["splits"][split])
    latents = open_array(folder / ARRAY, np.float16, (manifest["n"], *manifest["shape"]))
    has_labels = manifest["sha256"].get("labels") is not None
    labels = open_array(folder / LABELS, np.int64, (manifest["n"],)) if has_labels else None
    return Latents(latents[rows], None if labels is None else np.array(labels[rows]), manifest)
