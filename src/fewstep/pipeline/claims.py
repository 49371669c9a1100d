"""What papers claim, and what was measured of it: `methods/<paper>/claims.yaml`, and the verdicts.

A claim says in a sentence what the paper says, with its number and the place where it stands; then what is measured
here (run, stage, metric, setting) and the criterion that decides. Claims that cannot be had on a CPU say so, with the
command for those who have more. A metric is a function of the module that a stage names as its `measures`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fewstep.checks import ConfigError
from fewstep.files import sha256_text
from fewstep.pipeline.stage.settings import RunSettings
from fewstep.pipeline.stage.stages import Stages

LEVEL = 0.95
"""Probability with which the intervals of all measurements of one claim hold together."""

FILE = "claims.yaml"

Verdict = Literal["holds", "does not hold", "undecided", "out of scale"]


class Measurement(NamedTuple):
    """What was measured for a claim.

    Attributes:
        what: in words, such as `5 calls`.
        value: the number.
        low, high: its interval; both are the value where nothing is left to chance.
        n: images behind it; None where that says nothing.
    """

    what: str
    value: float
    low: float
    high: float
    n: int | None = None


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Criterion(_Model):
    """Where the interval must lie: below or above a bound."""

    below: float | None = None
    above: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.below is None) == (self.above is None):
            raise ValueError("must be one bound, below or above")
        return self

    @property
    def bound(self) -> float:
        """The number on one side of which the claim holds."""
        bound = self.below if self.above is None else self.above
        assert bound is not None
        return bound

    def verdict(self, one: Measurement) -> Verdict:
        """Of one measurement: undecided where the bound lies within its interval."""
        if self.below is not None:
            holds, fails = one.high < self.bound, one.low >= self.bound
        else:
            holds, fails = one.low > self.bound, one.high <= self.bound
        return "holds" if holds else "does not hold" if fails else "undecided"


class Claim(_Model):
    """One claim; `run`, `stage`, `metric` and `criterion` say how it is judged, or `out_of_scale` why it is not."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    says: str = Field(min_length=1)
    number: str = Field(min_length=1)
    where: str = Field(min_length=1)
    run: str | None = None
    stage: str | None = None
    metric: str | None = None
    setting: dict[str, Any] = Field(default_factory=dict)
    criterion: Criterion | None = None
    unit: str = ""
    figure: str | None = None
    note: str = ""
    out_of_scale: str | None = None
    command: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        how = ("run", "stage", "metric", "criterion")
        missing = [name for name in how if getattr(self, name) is None]
        if self.out_of_scale is not None:
            if len(missing) < len(how) or self.command is None:
                raise ValueError(
                    "a claim that is out of scale must have the command for those who have more, and no run, stage, "
                    "metric or criterion"
                )
        elif missing:
            raise ValueError(
                f"must have run, stage, metric and criterion, or out_of_scale with a command; {missing[0]} is missing"
            )
        return self


class Paper(_Model):
    """A paper: its name, authors and venue, address, and what it claims."""

    title: str = Field(min_length=1)
    cite: str = Field(min_length=1)
    link: str = Field(pattern=r"^https://")
    claims: list[Claim] = Field(min_length=1)


@dataclass(frozen=True)
class Judged:
    """A claim with what was measured and the verdict, over all and of each measurement."""

    claim: Claim
    measurements: Sequence[Measurement]
    verdicts: Sequence[Verdict]
    verdict: Verdict


def papers() -> list[str]:
    """The folders of papers that state claims."""
    return sorted(folder.name for folder in _root().iterdir() if folder.joinpath(FILE).is_file())


def claims_hash() -> str:
    """Hash of all claims: what verdicts depend on beside code and results."""
    return sha256_text("".join(_text(paper) for paper in papers()))[:16]


def read_paper(folder: str) -> Paper:
    """What a paper claims.

    Args:
        folder: of the paper, below `methods`.

    Raises:
        ConfigError: the file is not as it must be, such as where a claim lacks its criterion.
    """
    return parse_paper(_text(folder), name=f"methods/{folder}/{FILE}")


