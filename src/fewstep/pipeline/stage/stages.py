"""The list of stages, checked when it is read, and what follows from it: which results a run has, and their inputs."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer.models
from pydantic import BaseModel, Field, create_model

from fewstep.checks import ConfigError
from fewstep.pipeline.stage import Every, First, Input, Of, OfSource, Panels, Runs, Stage, Value
from fewstep.pipeline.stage.settings import RunSettings, Section
from fewstep.pipeline.stage.spec import STAMP

_ANY_NFE = 10  # for a first look at the inputs of a stage, before there is a run


@dataclass(frozen=True)
class Result:
    """What a stage makes once in a run: for a number of calls, for a result of another stage, or as a whole.

    `run` names its run where that is another one than the reader's.
    """

    stage: Stage
    nfe: int | None = None
    source: "Result | None" = None
    run: str = ""

    @property
    def place(self) -> str:
        """Its folder below that of the run, such as `search/nfe4`, `evaluate/search/nfe4` or `../digits/report`."""
        if self.run:
            return f"../{self.run}/{self.stage.name}"
        if self.source is not None:
            return f"{self.stage.name}/{self.source.origin}"
        return self.stage.name if self.nfe is None else f"{self.stage.name}/nfe{self.nfe}"

    @property
    def origin(self) -> str:
        """The place of the result that images or certificates were made from, in the end."""
        return self.place if self.source is None else self.source.origin

    def folder(self, run: str) -> Path:
        """The folder, from the top of the project."""
        return Path(self.stage.root, self.run or run, self.stage.name if self.run else self.place)


@dataclass(frozen=True)
class Given:
    """A value of an option: a text, or a result with a file of it and a label before it."""

    result: Result | None = None
    text: str = ""
    label: str = ""

    def word(self, run: str) -> str:
        """As it stands on a command line."""
        if self.result is None:
            return self.text
        folder = self.result.folder(run)
        if self.result.run:  # the whole of the other run is meant, which its report completes
            return str(folder.parent)
        path = str(folder / self.text) if self.text else str(folder)
        return f"{self.label}={path}" if self.label else path


class Stages(Sequence[Stage]):
    """All stages, in the order in which they are shown.

    Args:
        stages: the list.
        sections: sections of settings that are of no single stage.

    Raises:
        ConfigError: two stages of one name, a setting without description, an unknown input, field or option.
    """

    def __init__(self, stages: Sequence[Stage], sections: Mapping[str, type[Section]]) -> None:
        self._stages = tuple(stages)
        self._by_name: dict[str, Stage] = {}
        for stage in self._stages:
            if stage.name in self._by_name:
                raise ConfigError(
                    f"Stages must have names of their own, but two are called {stage.name}; rename one of them."
                )
            self._by_name[stage.name] = stage
        self._order = {name: i for i, name in enumerate(self._by_name)}
        own = {stage.name: stage.settings for stage in self._stages if stage.settings is not None}
        if both := sorted(sections.keys() & own.keys()):
            raise ConfigError(f"Sections must have names of their own, but {both[0]} is one of a stage, too.")
        self.sections: dict[str, type[Section]] = {**sections, **own}
        for name, section in self.sections.items():
            _require_descriptions(name, section)
        for stage in self._stages:
            self._require_known(stage)

    def __len__(self) -> int:
        return len(self._stages)

    def __getitem__(self, index: Any) -> Any:
        return self._by_name[index] if isinstance(index, str) else self._stages[index]

    def settings(self, base: type[RunSettings] = RunSettings) -> type[RunSettings]:
        """The model of all settings of a run, a field per section; `base` says what must hold between them."""
        fields: dict[str, Any] = {
            name: (section, Field(default_factory=section)) for name, section in self.sections.items()
        }
        return create_model("Settings", __base__=base, **fields)

    def in_run(self, settings: RunSettings) -> list[Stage]:
        """The stages that a run has."""
        found: list[Stage] = []
        gathers = any(stage.across(settings) for stage in self._stages if stage.across is not None)
        for stage in self._stages:
            shows = stage.across is not None or stage.makes == "report" or stage.root == "state"
            if (stage.across is not None and not gathers) or (gathers and not shows):
                continue
            if stage.applies(settings, found) and (stage.nfe is None or stage.nfe(settings)):
                found.append(stage)
        return found

    def results(self, settings: RunSettings) -> list[Result]:
        """What a run is to have, stage by stage."""
        found: list[Result] = []
        for stage in self.in_run(settings):
            if stage.over is not None:
                continue
            numbers: Sequence[int | None] = (None,) if stage.nfe is None else stage.nfe(settings)
            found += [Result(stage, nfe) for nfe in numbers]
        for stage in self.in_run(settings):  # images are drawn from plans before they are evaluated
            if stage.over is not None:
                found += [Result(stage, r.nfe, r) for r in list(found) if r.stage.makes == stage.over]
        return sorted(found, key=lambda result: self._order[result.stage.name])

    def inputs(self, result: Result, settings: RunSettings) -> dict[str, list[Given]]:
        """What the command of a result is given, by parameter; parameters without any are left out.

        Raises:
            ConfigError: an input names an unknown stage.
        """
        stage, everything = result.stage, self.results(settings)
        given: dict[str, list[Given]] = {}
        if stage.over is not None and result.source is not None:
            given[_SOURCE[stage.over]] = [Given(result.source)]
        for name, value in stage.inputs(settings, result.nfe).items():
            values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
            found = []
            for each in values:
                if isinstance(each, OfSource):
                    source = result.source
                    found += [] if source is None else self.inputs(source, settings).get(each.option, [])
                else:
                    found += self._resolved(each, result, everything)
            if found:
                given[name] = found
        rows = [
            Given(r, stage.rows) for r in everything if r.stage.makes == "conditions" and r.stage != stage
        ]
        if CONDITIONS in stage.parameters and CONDITIONS not in given and rows:
            given[CONDITIONS] = rows
        return given

    def _resolved(self, value: Input, reader: Result, everything: Sequence[Result]) -> list[Given]:
        assert not isinstance(value, OfSource)
        if isinstance(value, Value):
            return [Given(text=value.text)]
        if isinstance(value, Runs):
            report = next(stage for stage in self._stages if stage.makes == "report")
            return [Given(Result(report, run=name)) for name in value.names]
        if isinstance(value, Panels):
            return [Given(r, label=r.stage.name) for r in everything if r.stage.panel is not None]
        if isinstance(value, Every):
            return [
                Given(r)
                for r in everything
                if r.stage.makes == value.kind
                and r.stage.name not in value.but
                and self._order[r.stage.name] < self._order[reader.stage.name]
            ]
        if isinstance(value, First):
            alternatives = (self._resolved(one, reader, everything) for one in value.of)
            return next((given for given in alternatives if given), [])
        of = Of(value) if isinstance(value, str) else value
        self._require_name(of.stage, reader.stage)
        numbers = of.nfe if of.nfe is not None else None if reader.nfe is None else (reader.nfe,)
        found = [
            r
            for r in everything
            if r.stage.name == of.stage
            and r.source is None
            and (None in (r.nfe, numbers) or r.nfe in numbers)  # type: ignore[operator]
        ]
        if of.sampled:
            found = [r for r in everything if r.stage.makes == "images" and r.source in found]
        return [Given(r, of.file) for r in found]

    def words(self, result: Result, run: str, settings: RunSettings) -> list[str]:
        """The command line of a result, without `--spec`: arguments and options in the order of the parameters."""
        stage, given = result.stage, self.inputs(result, settings)
        words = [stage.name]
        for name, parameter in stage.parameters.items():
            values = [one.word(run) for one in given.get(name, ())]
            if name == "run":
                values = [run]
            elif name == "nfe" and stage.nfe is not None:
                values = [str(result.nfe)]
            elif name == stage.keeps:
                values = [str(Path("state", run, "kept", result.place))]
            elif name == "out":
                values = [str(result.folder(run))]
            flag = [] if _is_argument(parameter) else [f"--{name.replace('_', '-')}"]
            words += [word for value in values for word in (*flag, value)]
        return words

    def stamps(self, result: Result, run: str, settings: RunSettings) -> dict[str, list[str]]:
        """The stamps of the results that the command is given, by parameter."""
        given = self.inputs(result, settings)
        found = {
            name: [str(one.result.folder(run) / STAMP) for one in values if one.result is not None]
            for name, values in given.items()
        }
        return {name: stamps for name, stamps in found.items() if stamps}

    def named(self, stage: Stage, origin: str, settings: RunSettings) -> Result | None:
        """The result of a stage with that origin, such as `search/nfe4`, if the run has it."""
        found = (r for r in self.results(settings) if r.stage is stage and r.origin == origin)
        return next(found, None)

    def _require_name(self, name: str, reader: Stage) -> None:
        if name not in self._by_name:
            raise ConfigError(
                f"Inputs must be stages, {', '.join(self._by_name)}; stage {reader.name} names {name}."
            )

    def _require_known(self, stage: Stage) -> None:
        """Raise ConfigError for what a stage names and nobody has, as far as default settings show it."""
        for field in (*stage.reads, *stage.ignores, *stage.uses):
            section, _, name = field.partition(".")
            known = self.sections.get(section)
            if known is None or (name and name not in known.model_fields):
                raise ConfigError(
                    f"Settings that a stage reads must be fields or sections of params.yaml; stage {stage.name} names "
                    f"{field}; add it, or leave it out."
                )
        sections: dict[str, Any] = {name: kind.model_construct() for name, kind in self.sections.items()}
        defaults = self.settings().model_construct(**sections)
        everything = [Result(one, None if one.nfe is None else _ANY_NFE) for one in self._stages]
        for name, value in stage.inputs(defaults, None if stage.nfe is None else _ANY_NFE).items():
            if name not in stage.parameters:
                raise ConfigError(
                    f"Inputs must be parameters of the command, {', '.join(stage.parameters)}; stage {stage.name} "
                    f"names {name}."
                )
            values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
            for one in values:
                if not isinstance(one, OfSource):
                    self._resolved(one, Result(stage), everything)


CONDITIONS = "conditions"
"""Parameter of the commands that take the stored conditions of a run."""

_SOURCE = {"plans": "plans", "images": "samples"}
"""Parameter that takes the results of the kind that a stage is run over."""


def _require_descriptions(name: str, section: type[BaseModel]) -> None:
    for field_name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            _require_descriptions(f"{name}.{field_name}", kind)
        elif not field.description:
            raise ConfigError(
                f"Every setting must have a description, but {name}.{field_name} has none; say what it means."
            )


def _is_argument(parameter: inspect.Parameter) -> bool:
    """Whether a parameter of a command is given by its place, not by its name."""
    annotation = parameter.annotation
    if get_origin(annotation) is not Annotated:
        return False
    return any(isinstance(one, typer.models.ArgumentInfo) for one in get_args(annotation)[1:])
