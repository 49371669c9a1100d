"""What a finished comparison left behind, for those who show it: the report and MLflow."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fewstep.checks import DataError
from fewstep.pipeline.record import Record
from fewstep.pipeline.tables import read_table
from fewstep.sampling.plan import Plan, load_plan

COMPOSITION = "composition.parquet"
PLANS = "plans"  # folder, beside it, of the plans that were compared
COLUMNS = ("plan", "hash", "nfe", "sampler", "widths", "moved", "fd", "ms", "winner")


@dataclass(frozen=True)
class Composition:
    """What `fewstep compose` left: its table, whose first row is the target, and its plans by hash."""

    table: pd.DataFrame
    plans: dict[str, Plan]


def read_composition(folder: Path) -> Composition:
    """Read a folder of `fewstep compose`.

    Raises:
        DataError: There is no table, or it is damaged, or a plan of it is missing.
    """
    table = read_table(folder / COMPOSITION, COLUMNS)
    files = (folder / PLANS).glob("*.json")
    plans = {plan.hash: plan for plan in (load_plan(file) for file in sorted(files))}
    absent = [plan for plan in table["hash"].iloc[1:] if plan not in plans]
    if absent:
        raise DataError(
            f"{folder} must hold every plan of its table, but {absent[0]:.16} is missing; compose again."
        )
    return Composition(table, plans)


def records(folder: Path, stamp: Mapping[str, Any]) -> Iterator[Record]:
    """The comparison in MLflow."""
    table = read_composition(folder).table
    winner, target = table[table["winner"]].iloc[0], table.iloc[0]
    yield Record(
        name="compose",
        params={"winner": str(winner["plan"]), "target": str(target["plan"]), "plans": len(table) - 1},
        points=[
            (f"{what}.{role}", float(row[what]), 0)
            for role, row in (("winner", winner), ("target", target))
            for what in ("fd", "ms")
        ],
        files=[folder / COMPOSITION],
    )
