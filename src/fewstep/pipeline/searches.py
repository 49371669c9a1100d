"""What finished searches left behind, for those who show it: the report and MLflow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, Field, ValidationError

from fewstep.checks import ConfigError, DataError
from fewstep.files import read_json
from fewstep.pipeline.specs import STAMP
from fewstep.sampling.plan import Plan, load_plan

COLUMNS = ("number", "state", "value", "network_calls", "seed")
COMPOSITION = "composition.parquet"
BASES = "bases"  # folder, beside it, of the plans that others were made from
COMPOSED_COLUMNS = ("plan", "hash", "nfe", "sampler", "widths", "moved", "fd", "ms", "winner")


class Point(BaseModel):
    """One judgement during a polish; the first has no loss."""

    iteration: int
    loss: float | None
    validation: float


class Finalist(BaseModel):
    """A plan of the final comparison; without a reference there is no distance between sets."""

    name: str
    hash: str
    error: float
    fd: float | None


class Record(BaseModel):
    """`search.nfe<N>.json`."""

    schema_: Literal["fewstep.search/1"] = Field(alias="schema")
    nfe: int
    model: dict[str, Any]
    guidance: float
    teacher: dict[str, Any]
    settings: dict[str, Any]
    seeds: dict[str, tuple[int, int]]
    trials: dict[str, int]
    history: list[tuple[int, float]]
    importance: dict[str, float]
    polish: dict[str, list[Point]]
    measure: Literal["error", "fd"]
    finalists: list[Finalist]
    winner: str
    best_preset: str
    network_calls: dict[str, int]
    seconds: dict[str, float]

    def finalist(self, name: str) -> Finalist:
        """The finalist of that name."""
        return next(finalist for finalist in self.finalists if finalist.name == name)


@dataclass(frozen=True)
class FinishedSearch:
    """The search for one number of calls: its record, the plan, the trials, and their files."""

    record: Record
    plan: Plan
    trials: pd.DataFrame
    files: tuple[Path, ...]

    @property
    def nfe(self) -> int:
        """Network calls of the plan."""
        return self.record.nfe


def read_searches(folders: Sequence[Path]) -> list[FinishedSearch]:
    """The searches that stand in folders of `fewstep search`, by rising number of calls.

    Raises:
        DataError: A folder holds none, or a file is missing, damaged or of another search.
        ConfigError: A plan cannot be executed, or two searches are for one number of calls.
    """
    found: dict[int, FinishedSearch] = {}
    for folder in folders:
        records = sorted(folder.glob("search.nfe*.json"))
        if not records:
            raise DataError(
                f"{folder} must hold a record search.nfe<N>.json, but there is none; make it with fewstep search."
            )
        for path in records:
            search = _read(path)
            if search.nfe in found:
                raise ConfigError(
                    f"There must be one search for each number of calls, but {found[search.nfe].files[0]} and "
                    f"{path} are both for {search.nfe}; leave one out."
                )
            found[search.nfe] = search
    return [found[nfe] for nfe in sorted(found)]


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
    table = _read_table(folder / COMPOSITION, COMPOSED_COLUMNS)
    files = [*folder.glob("*.json"), *(folder / BASES).glob("*.json")]
    plans = {plan.hash: plan for plan in (load_plan(file) for file in sorted(files) if file.name != STAMP)}
    absent = [plan for plan in table["hash"].iloc[1:] if plan not in plans]
    if absent:
        raise DataError(
            f"{folder} must hold every plan of its table, but {absent[0]:.16} is missing; compose again."
        )
    return Composition(table, plans)


def _read(path: Path) -> FinishedSearch:
    try:
        record = Record.model_validate(read_json(path))
        for name in (record.winner, record.best_preset):
            record.finalist(name)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(
            f"{path} must be the record of a search, but {place}: {first['msg']}; search again."
        ) from None
    except StopIteration:
        raise DataError(
            f"{path} must list the winner and the best preset as finalists; search again."
        ) from None
    plan_file = path.with_name(f"searched.nfe{record.nfe}.json")
    trials_file = path.with_name(f"trials.nfe{record.nfe}.parquet")
    plan = load_plan(plan_file)
    fingerprint = record.model.get("fingerprint")
    if (plan.nfe, plan.fingerprint) != (record.nfe, fingerprint):
        raise DataError(
            f"{plan_file} must be the plan of {path.name}, {record.nfe} calls of model {fingerprint}, but it makes "
            f"{plan.nfe} of {plan.fingerprint}; search again."
        )
    return FinishedSearch(record, plan, _read_table(trials_file, COLUMNS), (plan_file, path, trials_file))


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise DataError(f"{path} must exist, but there is no such file; make it again.") from None
    except Exception as error:  # the reader of parquet has errors of its own
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} must be a table, but it is damaged ({reason}).") from None
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{path} must be a whole table, but it lacks {', '.join(missing)}; make it again.")
    return table
