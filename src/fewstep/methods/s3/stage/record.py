"""What finished searches left behind, and what of it is shown in MLflow."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, Field, ValidationError

from fewstep.checks import ConfigError, DataError
from fewstep.files import read_json
from fewstep.pipeline.record import Point as MetricPoint
from fewstep.pipeline.record import Record
from fewstep.pipeline.tables import read_table
from fewstep.sampling.plan import Plan, load_plan, plan_from_json

CLOCKED = ("seconds", "trials.lost")
"""What of `search.nfe<N>.json` depends on the clock. All else is the same to the bit, however often a search of one
worker was interrupted; so are the plan and, but for `fewstep.pipeline.trials.CLOCKED`, the table of trials."""
COLUMNS = ("number", "state", "value", "network_calls", "seed")


class Point(BaseModel):
    """One judgement during a polish; the first has no loss."""

    iteration: int
    loss: float | None
    validation: float


class Finalist(BaseModel):
    """A plan of the final comparison; without a reference there is no distance between sets.

    Attributes: images: that the distance between sets was measured on; one far behind the best gets fewer.
    """

    name: str
    hash: str
    error: float
    fd: float | None
    images: int = 0


class SearchRecord(BaseModel):
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
    best_preset_plan: dict[str, Any] | None = None
    given: dict[str, str] = {}
    network_calls: dict[str, int]
    seconds: dict[str, float]

    def finalist(self, name: str) -> Finalist:
        """The finalist of that name."""
        return next(finalist for finalist in self.finalists if finalist.name == name)


@dataclass(frozen=True)
class FinishedSearch:
    """The search for one number of calls: its record, the plan, the trials, their files, and the best preset."""

    record: SearchRecord
    plan: Plan
    trials: pd.DataFrame
    files: tuple[Path, ...]
    preset: Plan | None = None

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


def _read(path: Path) -> FinishedSearch:
    try:
        record = SearchRecord.model_validate(read_json(path))
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
    files = (plan_file, path, trials_file)
    return FinishedSearch(record, plan, read_table(trials_file, COLUMNS), files, _preset(record, path))


def _preset(record: SearchRecord, path: Path) -> Plan | None:
    """The best preset as a plan; None in a record of before it was kept."""
    try:
        return None if record.best_preset_plan is None else plan_from_json(record.best_preset_plan)
    except ConfigError as error:
        raise DataError(f"{path} must hold a plan as best_preset_plan, but {error} Search again.") from None


def records(folder: Path, stamp: Mapping[str, Any]) -> Iterator[Record]:
    """The searches of a folder in MLflow, best error at step = network calls."""
    for search in read_searches([folder]):
        record = search.record
        yield Record(
            name=f"search nfe{search.nfe}",
            params={
                "nfe": search.nfe,
                "winner": record.winner,
                "best_preset": record.best_preset,
                "search": record.settings,
                "teacher": record.teacher,
                "seeds": record.seeds,
            },
            points=list(_points(search)),
            files=search.files,
        )


def _points(search: FinishedSearch) -> Iterator[MetricPoint]:
    """The curves of a search at their steps, what was compared in the end, and counts and costs."""
    record = search.record
    for calls, error in record.history:
        yield "best_error", error, calls
    for tier, curve in record.polish.items():
        for point in curve:
            yield f"polish.{tier}", point.validation, point.iteration
    for role, name in (("winner", record.winner), ("best_preset", record.best_preset)):
        finalist = record.finalist(name)
        yield f"error.{role}", finalist.error, 0
        if finalist.fd is not None:
            yield f"fd_on_search_seeds.{role}", finalist.fd, 0
    for group in ("trials", "network_calls", "seconds"):
        for name, value in getattr(record, group).items():
            yield f"{group}.{name}", float(value), 0
