"""Whether a certificate says what was found: lines of a verification."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fewstep.metrics.certificate import protocol_difference

Outcome = Literal["held", "failed", "not reached"]

SAME_IMAGES = 1e-4
"""Relative difference of a metric on the same images that another machine's rounding may cause: features of two
processors differ by about 1e-6."""

_OF_VALUE = {"replicates", "interval", "mean_term", "trace_term", "slope"}
"""Numbers that are as exact as the value is, however small they are."""
_LOOSE = {"interval", "slope", "r2", "split_sd", "null_sd"}
"""Spreads and fits are differences of like numbers: ten times the rounding of those."""
_OF_ANY_IMAGES = {"level", "interval_method", "resample_seed", "baseline", "baseline_source", "n"}
"""What a measurement of other images of the same plan says, too."""


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    what: str
    outcome: Outcome
    detail: str = ""


def compared(what: str, certified: Mapping[str, Any], found: Mapping[str, Any], held: str) -> Line:
    """Whether two objects are the same; names the first field that is not."""
    problem = protocol_difference({"protocol": certified}, {"protocol": found})
    if problem is None:
        return Line(what, "held", held)
    return Line(what, "failed", f"certified and found: {problem.removeprefix('protocol.'):.300}")


def agreement(
    name: str, certified: Mapping[str, Any] | None, found: Mapping[str, Any] | None, tolerance: float | None
) -> Line:
    """Whether every number of a metric is found again; of other images its value within the interval."""
    if certified is None or found is None:
        reason = "measured, but not certified" if certified is None else "certified, but not measured"
        return Line(name, "failed", f"{reason}, with the settings that the protocol names")
    fields = certified.keys() | found.keys()
    detail = f"certified {certified['value']:.6g}, found {found['value']:.6g}"
    wrong = []
    if tolerance is None:
        fields, tolerance = fields & _OF_ANY_IMAGES, SAME_IMAGES
        low, high = certified.get("interval", (np.nan, np.nan))
        wrong = [] if low <= found["value"] <= high else ["value"]
        detail += f", interval [{low:.6g}, {high:.6g}]"
    for field in sorted(fields):
        scale = max(abs(found["value"]) if field in _OF_VALUE else 0.0, 1e-3)
        allowed = tolerance * (10 if field in _LOOSE else 1)
        if not _same(certified.get(field), found.get(field), scale, allowed):
            wrong.append(field)
    return Line(
        name, "failed" if wrong else "held", detail + (f"; not the same: {', '.join(wrong)}" if wrong else "")
    )


def _same(certified: Any, found: Any, scale: float, tolerance: float) -> bool:
    """Text and counts must be equal, other numbers up to a part of themselves or of a scale."""
    if isinstance(certified, list) and isinstance(found, list):
        pairs = zip(certified, found, strict=False)
        return len(certified) == len(found) and all(_same(a, b, scale, tolerance) for a, b in pairs)
    if isinstance(found, float) and isinstance(certified, int | float):
        return abs(certified - found) <= tolerance * max(abs(found), scale)
    return bool(certified == found)
