"""The samples file: images and everything that they depend on."""

import hashlib
import json
import math
import re
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import ConfigError, DataError
from fewstep.files import atomic_file, is_hidden, parse_json

SCHEMA = "fewstep.samples/2"
FACTS = ("model", "plan", "plan_hash", "plan_name", "nfe", "guidance", "batch_size", "dtype", "costs")
"""What else must be said of images for a certificate."""


@dataclass(frozen=True)
class Samples:
    """Images (N, H, W, C) uint8, the seed of each, (N,), and the facts of `fewstep sample`."""

    images: NDArray[np.uint8]
    seeds: NDArray[np.int64]
    meta: dict[str, Any]

    @cached_property
    def sha256(self) -> str:
        """Hash of images and seeds, the same wherever and however fast they were made."""
        return images_sha256(self.images, self.seeds)


def images_sha256(images: NDArray[np.uint8], seeds: NDArray[np.int64] | None = None) -> str:
    """Hash of an array of images by shape and bytes, read in pieces: it may be a memory map."""
    digest = hashlib.sha256(repr(images.shape).encode())
    for start in range(0, len(images), 1024):
        digest.update(np.ascontiguousarray(images[start : start + 1024]).data)
    if seeds is not None:
        digest.update(np.ascontiguousarray(seeds, "<i8").data)
    return digest.hexdigest()


def write_samples(path: Path, samples: Samples) -> None:
    """Write an .npz whose `arr_0` other evaluators read, too."""
    facts = {**samples.meta, "schema": SCHEMA, "images_sha256": samples.sha256}
    meta = json.dumps(facts, sort_keys=True, allow_nan=False)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, arr_0=samples.images, seeds=samples.seeds, meta=np.array(meta))


def read_samples(path: Path) -> Samples:
    """Read what `write_samples` wrote; the images stay on disk until they are asked for.
    Raises: DataError: the file is missing, damaged, or of another program.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            seeds, meta = arrays["seeds"], parse_json(str(arrays["meta"]), "meta")
        if not isinstance(meta, dict) or not isinstance(meta.get("seeds", ""), str):
            raise ValueError("meta is no object with seeds")
        stated = parse_seeds(meta["seeds"])
        if len(stated) != seeds.size or not np.array_equal(seeds, stated):
            raise ValueError(f"its seeds are not {meta['seeds']}")
        samples = Samples(mapped_array(path, "arr_0"), seeds, meta)
    except FileNotFoundError:
        raise DataError(
            f"{path} must exist, but there is no such file; make it with fewstep sample."
        ) from None
    except KeyError as error:
        raise DataError(
            f"{path} must be written by fewstep sample, but it lacks {error}; make it again."
        ) from None
    except Exception as error:  # numpy raises zipfile, zlib, OS and value errors for damaged archives
        raise DataError(
            f"{path} must be a samples file, but it is damaged ({error}); make it again."
        ) from None
    images = samples.images
    is_set = images.dtype == np.uint8 and images.ndim == 4 and len(images) == seeds.size
    if samples.meta.get("schema") != SCHEMA or not is_set:
        raise DataError(
            f"{path} must hold uint8 images (N, H, W, C) of {SCHEMA} for N = {seeds.size} seeds; got {images.dtype} "
            f"{images.shape} of {samples.meta.get('schema')!r}."
        )
    if missing := [fact for fact in FACTS if fact not in samples.meta]:
        raise DataError(
            f"{path} must be written by fewstep sample, but it lacks {', '.join(missing)}; make it again."
        )
    return samples


def require_facts(path: Path, meta: Mapping[str, Any]) -> None:
    """Raise DataError where the facts of images are not such as a certificate can be made of."""
    for name, holds in _HOLD.items():
        if name in meta and not holds(meta[name]):
            raise DataError(
                f"{path} must say of its images what fewstep sample says, but {name} is {meta[name]!r:.60}; "
                "make it again."
            )


def _has(*fields: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and value.keys() >= set(fields)


_HOLD: dict[str, Callable[[Any], bool]] = {
    "model": _has("fingerprint", "name", "ema"),
    "plan": lambda value: _has("provenance")(value) and isinstance(value["provenance"], dict),
    "costs": _has("nfe", "network_calls", "network_ms_per_image", "wall_seconds", "device"),
    "conditions": lambda value: value is None or _has("sha256", "rows")(value),
    "files": lambda value: (
        isinstance(value, dict)
        and all(
            _has("path", "sha256")(one) and isinstance(one["path"], str) and isinstance(one["sha256"], dict)
            for one in value.values()
        )
    ),
}


def mapped_array(path: Path, name: str) -> NDArray[Any]:
    """Map an array of an uncompressed .npz read-only; a compressed one, or in Fortran's order, is read whole.
    Raises: KeyError: there is no such array. What numpy and zipfile raise for damaged archives.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            return _whole_array(archive, info)
        file.seek(info.header_offset + 26)
        # a local header is 30 bytes, then the name and an extra field, whose lengths it says
        file.seek(info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))))
        start = file.tell()
        shape, in_fortran_order, dtype = read_array_header(file)
        if in_fortran_order or 0 in shape or dtype.hasobject:  # what cannot be mapped
            return _whole_array(archive, info)
        if file.tell() - start + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(
                f"{name} {shape} must fill the {info.file_size} bytes that the file holds for it"
            )
        return np.memmap(file, dtype, "r", offset=file.tell(), shape=shape)