def parse_paper(text: str, *, name: str) -> Paper:
    """As `read_paper`, of a text; `name` is that of its file, for errors."""
    try:
        paper = Paper.model_validate(YAML(typ="safe").load(text))
    except YAMLError as error:
        raise ConfigError(f"{name} must be YAML; {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        sentence = (
            first["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should", "must", 1)
        )
        raise ConfigError(f"{name}: {place}: {sentence}") from error
    names = [claim.name for claim in paper.claims]
    if both := next((one for one in names if names.count(one) > 1), None):
        raise ConfigError(f"{name}: claims must have names of their own, but two are called {both}")
    return paper


def require_metrics(paper: Paper, stages: Stages, *, name: str) -> None:
    """Raise ConfigError for a claim whose metric is none of its stage, or does not take its setting."""
    for claim in paper.claims:
        if claim.criterion is not None:
            _metric(claim, stages, name)


def require_made(claims: Sequence[Claim], runs: Mapping[str, RunSettings], stages: Stages) -> None:
    """Raise ConfigError, in one sentence, for a claim about a run or stage that is not made.

    Args:
        claims: those of one board.
        runs: the settings of the runs that the board reads, by name.
        stages: all stages.
    """
    for claim in claims:
        if claim.run is None:
            continue
        if claim.run not in runs:
            raise ConfigError(
                f"claims must be about the runs that the board reads, {', '.join(runs)}; claim {claim.name} is about "
                f"{claim.run}; add that run to claims.runs"
            )
        made = {stage.name for stage in stages.in_run(runs[claim.run])}
        if claim.stage not in made:
            raise ConfigError(
                f"claims must be about stages that their run makes; claim {claim.name} is about {claim.stage}, which "
                f"run {claim.run} does not make"
            )


def judge(claim: Claim, results: Path, stages: Stages) -> Judged:
    """Measure and judge a claim.

    Args:
        claim: of `read_paper`.
        results: the folder of its run; not read for a claim that is out of scale.
        stages: all stages.

    Raises:
        ConfigError: the setting of the claim does not fit its metric.
        DataError: a result is missing or damaged.
    """
    if claim.criterion is None:
        return Judged(claim, (), (), "out of scale")
    measurements = _metric(claim, stages, FILE)(results, **claim.setting)
    verdicts = [claim.criterion.verdict(one) for one in measurements]
    overall: Verdict = "undecided"
    if "does not hold" in verdicts:
        overall = "does not hold"
    elif verdicts and set(verdicts) == {"holds"}:
        overall = "holds"
    return Judged(claim, measurements, verdicts, overall)


def level_of_each(count: int) -> float:
    """Level of the interval of each of several measurements that hold together with probability `LEVEL`."""
    return 1 - (1 - LEVEL) / max(count, 1)


def _metric(claim: Claim, stages: Stages, name: str) -> Callable[..., list[Measurement]]:
    """The function behind a claim's metric.
    Raises: ConfigError: there is no such stage or metric, or it does not take the setting.
    """
    measured = [stage.name for stage in stages if stage.measures is not None]
    if claim.stage not in measured:
        raise ConfigError(
            f"{name}: {claim.name}: stage must be one with measures, {', '.join(measured)}; got {claim.stage}"
        )
    module: str = stages[claim.stage].measures
    found = getattr(import_module(module), str(claim.metric), None)
    if not inspect.isfunction(found) or found.__module__ != module or str(claim.metric).startswith("_"):
        raise ConfigError(f"{name}: {claim.name}: metric must be a function of {module}, got {claim.metric}")
    try:
        inspect.signature(found).bind(Path(), **claim.setting)
    except TypeError as error:
        raise ConfigError(f"{name}: {claim.name}: setting must fit {claim.metric}; {error}") from None
    return found


def _text(paper: str) -> str:
    text: str = _root().joinpath(paper, FILE).read_text(encoding="utf-8")
    return text


def _root() -> Any:
    return resources.files("fewstep").joinpath("methods")
