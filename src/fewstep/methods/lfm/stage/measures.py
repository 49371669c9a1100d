"""What claims may measure of latent flow matching."""

from pathlib import Path
from typing import Any

from fewstep.checks import DataError
from fewstep.methods.lfm.stage.run import read_record
from fewstep.metrics.uncertainty import paired_ratio
from fewstep.pipeline.claims import Measurement


def fd_of_steps(run: Path, *, nfe: int, to: int | str) -> list[Measurement]:
    """FD of Euler at some evaluations over that at others, or of dopri5, of the same noises.

    Args:
        run: folder of the run.
        nfe: evaluations.
        to: evaluations of what it is compared with, or "dopri5".
    """
    record = read_record(run / "lfm")
    one = _row(record, kind="euler", nfe=nfe)
    other = _row(record, kind="dopri5") if to == "dopri5" else _row(record, kind="euler", nfe=to)
    against = f"{to}, {other['nfe']} calls" if to == "dopri5" else f"{to} calls"
    return [_ratio(record, one, other, f"Euler, {nfe} calls against {against}")]


def fd_of_guidance(run: Path, *, guidance: float, to: float) -> list[Measurement]:
    """FD at one guidance over that at another, of the same noises.

    Args:
        run: folder of the run.
        guidance: the scale.
        to: that of what it is compared with.
    """
    record = read_record(run / "lfm")
    one, other = (_row(record, kind="guidance", guidance=scale) for scale in (guidance, to))
    return [_ratio(record, one, other, f"guidance {guidance:g} against {to:g}")]


def accuracy(run: Path, *, nfe: int) -> list[Measurement]:
    """Share of the images of Euler that are of the class asked for.

    Args:
        run: folder of the run.
        nfe: evaluations.
    """
    record = read_record(run / "lfm")
    found = _row(record, kind="euler", nfe=nfe)["accuracy"]
    if found is None:
        raise DataError(f"{run} must have a classifier and a model of classes for this claim; got none.")
    return [_shared(f"{nfe} calls", found, record["protocol"]["n"])]


def right_class_of_holes(run: Path) -> list[Measurement]:
    """Share of inpainted images that are of the class of the image.

    Args:
        run: folder of the run.
    """
    found = _part(run, "mask")
    return [_shared("filled by the model", found["filled"]["accuracy"], found["n"])]


def overlap_of_maps(run: Path) -> list[Measurement]:
    """Overlap of what is bright in an image with its map, intersection over union.

    Args:
        run: folder of the run.
    """
    found = _part(run, "map")
    return [_shared("map to image", found["overlap"], found["n"])]


def bound_over_distance(run: Path) -> list[Measurement]:
    """The bound on the squared Wasserstein distance over the distance between lists of images.

    Args:
        run: folder of the run.
    """
    found = _part(run, "bound")
    value = found["bound"] / found["wasserstein2"]
    return [Measurement("bound over distance", value, value, value, found["n"])]


def _shared(what: str, found: dict[str, Any], n: int) -> Measurement:
    low, high = found["interval"]
    return Measurement(what, found["value"], low, high, n)


def _part(run: Path, name: str) -> dict[str, Any]:
    record = read_record(run / "lfm")
    if name not in record:
        raise DataError(f"{run / 'lfm'} must hold {name} for this claim, got {', '.join(sorted(record))}")
    part: dict[str, Any] = record[name]
    return part


def _row(record: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    fits = (row for row in record["results"] if all(row[name] == value for name, value in wanted.items()))
    found = next(fits, None)
    if found is None:
        raise DataError(f"lfm must hold a measurement with {wanted} for this claim; add it to params.yaml")
    row: dict[str, Any] = found
    return row


def _ratio(record: dict[str, Any], one: dict[str, Any], other: dict[str, Any], what: str) -> Measurement:
    low, high = paired_ratio(one["value"], other["value"], one["replicates"], other["replicates"])
    return Measurement(what, one["value"] / other["value"], low, high, record["protocol"]["n"])
