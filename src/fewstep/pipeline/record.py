"""What a stage shows of a finished result in MLflow, said without MLflow."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.checks import DataError

Point = tuple[str, float, int]
"""Name, value and step of a number."""


@dataclass(frozen=True)
class Record:
    """One MLflow run, below that of the whole run.

    Attributes:
        name: of the MLflow run.
        params: settings and outcomes in words, nested.
        points: numbers at their steps.
        files: artifacts.
        key: what it is found by, where that shall not change with the rest of the run; None: place and content.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Point] = ()
    files: Sequence[Path] = ()
    key: str | None = None


def curve_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a training curve, `metrics.jsonl`; a torn last line is left for the next reading.
    Raises: DataError: there is no such file.
    """
    if not path.exists():
        raise DataError(
            f"{path} must hold the training curve, but there is no such file; train the model again"
        )
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def row_points(row: Mapping[str, Any]) -> list[Point]:
    """The numbers of such a row, at its step."""
    numbers = {
        name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"
    }
    return [(metric_name(name), float(value), int(row["step"])) for name, value in numbers.items()]


def metric_name(name: str) -> str:
    """MLflow takes letters, digits and `_-. :/` in names: `FD-x#1k` becomes `FD-x.1k`."""
    return re.sub(r"[^\w\-. :/]", ".", name)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
