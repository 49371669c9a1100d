"""The conditions folder: what images are conditioned on, row by row.

- `conditions.safetensors`: tensors by name, whose first axis is the row
- `manifest.json`: number of rows, shape and dtype of each tensor, source, encoder, hash of the content
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.checks import DataError
from fewstep.diffusion.condition import Condition
from fewstep.files import atomic_dir, read_json, write_json

SCHEMA = "fewstep.conditions/1"
TENSORS, MANIFEST = "conditions.safetensors", "manifest.json"
FIELDS = ("schema", "rows", "values", "source", "encoder", "sha256")


def save_conditions(
    folder: str | Path,
    condition: Condition,
    *,
    source: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
) -> None:
    """Write a conditions folder; it appears whole.

    Args:
        folder: Where; earlier conditions there are replaced.
        condition: The rows, at least one.
        source: What they are of, as plain values for people; `fingerprint`, where it is given, is that of the dataset
            whose images they belong to, and `split` its split.
        encoder: What made them of that, as plain values; None where nothing did.

    Raises:
        DataError: No rows. ConfigError: `folder` holds something else.
    """
    if len(condition) == 0:
        raise DataError(f"{folder} must get a row of conditions or more; got none.")
    manifest = {
        "schema": SCHEMA,
        "rows": len(condition),
        "values": {name: _form(value) for name, value in condition.values.items()},
        "source": dict(source or {}),
        "encoder": None if encoder is None else dict(encoder),
        "sha256": condition.sha256,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in condition.values.items()}
    with atomic_dir(Path(folder)) as temporary:
        save_file(tensors, temporary / TENSORS)
        write_json(temporary / MANIFEST, manifest)


def load_conditions(folder: str | Path) -> Condition:
    """Read a conditions folder, and compare its content with the hash that its manifest states.
    Raises: DataError: it is none, a file is missing, damaged or changed, or there are no rows.
    """
    folder = Path(folder)
    manifest = read_conditions_manifest(folder)
    try:
        tensors = load_file(folder / TENSORS)
    except FileNotFoundError:
        raise DataError(
            f"{folder / TENSORS} must exist, but there is no such file; make the conditions again."
        ) from None
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{folder / TENSORS} is truncated or damaged ({error}); make the conditions again, or copy them again."
        ) from None
    forms = {name: _form(value) for name, value in tensors.items()}
    if forms != manifest["values"] or any(form["shape"][:1] != [manifest["rows"]] for form in forms.values()):
        raise DataError(
            f"{folder / TENSORS} must hold {manifest['rows']} rows of {_said(manifest['values'])}, as {MANIFEST} says; "
            f"got {_said(forms)}; make the conditions again."
        )
    condition = Condition(tensors)
    if condition.sha256 != manifest["sha256"]:
        raise DataError(
            f"{folder / TENSORS} must have the content with sha256 {manifest['sha256']:.12}..., as {MANIFEST} says, "
            f"but has {condition.sha256:.12}...; it was changed, make the conditions again."
        )
    return condition


def read_conditions_manifest(folder: str | Path) -> dict[str, Any]:
    """Read and validate the manifest of a conditions folder.
    Raises: DataError: no conditions there, or a field is missing or cannot be.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} must be a folder of conditions, but it has no {MANIFEST}; name another, or make it with "
            "fewstep.data.conditions.save_conditions."
        )
    manifest = read_json(path)
    problem = _problem(manifest)
    if problem is not None:
        raise DataError(f"{path} must describe conditions, but {problem}; make the conditions again.")
    assert isinstance(manifest, dict)
    return manifest


def _problem(manifest: Any) -> str | None:
    """What is wrong with a manifest's content; None when nothing is."""
    if not isinstance(manifest, dict):
        return "it is not a JSON object"
    if manifest.get("schema") != SCHEMA:
        return f"its schema is {manifest.get('schema')!r} instead of {SCHEMA!r}"
    if missing := [field for field in FIELDS if field not in manifest]:
        return f"it lacks {', '.join(missing)}"
    rows, values, sha256 = manifest["rows"], manifest["values"], manifest["sha256"]
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        return f"rows is {rows!r} instead of a positive count"
    if not isinstance(values, dict) or not values or not all(map(_is_form, values.values())):
        return f"values is {values!r:.80} instead of the shape and dtype of each tensor, by name"
    if not isinstance(manifest["source"], dict):
        return f"source is {manifest['source']!r:.80} instead of an object"
    if not isinstance(sha256, str) or len(sha256) != 64:
        return f"sha256 is {sha256!r:.80} instead of a hex digest"
    return None


def _is_form(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("shape"), list)
        and isinstance(value.get("dtype"), str)
    )


def _form(value: Tensor) -> dict[str, Any]:
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}


def _said(forms: Mapping[str, Mapping[str, Any]]) -> str:
    return " and ".join(
        f"{name} {form['dtype']} {tuple(form['shape'])!s:.60}" for name, form in sorted(forms.items())
    )
