"""Files that a result was made from: where they stand, seen from the result, and the hashes of their bytes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.data.manifest import ARRAYS, read_manifest
from fewstep.files import read_json, sha256_file
from fewstep.nets import PLANS

Record = dict[str, Any]
"""`path`, relative to the folder of the result, and `sha256`: name below that path ("" for itself) -> hash."""

_SUFFIXES = {".safetensors", ".json"}
_INDEX, _SCHEDULERS = "model_index.json", ("scheduler/scheduler_config.json", "scheduler_config.json")
_NOT_READ = {"card.json", "spec.json", "zoo.json"}  # they tell of the making, and nothing depends on them


def record(path: Path, *, beside: Path) -> Record:
    """Record a file, or the weights and descriptions of a model, of which some may stand beside its folder."""
    if path.is_dir():
        found = sorted({*_files(path), *_beside(path)})
        names = {_seen_from(file, path): sha256_file(file) for file in found}
    else:
        names = {"": sha256_file(path)}
    return {"path": _seen_from(path, beside), "sha256": names}


def record_dataset(path: Path, *, beside: Path) -> Record:
    """Record a packed dataset; the hashes of its arrays are those that its manifest states."""
    stated = {ARRAYS[name]: digest for name, digest in read_manifest(path)["sha256"].items() if digest}
    return {
        "path": _seen_from(path, beside),
        "sha256": {"manifest.json": sha256_file(path / "manifest.json"), **stated},
    }


def seen_from(recorded: Mapping[str, Any], old: Path, new: Path) -> Record:
    """The same record for a result in another folder."""
    return {**recorded, "path": _seen_from(old / recorded["path"], new), "sha256": dict(recorded["sha256"])}


def _seen_from(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def _files(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in folder.rglob("*")
        if path.suffix in _SUFFIXES
        and path.name not in _NOT_READ
        and path.parent != folder / PLANS
        and path.is_file()
    )


def _beside(folder: Path) -> Iterator[Path]:
    """What is read beside the folder of a network that diffusers has saved: the rest of its pipeline."""
    if (folder / _INDEX).exists() or not (folder / "config.json").exists():
        return
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or "_class_name" not in config:
        return
    if (folder.parent / _INDEX).exists():
        yield from _files(folder.parent)
    else:
        yield from filter(Path.exists, (folder.parent / name for name in _SCHEDULERS))
