"""CIFAR-10 from its official archives, binary or python; nothing in a pickle but arrays is let in."""

import os
import pickle
import tarfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.data.digits import array_reader
from fewstep.data.download import CHUNK_BYTES, download, mismatch
from fewstep.data.source import Item, Source
from fewstep.data.transforms import Transform
from fewstep.files import sha256_file
from fewstep.progress import track

BASE_URL = "https://www.cs.toronto.edu/~kriz/"
# Sizes and md5 as published at BASE_URL + cifar.html.
OFFICIAL: dict[str, tuple[int, str]] = {
    "cifar-10-binary.tar.gz": (170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar-10-python.tar.gz": (170_498_071, "c58f30108f718f92721af3b95e74349a"),
}
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = "test_batch"
_PIXELS = 3 * 32 * 32

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (n, 32, 32, 3), labels (n,)


def cifar10_source(
    source: Path | None, *, size: int | None = None, grey: bool = False, test_fraction: float = 0.0
) -> Source:
    """CIFAR-10 [krizhevsky2009cifar], 50,000 training and 10,000 test images in the order of the archive.

    Args: source: one of the two official archives, or a folder that holds one; None downloads the binary one
    into `$XDG_CACHE_HOME/fewstep`. size: centre crop and Lanczos to this side. grey: one channel.
    test_fraction: has no say, CIFAR-10 has test images of its own.
    Raises: DataError: no archive there, damaged, incomplete, or holding what CIFAR-10 does not.
    """
    path = _archive(source)
    images, labels, classes, n_train = _read_archive(path)
    splits = ["train"] * n_train + ["test"] * (len(labels) - n_train)
    items = [
        Item(f"{split}-{row:05d}", split, label, row)
        for row, (split, label) in enumerate(zip(splits, labels.tolist(), strict=True))
    ]
    official = OFFICIAL.get(path.name)
    is_official = (
        official is not None and mismatch(path, size=official[0], md5=official[1], sha256=None) is None
    )
    return Source(
        name="cifar10",
        items=items,
        open_reader=partial(array_reader, images),
        transform=Transform(size=size, grey=grey),
        origin={"kind": "cifar10", "file": path.name, "sha256": sha256_file(path), "official": is_official},
        classes=classes,
        parallel=False,
    )


def _archive(source: Path | None) -> Path:
    if source is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fewstep"
        name = "cifar-10-binary.tar.gz"
        size, md5 = OFFICIAL[name]
        progress = track(f"download {name}", total=-(-size // CHUNK_BYTES), unit="MiB")
        return download(BASE_URL + name, cache / name, size=size, md5=md5, progress=progress)
    candidates = [source / name for name in OFFICIAL] if source.is_dir() else [source]
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(
        f"source must be {' or '.join(OFFICIAL)}, or a folder with one, but {source} is not; check the path."
    )


def _read_archive(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...], int]:
    """Images (N, 32, 32, 3), labels (N,), class names, and how many of the images are for training."""
    files = _members(path)
    is_binary = f"{TEST}.bin" in files
    suffix = ".bin" if is_binary else ""
    missing = [name + suffix for name in (*TRAIN, TEST) if name + suffix not in files]
    if missing:
        raise DataError(
            f"{path} must hold the six batches of CIFAR-10, but lacks {missing[0]}; download it again."
        )
    decode: Callable[[bytes, str], Batch] = read_binary_batch if is_binary else read_python_batch
    batches = [decode(files[name + suffix], f"{path.name}:{name}{suffix}") for name in (*TRAIN, TEST)]
    classes = _binary_classes(files) if is_binary else _python_classes(files, path.name)
    images = np.concatenate([batch[0] for batch in batches])
    labels = np.concatenate([batch[1] for batch in batches])
    if len(classes) != 10 or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path} must hold 10 classes and labels 0 to 9, but does not; download it again.")
    return images, labels, classes, len(labels) - len(batches[-1][1])


def _members(path: Path) -> dict[str, bytes]:
    """Every file of the archive by its last name."""
    try:
        with tarfile.open(path, "r:*") as archive:
            regular = [(member.name.rsplit("/", 1)[-1], archive.extractfile(member)) for member in archive]
            return {name: file.read() for name, file in regular if file is not None}
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{path} must be a whole archive, but cannot be read ({error}); download it again."
        ) from error


def read_binary_batch(data: bytes, name: str) -> Batch:
    """Records of a label byte and 3 x 32 x 32 pixels, channels first."""
    if not data or len(data) % (1 + _PIXELS):
        raise DataError(
            f"{name} must be a multiple of {1 + _PIXELS} bytes, but has {len(data)}; download it again."
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return _to_hwc(records[:, 1:]), records[:, 0].astype(np.int64)


def read_python_batch(data: bytes, name: str) -> Batch:
    """A pickled dict with `data` uint8 (n, 3072) and a list `labels`."""
    content = load_arrays(data, name)
    pixels, labels = content.get("data"), content.get("labels")
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (_PIXELS,)):
        raise DataError(f"{name} must hold data of uint8 (n, {_PIXELS}), but does not; download it again.")
    if not (
        isinstance(labels, list) and len(labels) == len(pixels) and all(isinstance(v, int) for v in labels)
    ):
        raise DataError(f"{name} must hold a list of {len(pixels)} labels, but does not; download it again.")
    return _to_hwc(pixels), np.array(labels, dtype=np.int64)


def load_arrays(data: bytes, name: str) -> dict[str, Any]:
    """Unpickle a dict of plain values and numpy arrays.
    Raises: DataError: damaged, not a dict, or it names anything else, which would run its author's code.
    """
    try:
        content = _ArrayUnpickler(BytesIO(data), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{name} {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(
            f"{name} must be a pickle, but cannot be read ({error!r}); download it again."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{name} must hold a dict, but holds {type(content).__name__}; download it again.")
    # Python 2 wrote byte strings, which latin1 makes text; Python 3 copies of the archive have bytes for
    # keys.
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the three names that rebuild a numpy array, under their old and their new address."""

    _rebuild = np.zeros(0).__reduce__()[0]
    _admitted: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _rebuild,
        ("numpy._core.multiarray", "_reconstruct"): _rebuild,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up in the list; never import it."""
        try:
            return self._admitted[module, name]
        except KeyError:
            raise DataError(
                f"must hold numpy arrays alone, but names {module}.{name}; "
                "do not trust this file, download it again."
            ) from None


def _to_hwc(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _binary_classes(files: dict[str, bytes]) -> tuple[str, ...]:
    return tuple(files.get("batches.meta.txt", b"").decode("latin1").split())


def _python_classes(files: dict[str, bytes], archive: str) -> tuple[str, ...]:
    names = load_arrays(files.get("batches.meta", b""), f"{archive}:batches.meta").get("label_names", [])
    return tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names)
