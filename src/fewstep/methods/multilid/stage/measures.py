"""What claims may measure of a detection."""

from pathlib import Path
from statistics import NormalDist

from fewstep.methods.multilid.stage.record import read_detection
from fewstep.pipeline.claims import LEVEL, Measurement, level_of_each


def accuracy(run: Path, *, protocol: str) -> list[Measurement]:
    """Share of images, real and generated, that are classified correctly, for each generator, by the richest features.

    Args:
        run: folder of the run.
        protocol: `fair`, free of leaks, or `published`.
    """
    detection = read_detection(run / "detect")
    headline = detection.record["protocol"]["headline"] | {"protocol": protocol}
    rows = detection.rows(**headline).to_dict("records")
    n = int(detection.record["protocol"]["images"])
    return [
        _measured(
            str(row["generator"]), row["accuracy"], row["accuracy_low"], row["accuracy_high"], n, len(rows)
        )
        for row in rows
    ]


def identification(run: Path) -> list[Measurement]:
    """Share of images whose origin, one of the generators or real, is named rightly."""
    record = read_detection(run / "detect").record
    found = record["identification"]["accuracy"]
    classes, chance = record["identification"]["classes"], record["identification"]["chance"]
    low, high = found["interval"]
    what = f"{len(classes)} classes, chance {chance:.2f}"
    return [_measured(what, found["value"], low, high, int(record["protocol"]["images"]), 1)]


def _measured(what: str, value: float, low: float, high: float, n: int, count: int) -> Measurement:
    """With the interval widened, as that of a normal, so that all of them hold together."""
    wider = NormalDist().inv_cdf((1 + level_of_each(count)) / 2) / NormalDist().inv_cdf((1 + LEVEL) / 2)
    return Measurement(what, value, value - wider * (value - low), value + wider * (high - value), n)
