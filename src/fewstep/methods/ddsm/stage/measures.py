"""What claims may measure of plans that call sub-networks."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.checks import DataError
from fewstep.methods.ddsm.cost import cost_of, macs
from fewstep.pipeline.claims import Measurement, level_of_each
from fewstep.pipeline.report.measures import certified, ratio


def fd_ratio(run: Path, *, share: float, nfe: Sequence[int]) -> list[Measurement]:
    """FD of the best step-aware plan of limited cost over that of the plan that it was made from, on the same seeds.

    Args:
        run: folder of the run, whose model is in `train`.
        share: largest share of the multiply-adds of the other plan.
        nfe: numbers of calls.
    """
    from fewstep.interop.load import load_model

    table = macs(load_model(run / "train"))
    results = certified(run)
    found = []
    for calls in nfe:
        rows = results.at(calls).to_dict("records")
        for one in rows:
            plan = results.plans[one["plan_hash"]]
            parents = [row for parent in plan.provenance.get("parents", ()) if (row := results.row(parent))]
            if not plan.uses_sub_networks or one["sampler"].endswith("+aligned") or not parents:
                continue
            cost = cost_of(plan, table) / cost_of(results.plans[parents[0]["plan_hash"]], table)
            if cost <= share:
                what = f"{calls} calls, {100 * cost:.0f} % of the multiply-adds of {parents[0]['sampler']}"
                found.append(ratio(one, parents[0], level_of_each(len(nfe)), what, results))
                break
        else:
            raise DataError(
                f"{run} must hold a certificate of a step-aware plan of {calls} calls with at most {100 * share:g} % "
                "of the multiply-adds for this claim, got none"
            )
    return found
