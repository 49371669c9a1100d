"""The description of a packed dataset: `manifest.json` beside its arrays."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.checks import DataError
from fewstep.files import read_json, sha256_file

SCHEMA = "fewstep.dataset/1"
SPLITS = ("train", "valid", "test")  # the order in which a packed array holds them

# Arrays that a dataset may have, by the key under which the manifest keeps their sha256.
ARRAYS = {"images": "images.npy", "labels": "labels.npy", "attributes": "attributes.npy"}
FIELDS = ("schema", "name", "source", "n", "shape", "classes", "splits", "transform", "skipped", "sha256")

_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read and validate `manifest.json`.
    Raises: DataError: no packed dataset there, a field is missing or its value cannot be.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        raise DataError(
            f"{folder} must be a packed dataset, but it has no manifest.json; "
            "make it with `fewstep prepare DATASET --out DIR`."
        )
    manifest = read_json(path)
    problem = manifest_problem(manifest)
    if problem is not None:
        raise DataError(f"{path} must describe a packed dataset, but {problem}; prepare the dataset again.")
    assert isinstance(manifest, dict)
    return manifest


def manifest_problem(manifest: Any) -> str | None:
    """What is wrong with a manifest's content; None when nothing is."""
    if not isinstance(manifest, dict):
        return "it is not a JSON object"
    if manifest.get("schema", SCHEMA) != SCHEMA:
        return f"its schema is {manifest['schema']!r} instead of {SCHEMA!r}"
    missing = [field for field in FIELDS if field not in manifest]
    if missing:
        return f"it lacks {', '.join(missing)}"
    n, shape, classes = manifest["n"], manifest["shape"], manifest["classes"]
    if not _is_count(n):
        return f"n is {n!r} instead of a positive count"
    if not (isinstance(shape, list) and len(shape) == 3 and all(map(_is_count, shape))):
        return f"shape is {shape!r} instead of [height, width, channels]"
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
        return f"classes is {classes!r} instead of a list of names or null"
    if not _is_hashes(manifest["sha256"]):
        return f"sha256 is {manifest['sha256']!r} instead of the hex digests of the arrays"
    if manifest["sha256"].get("attributes") and not isinstance(manifest.get("attributes"), list):
        return f"attributes is {manifest.get('attributes')!r:.60} instead of a list of names"
    return _splits_problem(manifest["splits"], n)


def verify(folder: str | Path) -> None:
    """Compare every array of a packed dataset with the sha256 in its manifest; reads all the bytes.
    Raises: DataError: an array is missing or its bytes have changed.
    """
    folder = Path(folder)
    for key, expected in read_manifest(folder)["sha256"].items():
        path = folder / ARRAYS[key]
        if expected is None:
            continue
        if not path.is_file():
            raise DataError(f"{path} must exist, since the manifest records it; prepare the dataset again.")
        found = sha256_file(path)
        if found != expected:
            raise DataError(
                f"{path} must have sha256 {expected}, but has {found}; prepare the dataset again."
            )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_hashes(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) <= set(ARRAYS)
        and isinstance(value.get("images"), str)
        and all(
            digest is None or (isinstance(digest, str) and _SHA256.fullmatch(digest))
            for digest in value.values()
        )
    )


def _splits_problem(splits: Any, n: int) -> str | None:
    if not isinstance(splits, Mapping) or not splits:
        return f"splits is {splits!r} instead of an object of row ranges"
    for name, rows in splits.items():
        is_range = isinstance(rows, list) and len(rows) == 2 and all(isinstance(row, int) for row in rows)
        if not (is_range and 0 <= rows[0] < rows[1] <= n):
            return f"splits gives {name!r} {rows!r} instead of [first, end] within its {n} rows"
    return None
