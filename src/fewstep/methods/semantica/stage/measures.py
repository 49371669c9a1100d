"""What claims may measure of variations of images."""

from pathlib import Path
from typing import Any

from fewstep.checks import DataError
from fewstep.methods.semantica.stage.run import read_record
from fewstep.pipeline.claims import Measurement


def class_match(run: Path, *, guidance: float, group: str = "seen") -> list[Measurement]:
    """Share of variations that are of the class of the image that was shown.

    Args:
        run: folder of the run.
        guidance: the scale.
        group: `seen` or `held out` classes.
    """
    return [_measured(run, "class_match", guidance, group)]


def diversity(run: Path, *, guidance: float, group: str = "seen") -> list[Measurement]:
    """Mean distance between variations of an image over that between real images of its class.

    Args:
        run: folder of the run.
        guidance: the scale.
        group: `seen` or `held out` classes.
    """
    return [_measured(run, "diversity_of_real", guidance, group)]


def mixture(run: Path, *, guidance: float) -> list[Measurement]:
    """Total variation between the classes of what is shown and of what is made, the largest of all mixtures.

    Args:
        run: folder of the run.
        guidance: the scale.
    """
    found = next(
        (one for one in read_record(run / "semantica")["mixtures"] if one["guidance"] == guidance), None
    )
    if found is None:
        raise DataError(
            f"{run} must hold mixtures at guidance {guidance:g} for this claim; add it to params.yaml"
        )
    value = found["largest"]
    return [Measurement("largest of the mixtures", value, value, value, found["n"])]


def _measured(run: Path, what: str, guidance: float, group: str) -> Measurement:
    results: list[dict[str, Any]] = read_record(run / "semantica")["results"]
    row = next((one for one in results if (one["group"], one["guidance"]) == (group, guidance)), None)
    if row is None:
        raise DataError(
            f"{run} must hold variations of {group} classes at guidance {guidance:g} for this claim; add it to "
            "params.yaml"
        )
    low, high = row[what]["interval"]
    return Measurement(
        f"{group} classes, guidance {guidance:g}", row[what]["value"], low, high, row["images"]
    )
