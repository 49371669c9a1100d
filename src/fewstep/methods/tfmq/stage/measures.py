"""What claims may measure of quantised plans."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.checks import DataError
from fewstep.pipeline.claims import Measurement, level_of_each
from fewstep.pipeline.report.measures import certified, ratio
from fewstep.pipeline.report.results import Results


def fd_ratio(
    run: Path, *, bits: str, nfe: Sequence[int], method: str = "tfmq", against: str | None = None
) -> list[Measurement]:
    """FD of a quantised plan over that of the plan in floats that it was made from, or of another way to quantise it.

    Args:
        run: folder of the run.
        bits: such as `w4a8`.
        nfe: numbers of calls.
        method: how it was quantised.
        against: another method; None: floats.
    """
    results, level = certified(run), level_of_each(len(nfe))
    found = []
    for calls in nfe:
        one = _quantised(results, bits, method, calls, run)
        other = _parent(results, one) if against is None else _quantised(results, bits, against, calls, run)
        what = f"{calls} calls, {bits} {method} against {against or 'floats'}"
        found.append(ratio(one, other, level, what, results))
    return found


def _quantised(results: Results, bits: str, method: str, nfe: int, run: Path) -> dict[str, Any]:
    rows: list[dict[str, Any]] = results.at(nfe).to_dict("records")
    for row in rows:
        said = results.plans[row["plan_hash"]].provenance.get("quantize", {})
        if (said.get("bits"), said.get("method")) == (bits, method):
            return row
    raise DataError(f"{run} must hold a certificate of a plan of {nfe} calls in {bits} by {method}, got none")


def _parent(results: Results, row: dict[str, Any]) -> dict[str, Any]:
    parent = results.plans[row["plan_hash"]].provenance["parents"][0]
    found = results.row(parent)
    if found is None:
        raise DataError(
            f"{row['plan']} must have a certificate of the plan that it was made from, but none was found"
        )
    return found
