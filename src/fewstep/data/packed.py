"""Read a packed dataset: one memory-mapped uint8 array, its labels and its manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.data.manifest import ARRAYS, read_manifest
from fewstep.files import canonical_json, sha256_text


@dataclass(frozen=True)
class Dataset:
    """A packed dataset or one split of it; images stay on disk until they are read.

    images: uint8 (N, H, W, C) in 0..255, read-only memory map. labels: int64 (N,) or None. attributes: int8
    (N, A) of 0 and 1, or None. manifest: the whole `manifest.json`, of all splits.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    attributes: NDArray[np.int8] | None
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def name(self) -> str:
        """The dataset's name in reports."""
        return str(self.manifest["name"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the labels 0, 1, ...; None when there are no labels."""
        return classes_of(self.manifest)

    @property
    def heldout_split(self) -> str | None:
        """The split of images to judge by: test, or valid where there is no test; None where there is neither."""
        return next((name for name in ("test", "valid") if name in self.manifest["splits"]), None)

    @property
    def fingerprint(self) -> str:
        """Sha256 over the recorded hashes of the arrays; the same for every split."""
        return fingerprint_of(self.manifest)

    @property
    def of_images(self) -> str:
        """Fingerprint of the dataset whose images these are: its own."""
        return self.fingerprint

    def batch(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> Tensor:
        """Read some images.
        Args: indices: rows of this split, shape (B,), in any order.
        Returns: uint8 (B, C, H, W), contiguous, on the CPU.
        Raises: IndexError: a row outside the split.
        """
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        return torch.from_numpy(np.ascontiguousarray(self.images[rows].transpose(0, 3, 1, 2)))


def classes_of(manifest: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the labels 0, 1, ... in a manifest; None when there are no labels."""
    names = manifest["classes"]
    return None if names is None else tuple(names)


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """Sha256 over the hashes of the arrays that a manifest records."""
    return sha256_text(canonical_json(manifest["sha256"]))


def load_dataset(folder: str | Path, split: str | None = None) -> Dataset:
    """Open a packed dataset; checks the manifest, the array headers and the file sizes, not the bytes.
    Args: folder: what `fewstep prepare` wrote. split: rows of one split; all rows when None.
    Raises: DataError: the folder is no dataset, or an array is missing, truncated or of another shape.
        ConfigError: the dataset has no such split.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    n, splits, digests = manifest["n"], manifest["splits"], manifest["sha256"]
    if split is not None and split not in splits:
        raise ConfigError(f"split must be one of {', '.join(splits)} in {folder}, got {split!r}.")
    rows = slice(*splits[split]) if split is not None else slice(None)
    images = open_array(folder / ARRAYS["images"], np.uint8, (n, *manifest["shape"]))
    labels = open_array(folder / ARRAYS["labels"], np.int64, (n,)) if digests.get("labels") else None
    attributes = None
    if digests.get("attributes"):
        attributes = open_array(folder / ARRAYS["attributes"], np.int8, (n, len(manifest["attributes"])))
    return Dataset(
        images=images[rows],
        labels=None if labels is None else np.array(labels[rows]),
        attributes=None if attributes is None else attributes[rows],
        manifest=manifest,
    )


def open_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """Map a .npy file read-only.
    Raises: DataError: it is missing, damaged, truncated, or not of that dtype and shape.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} must exist, but there is no such file; prepare the dataset again.") from None
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); prepare the dataset again.") from None
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise DataError(
            f"{path} must hold {np.dtype(dtype)} {shape} as the manifest says, but holds {array.dtype} "
            f"{array.shape}; prepare the dataset again."
        )
    return array
