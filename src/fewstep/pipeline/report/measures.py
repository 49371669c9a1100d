"""What claims may measure of the certificates of a run: distances of plans, as ratios with intervals."""

import fnmatch
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from fewstep.checks import ConfigError, DataError
from fewstep.metrics.uncertainty import paired_ratio
from fewstep.pipeline.claims import Measurement, level_of_each
from fewstep.pipeline.report.results import Results, read_results
from fewstep.pipeline.report.words import describe


def fd_ratio(
    run: Path, *, of: Mapping[str, Any], to: Mapping[str, Any], nfe: Sequence[int], to_nfe: int | None = None
) -> list[Measurement]:
    """FD of one plan over that of another, on the same seeds, for each number of calls.

    Where several plans fit, the one of the least FD is taken: what is claimed to be better is then compared with the
    luckiest of them.

    Args:
        run: folder of the run.
        of: values of columns of the results that the plan must have, such as `sampler: searched`; texts may be
            patterns such as `ddim*`.
        to: the same of the plan that it is compared with.
        nfe: numbers of calls.
        to_nfe: number of calls of the latter; None: the same.
    """
    results = certified(run)
    level = level_of_each(len(nfe))
    found = []
    for calls in nfe:
        one, other = _best(results, of, calls, run), _best(results, to, to_nfe or calls, run)
        found.append(
            ratio(one, other, level, f"{calls} calls, {_against(one, other)}{_fitted(one)}", results)
        )
    return found


def ratio(
    one: Mapping[str, Any], other: Mapping[str, Any], level: float, what: str, results: Results
) -> Measurement:
    """FD of one row of the results over that of another.
    Raises: DataError: their certificates have no paired replicates.
    """
    a, b = one["resampling"], other["resampling"]
    if a is None or b is None or a[0] != b[0]:
        raise DataError(
            "Distances must have replicates cut at the same seeds for a ratio with an interval; evaluate with "
            "resamples."
        )
    low, high = paired_ratio(one["fd"], other["fd"], a[2], b[2], level)
    return Measurement(what, one["fd"] / other["fd"], low, high, int(results.protocol["n"]))


@lru_cache(maxsize=8)
def certified(run: Path) -> Results:
    """All certificates of a run.
    Raises: DataError: there are none.
    """
    files = [file for file in sorted((run / "evaluate").rglob("*.json")) if file.name != "spec.json"]
    return read_results(files)


def _best(results: Results, wanted: Mapping[str, Any], nfe: int, run: Path) -> dict[str, Any]:
    frame = results.at(nfe)
    unknown = wanted.keys() - set(frame.columns)
    if unknown:
        raise ConfigError(
            f"a claim must name columns of the results, {', '.join(frame.columns)}; got {sorted(unknown)[0]}"
        )
    for column, value in wanted.items():
        frame = frame[_fits(frame[column], value)]
    rows: list[dict[str, Any]] = frame.to_dict("records")
    if not rows:
        raise DataError(
            f"{run} must hold certificates of plans of {nfe} calls with {dict(wanted)} for this claim, got none"
        )
    return rows[0]


def _fits(column: "pd.Series[Any]", value: Any) -> "pd.Series[bool]":
    if isinstance(value, str):
        return column.map(lambda one: fnmatch.fnmatchcase(str(one), value))
    return column == value


def _fitted(one: Mapping[str, Any]) -> str:
    """What is to be said where a plan is ahead only in the features that it was fitted in."""
    return "; ahead in the features that it was fitted in alone" if one["fitted_only"] else ""


def _against(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    calls = "" if one["nfe"] == other["nfe"] else f" in {other['nfe']}"
    return f"{one['sampler']} against {describe(other)}{calls}"
