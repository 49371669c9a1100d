"""What claims may measure of boundaries."""

from pathlib import Path
from typing import Any

from fewstep.checks import DataError
from fewstep.methods.boundary.stage.fit.run import read_record
from fewstep.metrics.uncertainty import normal_interval, wilson_interval
from fewstep.pipeline.claims import Measurement, level_of_each


def gap_growth(run: Path) -> list[Measurement]:
    """How much further apart the mean norms of inverted and sampled states are at the latest step than at the first, in
    standard deviations of the sampled ones.

    Args: run: folder of the run.
    """
    first, *_, last = _points(run)
    value = last["gap"] - first["gap"]
    variance = sum(_deviation(point) ** 2 for point in (first, last))
    n = last["inverted"]["n"]
    what = f"from step {first['t']:.2g} to {last['t']:.2g}"
    return [Measurement(what, value, *normal_interval(value, variance**0.5), n)]


def shorter(run: Path) -> list[Measurement]:
    """How much shorter inverted states are than sampled ones at the latest step, in standard deviations of the latter,
    at infinitely many calls: without the error of the steps, of which two numbers of calls tell.

    Args: run: folder of the run.
    """
    last = _points(run)[-1]
    value = (last["sampled"]["mean"] - last["limit_mean"]) / last["sampled"]["std"]
    return [
        Measurement(
            f"at step {last['t']:.2g}",
            value,
            *normal_interval(value, _deviation(last)),
            last["inverted"]["n"],
        )
    ]


def accuracy(run: Path, *, space: str) -> list[Measurement]:
    """Share of images that a boundary was not fitted to which are on their side, at the mixing step, by attribute.

    Args:
        run: folder of the run.
        space: eps or h.
    """
    entries = [entry for entry in read_record(run / "boundary")["boundaries"] if not entry["further"]]
    level = level_of_each(len(entries))
    found = []
    for entry in entries:
        value, n = entry["spaces"][space]["accuracy"], sum(entry["choice_images"])
        found.append(Measurement(entry["attribute"], value, *wilson_interval(value, n, level), n))
    return found


def _points(run: Path) -> list[dict[str, Any]]:
    """The curves, by rising step."""
    points = sorted(read_record(run / "boundary")["points"], key=lambda point: point["t"])
    if len(points) < 2:
        raise DataError(
            f"{run / 'boundary'} must have curves of two steps or more for this claim; got {len(points)}."
        )
    return points


def _deviation(point: dict[str, Any]) -> float:
    """Of a gap, by the images behind both means."""
    own, sampled = point["inverted"], point["sampled"]
    variance = own["std"] ** 2 / own["n"] + sampled["std"] ** 2 / sampled["n"]
    return float(variance**0.5 / sampled["std"])
