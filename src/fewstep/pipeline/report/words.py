"""Rows of the results in words."""

import math
from collections.abc import Mapping
from typing import Any

from fewstep.pipeline.report.numbers import number


def describe(row: Mapping[str, Any]) -> str:
    """Sampler and grid in words."""
    return f"{row['sampler']} on {row['grid']}"


def interval(row: Mapping[str, Any], column: str) -> str:
    """`3.12 [2.91, 3.33]`; the value alone when its interval has no width."""
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    if not high > low:
        return number(row[column])
    return f"{number(row[column])} [{number(low)}, {number(high)}]"


def ranged(value: float, low: float, high: float) -> str:
    """`-0.52 [-0.91, -0.13]`."""
    return f"{number(value)} [{number(low)}, {number(high)}]"


def within(margin: float) -> str:
    """`within a margin of 10 %`, of a share of the target's distance."""
    return f"within a margin of {100 * margin:g} %"


def of_preset(row: Mapping[str, Any], preset: Mapping[str, Any]) -> str:
    """`0.45 of the best preset's (dpmpp-2m on uniform-t, 23.2), a significant difference`, for an own plan."""
    how = "a significant difference" if row["significant"] else "a difference that is not significant"
    return f"{row['of_preset']:.2f} of the best preset's ({describe(preset)}, {number(preset['fd'])}), {how}"


def in_fitted(row: Mapping[str, Any]) -> str | None:
    """What the distance in the features that a plan was fitted in says, as a sentence; None where there is none."""
    if math.isnan(row["fitted_of_preset"]):
        return None
    of = f"{row['fitted_of_preset']:.2f} of the best preset's"
    if row["fitted_only"]:
        return (
            f"It is ahead only in the features that it was fitted in, at {of}: no gain was shown in others."
        )
    return f"In the features that it was fitted in it has {of}."


def tooltip(row: Mapping[str, Any]) -> str:
    """What a point of a figure says when it is pointed at."""
    text = f"{describe(row)}, NFE {row['nfe']}: FD {interval(row, 'fd')}"
    return text if math.isnan(row["ms"]) else f"{text}, {number(row['ms'])} ms per image"


def flatten(value: Any, name: str = "") -> dict[str, str]:
    """Nested mappings as dotted names and printable values."""
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        for key, below in value.items():
            flat |= flatten(below, f"{name}.{key}" if name else str(key))
        return flat
    if isinstance(value, list | tuple):
        return {name: ", ".join(map(str, value))}
    return {name: f"{value:.6g}" if isinstance(value, float) else str(value)}