def _whole_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(info) as member:
        shape, _, dtype = read_array_header(member)
        if math.prod(shape) * dtype.itemsize > info.file_size:  # before so much memory is asked for
            raise ValueError(
                f"{info.filename} {shape} must fit the {info.file_size} bytes that the file states"
            )
    with archive.open(info) as member:
        array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        if member.read():  # at the end the sum of the bytes is looked at
            raise ValueError(
                f"{info.filename} {shape} must fill the {info.file_size} bytes that the file states"
            )
    return array


def read_array_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and dtype at the start of an .npy."""
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in read_header:
        raise ValueError(f"the version {version} of the format is unknown")
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read_header[version](file)
    return found


def parse_seeds(text: str) -> range:
    """Read `0-49999`, both ends included, or a single seed.
    Raises: ConfigError: anything else.
    """
    match = re.fullmatch(r"([0-9]{1,19})(?:-([0-9]{1,19}))?", text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first or last >= 1 << 63:
        raise ConfigError(f"--seeds must be FIRST-LAST such as 0-49999, below 2^63; got {text!r}.")
    return range(first, last + 1)


def seeds_text(seeds: Sequence[int]) -> str:
    """The inverse of `parse_seeds`."""
    return f"{seeds[0]}-{seeds[-1]}"


def require_distinct_names(paths: Sequence[Path]) -> None:
    """Refuse inputs whose results in one folder would overwrite each other.
    Raises: ConfigError: names the first two of one name.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        name = stem_of(path)
        if name in seen:
            raise ConfigError(
                f"Results in one folder need names of their own, but {seen[name]} and {path} are both {name}; rename "
                "one, or do them one by one."
            )
        seen[name] = path


def stem_of(path: Path) -> str:
    """What a result is called after its input: the file without its suffix, the folder's whole name."""
    return path.resolve().name if path.is_dir() else path.stem


def files_in(paths: Sequence[Path], suffix: str) -> list[Path]:
    """The files that are meant, without records: those named, and those of that suffix in named folders.

    Of a folder that holds none itself, those in the folders below it, such as the results of all stages.

    Raises: DataError: a path does not exist, or a folder has none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = _files(path, f"*{suffix}") or _files(path, f"**/*{suffix}")
            if not inside:
                raise DataError(f"{path} must hold {suffix} files, but there is none; name another folder.")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path} must exist, but there is no such file or folder; check the path.")
    return found


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder; beside results stand their spec and, beside a searched plan, the record of its search."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if not path.name.startswith(("spec.", "search.")) and not is_hidden(path.relative_to(folder))
    )
