"""What claims may measure of aligned plans."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.checks import DataError
from fewstep.pipeline.claims import Measurement, level_of_each
from fewstep.pipeline.report.measures import certified, ratio
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.words import describe


def fd_ratio(run: Path, *, start: str, nfe: Sequence[int]) -> list[Measurement]:
    """FD with aligned conditioning timesteps over FD without, on the same seeds, for each number of calls.

    It is 1 where the stage kept the plan as it was, as no change passed its gate.

    Args:
        run: folder of the run.
        start: name of the sampler that was aligned, such as `ddim`.
        nfe: numbers of calls.
    """
    results = certified(run)
    level = level_of_each(len(nfe))
    found = []
    for calls in nfe:
        if not (run / "align" / f"nfe{calls}").is_dir():
            raise DataError(f"{run} must hold an alignment of {calls} calls for this claim, but it does not")
        pair = _aligned(results, start, calls)
        if pair is None:
            found.append(Measurement(f"{calls} calls, {start}: kept as it was", 1.0, 1.0, 1.0))
        else:
            what = f"{calls} calls, aligned against {describe(pair[1])}"
            found.append(ratio(*pair, level, what, results))
    return found


def _aligned(results: Results, start: str, nfe: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The rows of an aligned plan and of the one that it was made from."""
    for one in results.at(nfe).to_dict("records"):
        if one["sampler"] == f"{start}+aligned":
            parents = results.plans[one["plan_hash"]].provenance["parents"]
            other = next((row for parent in parents if (row := results.row(parent)) is not None), None)
            if other is None:
                raise DataError(
                    f"{one['plan']} must have a certificate of the plan that it was made from, but none was found"
                )
            return one, other
    return None
