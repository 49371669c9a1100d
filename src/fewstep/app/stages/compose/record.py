"""What a finished comparison left behind, for those who show it: the report and MLflow."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from fewstep.checks import DataError
from fewstep.files import read_json
from fewstep.pipeline.record import Record
from fewstep.pipeline.tables import read_table
from fewstep.sampling.plan import Plan, load_plan

COMPOSITION = "composition.parquet"
PROTOCOL = "comparison.json"  # beside it, what was asked of the plans, and of the machine
PLANS = "plans"  # folder, beside it, of the plans that were compared
COLUMNS = (
    *("plan", "hash", "nfe", "sampler", "widths", "moved", "full_calls", "fd", "fd_low", "fd_high"),
    *("difference", "difference_low", "difference_high", "margin", "non_inferior"),
    *("ms", "speed", "speed_low", "speed_high", "on_front", "winner"),
)
_OTHERS = 0.5
"""Processes beyond what a command uses that the load of an idle machine may show: it is a mean over a minute."""


class Machine(BaseModel):
    """The machine while plans were timed.

    Attributes:
        cores: that it has.
        load_before: mean number of running processes over the minute before; None where the system does not tell.
        load_after: over the last minute.
        used: processor seconds of the command per second, the cores that it kept busy itself.
    """

    cores: int
    load_before: float | None
    load_after: float | None
    used: float

    @property
    def warning(self) -> str | None:
        """That others ran beside the command while plans were timed; None where they did not, or nobody knows."""
        known = [load for load in (self.load_before, self.load_after) if load is not None]
        if not known or max(known) <= self.used + _OTHERS:
            return None
        return (
            f"While plans were timed the load of the machine's {self.cores} cores was {max(known):.1f}, of which the "
            f"command itself used {self.used:.1f}: these are times of a busy machine."
        )


class Protocol(BaseModel):
    """`comparison.json`.

    Attributes:
        margin: how much worse than the target a plan may be, as a share of the target's FD.
        level: probability with which the intervals of all differences hold together.
        comparisons: plans that were compared with the target.
        seeds: the first and the last.
        rounds: of timing.
        machine: its load.
    """

    margin: float
    level: float
    comparisons: int
    seeds: tuple[int, int]
    rounds: int
    machine: Machine


@dataclass(frozen=True)
class Composition:
    """What `fewstep compose` left: its table, whose first row is the target, its protocol, its plans by hash."""

    table: pd.DataFrame
    protocol: Protocol
    plans: dict[str, Plan]

    @property
    def target(self) -> dict[str, Any]:
        """The row that the others were compared with."""
        row: dict[str, Any] = self.table.iloc[0].to_dict()
        return row

    @property
    def chosen(self) -> dict[str, Any] | None:
        """The row of the chosen plan; None where no plan was shown to be as good as the target."""
        rows: list[dict[str, Any]] = self.table[self.table["winner"]].to_dict("records")
        return rows[0] if rows else None

    @property
    def best(self) -> dict[str, Any]:
        """The row of the plan with the least FD, which is no claim."""
        row: dict[str, Any] = self.table.loc[self.table["fd"].iloc[1:].idxmin()].to_dict()
        return row


def read_composition(folder: Path) -> Composition:
    """Read a folder of `fewstep compose`.

    Raises:
        DataError: There is no table, or it is damaged or of an earlier version, or a plan of it is missing.
    """
    table = read_table(folder / COMPOSITION, ())
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise DataError(
            f"{folder / COMPOSITION} must state differences, their margin and ranges of times, but it lacks "
            f"{', '.join(missing)}, as those of earlier versions do; compose again."
        )
    try:
        protocol = Protocol.model_validate(read_json(folder / PROTOCOL))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(
            f"{folder / PROTOCOL} must say how plans were compared, but {place}: {first['msg']}; compose again."
        ) from None
    files = (folder / PLANS).glob("*.json")
    plans = {plan.hash: plan for plan in (load_plan(file) for file in sorted(files))}
    absent = [plan for plan in table["hash"].iloc[1:] if plan not in plans]
    if absent:
        raise DataError(
            f"{folder} must hold every plan of its table, but {absent[0]:.16} is missing; compose again."
        )
    return Composition(table, protocol, plans)


def records(folder: Path, stamp: Mapping[str, Any]) -> Iterator[Record]:
    """The comparison in MLflow."""
    composition = read_composition(folder)
    chosen, target = composition.chosen, composition.target
    roles = {"winner" if chosen else "best": chosen or composition.best, "target": target}
    yield Record(
        name="compose",
        params={
            "winner": str(chosen["plan"]) if chosen else "none was shown to be as good",
            "target": str(target["plan"]),
            "plans": len(composition.table) - 1,
            "non_inferior": int(composition.table["non_inferior"].iloc[1:].sum()),
            **composition.protocol.model_dump(include={"margin", "level", "rounds", "machine"}),
        },
        points=[
            (f"{what}.{role}", float(row[what]), 0)
            for role, row in roles.items()
            for what in ("fd", "difference", "ms", "speed")
        ],
        files=[folder / COMPOSITION, folder / PROTOCOL],
    )
