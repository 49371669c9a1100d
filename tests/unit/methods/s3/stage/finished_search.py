"""A search as `fewstep search` leaves it, made up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from fewstep.diffusion.schedule import VPLinear
from fewstep.files import write_json
from fewstep.sampling.document import save_plan
from fewstep.sampling.linear import in_linear_form
from fewstep.sampling.plan import Plan
from fewstep.sampling.presets import PRESETS

SCHEDULE = VPLinear()
SEEDS = {"trials": [10**9, 10**9 + 31], "finalists": [2 * 10**9, 2 * 10**9 + 99]}
PRESET = "dpmpp-2m.uniform-t"


def preset_plan(nfe: int) -> Plan:
    return PRESETS["dpmpp-2m"](SCHEDULE, nfe, grid="uniform-t", to_zero=True)


def found_plan(nfe: int, model: str) -> Plan:
    """A preset with its first weight moved."""
    plan = in_linear_form(PRESETS["dpmpp-2m"](SCHEDULE, nfe, grid="karras", to_zero=True), SCHEDULE)
    raw = plan.steps[0].raw
    assert raw is not None
    provenance = {"sampler": "searched", "grid": "free", "found": "polished.frechet", "seeds": SEEDS}
    return replace(
        plan.with_step(0, raw=replace(raw, A=1.1 * raw.A)),
        name=f"searched.nfe{nfe}",
        fingerprint=model,
        provenance=provenance,
    )


def record(nfe: int, model: str, *, by: str = "fd") -> dict[str, Any]:
    has_fd = by == "fd"
    curve = [
        {"iteration": 0, "loss": None, "validation": 1.0},
        {"iteration": 10, "loss": 0.8, "validation": 0.5},
    ]
    return {
        "schema": "fewstep.search/1",
        "nfe": nfe,
        "model": {"name": "tiny", "fingerprint": model},
        "guidance": 1.0,
        "teacher": {"plan": "unipc-3.nfe100", "nfe": 100},
        "settings": {"trials": 4, "sampler": "s3", "nfe": []},
        "seeds": SEEDS,
        "trials": {"complete": 2, "pruned": 1, "disqualified": 1, "lost": 0, "seeded": 1},
        "history": [[320, 2.0], [640, 1.0]],
        "importance": {
            "gap_1": 0.5,
            "scale_2_1": 0.2,
            "scale_2_2": 0.1,
            "first_step": 0.05,
            "corr_scale_0": 0,
        },
        "polish": {"trajectory": curve} | ({"frechet": curve} if has_fd else {}),
        "measure": by,
        "finalists": [
            {"name": PRESET, "hash": preset_plan(nfe).hash, "error": 2.0, "fd": 9.0 if has_fd else None},
            {"name": "trial-1", "hash": "1" * 64, "error": 1.0, "fd": 8.0 if has_fd else None},
            {"name": "polished.frechet", "hash": "2" * 64, "error": 0.5, "fd": 3.0 if has_fd else None},
        ],
        "winner": "polished.frechet",
        "best_preset": PRESET,
        "network_calls": {"presets": 100, "trials": 1040, "polish": 500, "finalists": 200},
        "seconds": {"presets": 1.0, "trials": 2.0, "polish": 3.0, "finalists": 4.0},
    }


def write_search(folder: Path, nfe: int, *, model: str, by: str = "fd") -> Plan:
    """Write plan, record and trials; the plan."""
    plan = found_plan(nfe, model)
    save_plan(plan, folder / f"searched.nfe{nfe}.json")
    write_json(folder / f"search.nfe{nfe}.json", record(nfe, model, by=by))
    trials = pd.DataFrame(
        {
            "number": range(4),
            "state": ["complete", "complete", "pruned", "fail"],
            "value": [2.0, 1.0, 7.0, None],
            "network_calls": [320, 320, 80, None],
            "seed": [PRESET, "", "", ""],
        }
    )
    trials.to_parquet(folder / f"trials.nfe{nfe}.parquet", index=False)
    return plan
