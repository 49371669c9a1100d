"""Checkpoints: tensors in one file, numbers in JSON, in a folder per step that is complete or absent."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep import files
from fewstep.checks import ConfigError, DataError
from fewstep.locks import locked

SCHEMA = "fewstep.checkpoint/1"
TENSORS, NUMBERS, LOCK = "tensors.pt", "checkpoint.json", ".lock"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """What was read: the step, the nested dict of tensors, and the numbers kept beside them."""

    step: int
    tensors: dict[str, Any]
    numbers: dict[str, Any]


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Names the settings that a checkpoint belongs to."""
    return files.sha256_text(files.canonical_json(dict(settings)))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep the checkpoints of a folder to this process, and clear what killed ones have left half-written.
    Raises: ConfigError: another process trains there.
    """
    with locked(folder / LOCK, "trains"):
        files.remove_abandoned(folder, _NAME.pattern)
        yield


def write_checkpoint(
    folder: Path,
    *,
    step: int,
    tensors: Mapping[str, Any],
    numbers: Mapping[str, Any],
    settings: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write `folder/step-N` by rename, then remove all but the last `keep` checkpoints."""
    path = folder / f"step-{step:08d}"
    with files.atomic_dir(path) as temporary:
        torch.save(dict(tensors), temporary / TENSORS)
        files.write_json(
            temporary / NUMBERS,
            {
                "schema": SCHEMA,
                "step": step,
                "settings": dict(settings),
                "settings_hash": settings_hash(settings),
                "numbers": dict(numbers),
            },
        )
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old:08d}", ignore_errors=True)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step, or None."""
    steps = _steps(folder)
    return folder / f"step-{steps[-1]:08d}" if steps else None


def step_of(path: Path) -> int:
    """The step of the checkpoint in a folder of this name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def read_checkpoint(path: Path, *, settings: Mapping[str, Any], device: torch.device) -> Checkpoint:
    """Read a checkpoint of exactly these settings.

    Raises:
        ConfigError: It was written with other settings; the sentence names them.
        DataError: A missing, truncated or foreign file.
    """
    content = files.read_json(path / NUMBERS)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise DataError(
            f"{path / NUMBERS} must have schema {SCHEMA!r}; remove {path} or give another folder."
        )
    if content["settings_hash"] != settings_hash(settings):
        raise ConfigError(
            f"the checkpoint {path} was written with other settings "
            f"({_difference(content['settings'], settings)}); "
            "resume with those settings, or give an empty checkpoint folder to start again."
        )
    try:
        tensors = torch.load(path / TENSORS, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path / TENSORS} is not a readable checkpoint ({first}); "
            f"remove {path} to resume from an earlier one."
        ) from error
    return Checkpoint(int(content["step"]), tensors, content["numbers"])


def _steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, rising."""
    if not folder.is_dir():
        return []
    return sorted(step_of(entry) for entry in folder.iterdir() if _NAME.fullmatch(entry.name))


def _difference(stored: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """The first few settings that differ, in words."""
    current = json.loads(files.canonical_json(dict(current)))
    keys = sorted(key for key in {*stored, *current} if stored.get(key) != current.get(key))
    return "; ".join(f"{key} was {stored.get(key)!r}, now {current.get(key)!r}" for key in keys[:3])
