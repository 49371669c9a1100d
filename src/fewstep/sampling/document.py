"""The plan file, `fewstep.plan/2`: a plan, and beside it the rows of scalars that any program can run.

The first part is what a plan is made of, in the form of version 1; the identity of a plan is the hash of it alone.
The second part, `compiled`, is derived: docs/plan.md says how to run it in forty lines. It keeps apart the time of the
state and the time that the network is told, and states the units of both.
"""

import math
from pathlib import Path

import torch

from fewstep.diffusion.prediction import PREDICTIONS
from fewstep.diffusion.schedule import Schedule, schedule_from_config
from fewstep.files import write_json
from fewstep.sampling.linear import linear_form
from fewstep.sampling.plan import SCHEMA_2, Json, Plan
from fewstep.sampling.solver import predictions

READ_AS = tuple(name for name in PREDICTIONS if name != "edm")
"""Predictions whose input is x_t itself; EDM's preconditioning scales it, too, which rows do not say."""


def plan_document(plan: Plan) -> Json:
    """The document of schema `fewstep.plan/2`."""
    document = plan.to_json()
    facts = {"nfe": plan.nfe, "depth": plan.depth}
    return {**document, **facts, "schema": SCHEMA_2, "compiled": compiled_rows(plan)}


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write the plan file by rename."""
    write_json(path, plan_document(plan))


def compiled_rows(plan: Plan) -> Json | None:
    """The part that other programs run; None where there is none.

    That is where a plan draws noise, changes the network, or where a state no longer holds any of the noise that it
    started with.
    """
    if plan.stochastic or plan.changes_network or plan.uses_sub_networks:
        return None
    schedule = schedule_from_config(dict(plan.schedule))
    rows = linear_form(plan, schedule)
    if not all(math.isfinite(float(value)) for row in rows for value in (row.A, *row.c)):
        return None
    read_as = {name: predictions(plan, schedule, name) for name in READ_AS}
    return {
        "dtype": "float64",
        "start": {"std": schedule.start_std(plan.nodes[0].lambda_), "distribution": "normal"},
        "end": "data" if plan.to_zero else "state",
        "clip": plan.clip,
        "units": {"t": _unit_of(schedule), "timestep": "of the network's time embedding", "lambda": "nats"},
        "rows": [
            {
                "kind": row.kind,
                "t": plan.nodes[row.node].t,
                "alpha": float(schedule.alpha(plan.nodes[row.node].t)),
                "sigma": float(schedule.sigma(plan.nodes[row.node].t)),
                "t_cond": float(row.t),
                "timestep": float(schedule.time_input(torch.tensor(float(row.t), dtype=torch.float64))),
                "x0": {name: [float(v) for v in read_as[name][row.node]["x0"]] for name in READ_AS},
                "A": float(row.A),
                "c": [float(weight) for weight in row.c],
            }
            for row in rows
        ],
    }


def _unit_of(schedule: Schedule) -> str:
    return "sigma" if schedule.config()["type"] == "edm" else "1 is noise, 0 is data"
