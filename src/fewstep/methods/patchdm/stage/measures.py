"""What claims may measure of images made of patches."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fewstep.checks import DataError
from fewstep.methods.patchdm.stage.run import Record, read_record
from fewstep.metrics.uncertainty import normal_interval, paired_ratio
from fewstep.pipeline.claims import Measurement, level_of_each

REAL = "real"
_SHARED = ("n", "reference", "extractor")


def seam_ratio(
    run: Path, *, of: str, to: str, plan: str = "*", to_run: str | None = None
) -> list[Measurement]:
    """How much the worst seam shows over that of another way of decoding, each over that of real images.

    Args:
        run: folder of the run.
        of: a way of decoding.
        to: another, or `real`.
        plan: name of the plans, * for anything.
        to_run: name of the run that the other is of, where it is another one.
    """
    record, other = _records(run, to_run)
    rows = _rows(record, of, plan)
    level = level_of_each(len(rows))
    found = []
    for row in rows:
        value, sd = worst_seam(record, row["seams"])
        if to != REAL:
            against, of_other = worst_seam(other, _row(other, to, row["name"])["seams"])
            value, sd = _ratio(value, sd, against, of_other)
        low, high = normal_interval(value, sd, level)
        found.append(Measurement(_said(row, to), value, low, high, record["protocol"]["n"]))
    return found


def fd_ratio(run: Path, *, of: str, to: str, plan: str = "*", to_run: str | None = None) -> list[Measurement]:
    """FD of a way of decoding over that of another, of the same noises.

    Args:
        run: folder of the run.
        of: a way of decoding.
        to: another.
        plan: name of the plans, * for anything.
        to_run: name of the run that the other is of, where it is another one.
    """
    record, other = _records(run, to_run)
    rows = _rows(record, of, plan)
    level = level_of_each(len(rows))
    return [
        Measurement(
            _said(one, to),
            one["fd"] / against["fd"],
            *paired_ratio(one["fd"], against["fd"], one["replicates"], against["replicates"], level),
            record["protocol"]["n"],
        )
        for one, against in ((row, _row(other, to, row["name"])) for row in rows)
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
    """The larger of both kinds of lines: the ratio over that of real images, and its standard deviation.
    Raises: DataError: images of one patch, or without contrast.
    """
    pairs = [(seams[kind], real) for kind, real in record["real"]["seams"].items()]
    found = [
        _ratio(own["value"], own["sd"], real["value"], real["sd"]) for own, real in pairs if own and real
    ]
    if not found:
        raise DataError("Seams must be measured on images of several patches that are not all of one colour.")
    return max(found)


def _said(row: dict[str, Any], to: str) -> str:
    return f"{row['decode']} against {to}, {row['sampler']}, {row['nfe']} calls"


def _ratio(a: float, sd_a: float, b: float, sd_b: float) -> tuple[float, float]:
    """A / B with its standard deviation, to first order, as of independent numbers."""
    return a / b, a / b * ((sd_a / a) ** 2 + (sd_b / b) ** 2) ** 0.5


def _records(run: Path, to_run: str | None) -> tuple[Record, Record]:
    """That of a run, and that of the one that it is compared with.
    Raises: DataError: the two were not measured alike.
    """
    record = read_record(run / "enlarge")
    if to_run is None:
        return record, record
    other = read_record(run.parent / to_run / "enlarge")
    unlike = [name for name in _SHARED if record["protocol"][name] != other["protocol"][name]]
    unlike += [] if record["seed"] == other["seed"] else ["seed"]
    if unlike:
        raise DataError(
            f"{run.name} and {to_run} must measure images alike for this claim; they differ in {', '.join(unlike)}."
        )
    return record, other


def _rows(record: Record, decode: str, plan: str) -> list[dict[str, Any]]:
    rows = [row for row in record["results"] if row["decode"] == decode and fnmatch(row["name"], plan)]
    if not rows:
        known = ", ".join(f"{row['decode']} by {row['name']}" for row in record["results"])
        raise DataError(
            f"Measurements of enlarge must hold {decode} by {plan} for this claim; they have {known}."
        )
    return rows


def _row(record: Record, decode: str, plan: str) -> dict[str, Any]:
    return _rows(record, decode, plan)[0]
