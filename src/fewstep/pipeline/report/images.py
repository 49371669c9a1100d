"""Rows of sample images: the same seeds under every sampler, small enough to travel inside a page."""

import base64
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from fewstep.checks import DataError
from fewstep.pipeline.samples import files_in

THUMBNAIL = 64
PAGE_BYTES = 2_500_000
COLUMNS = (4, 16)


@dataclass(frozen=True)
class SampleFile:
    """One `samples.npz`, its images still on disk."""

    path: Path
    plan_hash: str
    model: str | None
    seeds: tuple[int, ...]
    shape: tuple[int, ...]

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """Chosen images, uint8 (n, H, W, C)."""
        with np.load(self.path, allow_pickle=False) as archive:
            return np.asarray(archive["arr_0"][list(indices)])


def read_sample_files(paths: Sequence[Path]) -> dict[str, SampleFile]:
    """Sample files by the hash of their plan; of several files of one plan the first by path.

    Args:
        paths: npz files, or folders that hold them.

    Raises:
        DataError: A file is damaged or not a sample file.
    """
    files = map(_read, sorted(set(files_in(paths, ".npz")), reverse=True))
    return {file.plan_hash: file for file in files}


def _read(path: Path) -> SampleFile:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:  # closed if damaged, too
            meta = json.loads(str(archive["meta"][()]))
            seeds = tuple(int(seed) for seed in archive["seeds"])
            shape = _shape_without_reading(archive)
        return SampleFile(path, str(meta["plan_hash"]), meta["model"].get("fingerprint"), seeds, shape)
    except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{path} must be a file of samples, but {error!r} came up on reading it; sample again."
        ) from error


def _shape_without_reading(archive: Any) -> tuple[int, ...]:
    """(N, H, W, C) from the header alone: hundreds of files of thousands of images are only looked at."""
    with archive.zip.open("arr_0.npy") as member:
        version = np.lib.format.read_magic(member)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = headers[version](member)
    if len(shape) != 4 or shape[3] not in (1, 3) or dtype != np.uint8:
        raise ValueError(f"arr_0 is {dtype} {shape}, not uint8 (N, H, W, 1 or 3)")
    return tuple(shape)


def shared_seeds(files: Iterable[SampleFile], *, rows: int) -> list[int]:
    """The first seeds that all files have, as many as keep a page of `rows` rows small."""
    files = list(files)
    if not files:
        return []
    common = set.intersection(*(set(file.seeds) for file in files))
    height, width, channels = files[0].shape[1:]
    scale = min(1.0, THUMBNAIL / max(height, width))
    per_image = height * width * scale * scale * channels
    count = int(PAGE_BYTES / (per_image * max(1, rows)))
    return sorted(common)[: min(max(count, COLUMNS[0]), COLUMNS[1])]


def strip(file: SampleFile, seeds: Sequence[int]) -> Image.Image:
    """Images of the seeds side by side, each at most 64 pixels high and wide."""
    index = {seed: i for i, seed in enumerate(file.seeds)}
    images = file.images([index[seed] for seed in seeds])
    n, height, width, channels = images.shape
    row = images.transpose(1, 0, 2, 3).reshape(height, n * width, channels)
    picture = Image.fromarray(row[..., 0] if channels == 1 else row)
    if max(height, width) > THUMBNAIL:
        scale = THUMBNAIL / max(height, width)
        size = (n * round(width * scale), round(height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def data_uri(picture: Image.Image) -> str:
    """The picture as PNG inside a URI."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
