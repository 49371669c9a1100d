"""What claims may measure of inpainting."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.methods.rad.stage.run import Record, read_record
from fewstep.metrics.uncertainty import normal_interval, paired_ratio
from fewstep.pipeline.claims import Measurement, level_of_each


def accuracy_gain(run: Path, *, of: str, to: str, masks: Sequence[str] = ()) -> list[Measurement]:
    """Share of filled images of the right class less that of another method, over masks, paired by images.

    Args:
        run: folder of the run.
        of: name of a plan or method, * for anything.
        to: that of what it is compared with.
        masks: those to average over; all when empty.
    """
    (record, of_rows), (_, to_rows) = _rows(run, of, masks), _rows(run, to, masks)
    if any(row["accuracy"] is None for row in (*of_rows, *to_rows)):
        raise DataError(f"{run} must have labels and a classifier for this claim; got none.")
    gains = np.mean([_hits(one) - _hits(other) for one, other in zip(of_rows, to_rows, strict=True)], axis=0)
    return [_mean(f"{_calls(of_rows)} calls against {_calls(to_rows)}", gains, record)]


def error_ratio(run: Path, *, of: str, to: str, masks: Sequence[str] = ()) -> list[Measurement]:
    """Squared error in the hole over that of another method, of means over masks, paired by images.

    Args:
        run: folder of the run.
        of: name of a plan or method, * for anything.
        to: that of what it is compared with.
        masks: those to average over; all when empty.
    """
    (record, of_rows), (_, to_rows) = _rows(run, of, masks), _rows(run, to, masks)
    one, other = (np.mean([row["errors"] for row in rows], axis=0) for rows in (of_rows, to_rows))
    ratio = float(one.mean() / other.mean())
    # of a ratio of means, to first order
    spread = float((one - ratio * other).std(ddof=1) / len(one) ** 0.5 / other.mean())
    low, high = normal_interval(ratio, spread)
    what = f"{_calls(of_rows)} calls against {_calls(to_rows)}"
    return [Measurement(what, ratio, low, high, record["protocol"]["n"])]


def fd_ratio(run: Path, *, of: str, to: str, masks: Sequence[str] = ()) -> list[Measurement]:
    """FD of filled images over that of another method, of each mask.

    Args:
        run: folder of the run.
        of: name of a plan or method, * for anything.
        to: that of what it is compared with.
        masks: which; all when empty.
    """
    (record, of_rows), (_, to_rows) = _rows(run, of, masks), _rows(run, to, masks)
    level = level_of_each(len(of_rows))
    return [
        Measurement(
            f"{one['mask']}, {one['nfe']} calls against {other['nfe']}",
            one["fd"] / other["fd"],
            *paired_ratio(one["fd"], other["fd"], one["replicates"], other["replicates"], level),
            record["protocol"]["n"],
        )
        for one, other in zip(of_rows, to_rows, strict=True)
    ]


def _rows(run: Path, name: str, masks: Sequence[str]) -> tuple[Record, list[dict[str, Any]]]:
    """The record, and the fillings of a name, one for each mask."""
    record = read_record(run / "inpaint")
    kinds = list(masks) or list(dict.fromkeys(row["mask"] for row in record["results"]))
    rows = [
        row
        for kind in kinds
        for row in record["results"]
        if row["mask"] == kind and fnmatch(row["name"], name)
    ]
    if [row["mask"] for row in rows] != kinds:
        names = ", ".join(dict.fromkeys(row["name"] for row in record["results"]))
        raise DataError(
            f"{run / 'inpaint'} must hold one filling {name} of each mask, {', '.join(kinds)}, for this claim; it has "
            f"{names}"
        )
    return record, rows


def _calls(rows: Sequence[dict[str, Any]]) -> int:
    calls: int = rows[0]["nfe"]
    return calls


def _hits(row: dict[str, Any]) -> NDArray[np.float64]:
    return np.array([hit == "1" for hit in row["accuracy"]["hits"]], np.float64)


def _mean(what: str, values: NDArray[np.float64], record: Record) -> Measurement:
    value, spread = float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5
    return Measurement(what, value, *normal_interval(value, spread), record["protocol"]["n"])
