"""The loaders by name, and the packing of a dataset by any of them."""

import logging
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fewstep.checks import ConfigError
from fewstep.data.celeba import celeba_source
from fewstep.data.cifar10 import cifar10_source
from fewstep.data.dataset_names import LSUN, PATTERN
from fewstep.data.digits import digits_source
from fewstep.data.engine import prepare_source
from fewstep.data.folder import folder_source
from fewstep.data.left_out import sentence
from fewstep.data.lsun import lsun_source
from fewstep.data.source import Source

log = logging.getLogger(__name__)


class Loader(Protocol):
    """Makes a source of the raw files; a setting without meaning for a dataset has no effect on it."""

    def __call__(self, source: Path | None, *, size: int | None, grey: bool, test_fraction: float) -> Source:
        """Find the raw files at `source` and list their images."""


DATASETS: dict[str, Loader] = {
    "digits": digits_source,
    "cifar10": cifar10_source,
    "celeba": celeba_source,
    "folder": folder_source,
}


def loader(dataset: str) -> Loader:
    """The loader of a dataset by name: a key of DATASETS, or lsun-<category>.
    Raises: ConfigError: another name.
    """
    if not re.fullmatch(PATTERN, dataset):
        raise ConfigError(f"dataset must be one of {', '.join(DATASETS)}, {LSUN}<category>; got {dataset!r}.")
    return DATASETS.get(dataset) or partial(lsun_source, dataset.removeprefix(LSUN))


def prepare(
    dataset: str,
    out: str | Path,
    *,
    name: str | None = None,
    source: str | Path | None = None,
    size: int | None = None,
    grey: bool = False,
    limit: int | None = None,
    test_fraction: float = 0.2,
    skip_corrupt: bool = False,
    max_pixels: int | None = None,
    workers: int = 2,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Pack a dataset into the folder `out`; the same call resumes work that was interrupted.

    Args: dataset: digits, cifar10, celeba, lsun-<category> or folder. name: in reports; the dataset's own
    when None. source: file or folder of raw data; digits need none, cifar10 is downloaded without. size: side
    of the square images; None keeps their own (CelebA: 64, LSUN: 256). grey: one channel instead of RGB.
    limit: at most so many images, evenly spaced. test_fraction: share held out where the dataset has no test
    images of its own. skip_corrupt: leave out unreadable images and list them in the manifest. max_pixels: the
    largest image that is read, None for Pillow's limit of 179 million pixels. workers: decoding processes; 1
    decodes in this one. progress: wraps an iterable that has a length and yields once per image.
    Returns: The manifest. Its `left_out` counts the files that were not used, and why; they are logged, too.
    Raises: ConfigError: a setting that cannot be. DataError: raw files missing or damaged, a full disk.
    """
    if size is not None and size < 1:
        raise ConfigError(f"size must be at least 1 pixel, got {size}.")
    if not 0 <= test_fraction < 1:
        raise ConfigError(f"test_fraction must be at least 0 and below 1, got {test_fraction}.")
    raw = loader(dataset)(
        None if source is None else Path(source), size=size, grey=grey, test_fraction=test_fraction
    )
    manifest = prepare_source(
        raw,
        out,
        name=name,
        limit=limit,
        workers=workers,
        skip_corrupt=skip_corrupt,
        max_pixels=max_pixels,
        progress=progress,
    )
    if manifest["left_out"]:
        log.warning("left out: %s", sentence(manifest["left_out"]))
    if manifest["skipped"]:
        names = ", ".join(manifest["skipped"][:5])
        log.warning("left out: %d unreadable images (%s)", len(manifest["skipped"]), names)
    return manifest
