"""What claims may measure of images made of patches."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fewstep.checks import DataError
from fewstep.methods.patchdm.stage.run import Record, read_record
from fewstep.metrics.uncertainty import normal_interval, paired_ratio
from fewstep.pipeline.claims import Measurement, level_of_each

REAL = "real"


def seam_ratio(run: Path, *, of: str, to: str, plan: str = "*") -> list[Measurement]:
    """How much the worst seam shows over that of another way of decoding, each over that of real images.

    Args:
        run: folder of the run.
        of: a way of decoding.
        to: another, or `real`.
        plan: name of the plans, * for anything.
    """
    record = read_record(run / "enlarge")
    rows = _rows(run, record, of, plan)
    level = level_of_each(len(rows))
    found = []
    for row in rows:
        value, spread = worst_seam(record, row["seams"])
        if to != REAL:
            other, of_other = worst_seam(record, _row(run, record, to, row["name"])["seams"])
            value, spread = (
                value / other,
                value / other * ((spread / value) ** 2 + (of_other / other) ** 2) ** 0.5,
            )
        low, high = normal_interval(value, spread, level)
        found.append(
            Measurement(f"{of} against {to}, {row['nfe']} calls", value, low, high, record["protocol"]["n"])
        )
    return found


def fd_ratio(run: Path, *, of: str, to: str, plan: str = "*") -> list[Measurement]:
    """FD of a way of decoding over that of another, of the same noises.

    Args:
        run: folder of the run.
        of: a way of decoding.
        to: another.
        plan: name of the plans, * for anything.
    """
    record = read_record(run / "enlarge")
    rows = _rows(run, record, of, plan)
    level = level_of_each(len(rows))
    pairs = [(row, _row(run, record, to, row["name"])) for row in rows]
    return [
        Measurement(
            f"{of} against {to}, {one['nfe']} calls",
            one["fd"] / other["fd"],
            *paired_ratio(one["fd"], other["fd"], one["replicates"], other["replicates"], level),
            record["protocol"]["n"],
        )
        for one, other in pairs
    ]


def memory_growth(run: Path, *, network: str = "patches") -> list[Measurement]:
    """What a training step keeps for the largest images over the same for the smallest ones.

    Args:
        run: folder of the run.
        network: patches, or whole, the U-Net of whole images.
    """
    record = read_record(run / "enlarge")
    if len(record["memory"]) < 2:
        raise DataError(f"{run / 'enlarge'} must hold the memory at two sides or more; set enlarge.memory.")
    first, last = record["memory"][0], record["memory"][-1]
    value = last[network] / first[network]
    return [Measurement(f"{last['side']} pixels against {first['side']}", value, value, value)]


def worst_seam(record: Record, seams: dict[str, Any]) -> tuple[float, float]:
    """The larger of both kinds of lines: the ratio over that of real images, and its standard deviation."""
    found = []
    for kind, real in record["real"]["seams"].items():
        own = seams[kind]
        if own is not None and real is not None:
            ratio = own["value"] / real["value"]
            spread = ratio * ((own["sd"] / own["value"]) ** 2 + (real["sd"] / real["value"]) ** 2) ** 0.5
            found.append((ratio, spread))
    if not found:
        raise DataError("Seams must be measured on images of several patches; got none.")
    return max(found)


def _rows(run: Path, record: Record, decode: str, plan: str) -> list[dict[str, Any]]:
    rows = [row for row in record["results"] if row["decode"] == decode and fnmatch(row["name"], plan)]
    if not rows:
        known = ", ".join(f"{row['decode']} by {row['name']}" for row in record["results"])
        raise DataError(f"{run / 'enlarge'} must hold {decode} by {plan} for this claim; it has {known}.")
    return rows


def _row(run: Path, record: Record, decode: str, plan: str) -> dict[str, Any]:
    return _rows(run, record, decode, plan)[0]
