"""Rows of sample images: the same seeds under every sampler, small enough to travel inside a page."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from fewstep.checks import DataError
from fewstep.data.prompts import is_prompts, read_prompts
from fewstep.files import sha256_file
from fewstep.pipeline.samples import files_in

THUMBNAIL, THUMBNAIL_OF_PROMPT = 64, 128
PAGE_BYTES = 2_500_000
COLUMNS = (4, 16)
PROMPTS = 8  # rows of a table of prompts


@dataclass(frozen=True)
class SampleFile:
    """One `samples.npz`, its images still on disk.

    Attributes:
        prompts: That of each image; none where the images have no prompts, or their list is gone or was changed.
    """

    path: Path
    plan_hash: str
    model: str | None
    seeds: tuple[int, ...]
    shape: tuple[int, ...]
    prompts: tuple[str, ...] = ()

    @property
    def thumbnail(self) -> int:
        """Pixels that an image has at most on a page."""
        return THUMBNAIL_OF_PROMPT if self.prompts else THUMBNAIL

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
            prompts = _prompts(path.parent, meta.get("files", {}).get("conditions"), seeds)
        return SampleFile(
            path, str(meta["plan_hash"]), meta["model"].get("fingerprint"), seeds, shape, prompts
        )
    except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{path} must be a file of samples, but {error!r} came up on reading it; sample again."
        ) from error


def _prompts(folder: Path, recorded: Mapping[str, Any] | None, seeds: Sequence[int]) -> tuple[str, ...]:
    """The prompt of each seed, from the list that the samples say they were drawn for."""
    if recorded is None:
        return ()
    file = folder / recorded["path"]
    column = recorded.get("column")
    named = file if column is None else file.with_name(f"{file.name}:{column}")
    if not is_prompts(named) or not file.is_file() or sha256_file(file) != recorded["sha256"].get(""):
        return ()
    prompts = read_prompts(named)
    return tuple(prompts[seed % len(prompts)] for seed in seeds)


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
    scale = min(1.0, files[0].thumbnail / max(height, width))
    per_image = height * width * scale * scale * channels
    count = int(PAGE_BYTES / (per_image * max(1, rows)))
    most = PROMPTS if files[0].prompts else COLUMNS[1]
    return sorted(common)[: min(max(count, COLUMNS[0]), most)]


def shared_prompts(files: Iterable[SampleFile], seeds: Sequence[int]) -> list[str]:
    """The prompt of each seed, where all files were drawn for the same ones; else none."""
    of_files = [dict(zip(file.seeds, file.prompts, strict=False)) for file in files]
    prompts = [[of_file.get(seed, "") for seed in seeds] for of_file in of_files]
    same = bool(prompts) and all(prompts[0]) and all(some == prompts[0] for some in prompts)
    return prompts[0] if same else []


def strip(file: SampleFile, seeds: Sequence[int]) -> Image.Image:
    """Images of the seeds side by side, none higher or wider than the file's thumbnail."""
    index = {seed: i for i, seed in enumerate(file.seeds)}
    images = file.images([index[seed] for seed in seeds])
    n, height, width, channels = images.shape
    row = images.transpose(1, 0, 2, 3).reshape(height, n * width, channels)
    picture = Image.fromarray(row[..., 0] if channels == 1 else row)
    if max(height, width) > file.thumbnail:
        scale = file.thumbnail / max(height, width)
        size = (n * round(width * scale), round(height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def cells(picture: Image.Image, n: int) -> list[Image.Image]:
    """The n images of a strip."""
    width = picture.width // n
    return [picture.crop((i * width, 0, (i + 1) * width, picture.height)) for i in range(n)]


def data_uri(picture: Image.Image) -> str:
    """The picture as PNG inside a URI."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
