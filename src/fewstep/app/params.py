"""The one configuration: what `params.yaml` may say.

`params.yaml` holds `defaults`, `runs.<run>` and `dvc_runs`. The effective settings of a run are `defaults`
deep-merged with `runs.<run>` (mappings merge, everything else is replaced) and validated by `Settings`, which has one
section per stage. The file is read as YAML 1.2 by the parser that DVC uses, so no value has two meanings. The workflow,
the command line and the JSON schema all read this module; it imports neither torch nor a workflow tool, so that asking
what is to be done stays fast.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fewstep.app.settings import RUN_NAME
from fewstep.app.stages import STAGES
from fewstep.checks import ConfigError
from fewstep.pipeline import claims
from fewstep.pipeline.stage.settings import OwnSeeds, RunSettings


class _Checked(RunSettings):
    """What must hold between sections."""

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        settings: Any = self
        last = settings.sample.seed + settings.sample.n - 1
        for stage in STAGES.in_run(self):
            section = getattr(self, stage.name, None)
            if isinstance(section, OwnSeeds) and last >= section.seed:
                raise ValueError(
                    f"{stage.name}.seed: must lie beyond the seeds that are reported on, {settings.sample.seed} to "
                    f"{last}; got {section.seed}"
                )
            if stage.requires is not None:
                stage.requires(self)
        return self


Settings = STAGES.settings(_Checked)
"""All settings of one run; the defaults are the digits study that runs on a CPU in minutes."""


class Params(BaseModel):
    """The whole of `params.yaml`, its runs already merged and valid."""

    model_config = ConfigDict(frozen=True)

    dvc_runs: list[str]
    runs: dict[str, RunSettings]


def load_params(path: str | Path) -> Params:
    """Read and check a `params.yaml`.

    Raises:
        ConfigError: The file is missing or not YAML, or some run is invalid; one line per mistake.
    """
    path = Path(path)
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: must be a readable file; {error.strerror or error}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: must be YAML; {' '.join(str(error).split())}") from error
    return parse_params(raw, name=path.name)


def parse_params(raw: object, *, name: str = "params.yaml") -> Params:
    """Check the content of a `params.yaml` that some YAML parser has read.

    Raises:
        ConfigError: One line per mistake, each `<name>: <path of the field>: <what must hold>`.
    """
    mistakes = list(_shape_mistakes(raw))
    runs: dict[str, RunSettings] = {}
    if isinstance(raw, Mapping) and not mistakes:
        for run in raw["runs"]:
            try:
                runs[run] = Settings.model_validate(merged(raw, run))
            except ValidationError as error:
                mistakes += _setting_mistakes(error, raw, run)
    if isinstance(raw, Mapping) and not mistakes:
        mistakes += [mistake for run in runs for mistake in _board_mistakes(run, runs)]
    if mistakes:
        raise ConfigError("\n".join(f"{name}: {line}" for line in dict.fromkeys(mistakes)))
    assert isinstance(raw, Mapping)  # anything else is among the mistakes
    return Params(dvc_runs=raw["dvc_runs"], runs=runs)


def merged(raw: Mapping[str, Any], run: str) -> dict[str, Any]:
    """`defaults` overlaid with `runs.<run>`; neither is changed."""
    return _overlay(raw.get("defaults") or {}, raw["runs"][run] or {})


def settings(params: Params, run: str) -> RunSettings:
    """The settings of one run.

    Raises:
        ConfigError: There is no such run.
    """
    if run not in params.runs:
        raise ConfigError(f"run must be one of {', '.join(params.runs)} (params.yaml: runs), got {run!r}")
    return params.runs[run]


def params_schema() -> dict[str, Any]:
    """JSON schema of `params.yaml` for editors, generated from the models.

    It checks `defaults` and each `runs.<run>` alone; what concerns both together is checked by `load_params`.
    """
    schema = Settings.model_json_schema()
    sections = schema.pop("$defs")
    for section in sections.values():
        for field in section["properties"].values():
            field.pop("changes_results", None)
    sections["Settings"] = schema
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "params.yaml",
        "type": "object",
        "required": ["dvc_runs", "runs"],
        "additionalProperties": False,
        "properties": {
            "dvc_runs": {
                "description": "runs that `dvc repro` and a bare `snakemake` build",
                "type": "array",
                "items": {"type": "string", "pattern": RUN_NAME},
            },
            "defaults": {"description": "settings of every run", "$ref": "#/$defs/Settings"},
            "runs": {
                "description": "what each run changes",
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": RUN_NAME},
                "additionalProperties": {"$ref": "#/$defs/Settings"},
            },
        },
        "$defs": sections,
    }


def schema_text() -> str:
    """The schema as it is stored in `workflow/schemas/params.schema.json`."""
    return json.dumps(params_schema(), indent=1, ensure_ascii=False) + "\n"


def _overlay(base: Any, top: Any) -> dict[str, Any]:
    result = copy.deepcopy(dict(base))
    for key, value in top.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = _overlay(below, value) if both else copy.deepcopy(value)
    return result


def _shape_mistakes(raw: object) -> Iterator[str]:
    """What keeps the runs from being merged at all."""
    if not isinstance(raw, Mapping):
        yield "must be a mapping with dvc_runs, defaults and runs"
        return
    for key in raw.keys() - {"dvc_runs", "defaults", "runs"}:
        yield f"{key}: unknown field; allowed: dvc_runs, defaults, runs"
    if not isinstance(raw.get("defaults") or {}, Mapping):
        yield f"defaults: must be a mapping of sections, got {raw['defaults']!r}"
    runs = raw.get("runs")
    if not isinstance(runs, Mapping) or not runs:
        yield f"runs: must be a mapping with at least one run, got {runs!r}"
        return
    for run, overlay in runs.items():
        if not isinstance(run, str) or not re.match(RUN_NAME, run):
            yield f"runs.{run}: the name of a run must be small letters, digits and dashes"
        if not isinstance(overlay or {}, Mapping):
            yield f"runs.{run}: must be a mapping of sections, got {overlay!r}"
    chosen = raw.get("dvc_runs")
    if not isinstance(chosen, list):
        yield f"dvc_runs: must be a list of runs, got {chosen!r}"
        return
    for run in chosen:
        if not isinstance(run, str) or run not in runs:
            yield f"dvc_runs: {run!r} must be one of the runs: {', '.join(map(str, runs))}"


def _board_mistakes(run: str, runs: Mapping[str, RunSettings]) -> Iterator[str]:
    """What keeps a board from judging its claims: unknown runs, and claims about what these do not make."""
    read = runs[run].claims.runs
    boards = [name for name, chosen in runs.items() if chosen.claims.runs]
    if wrong := [name for name in read if name not in runs or name in boards]:
        known = [name for name in runs if name not in boards]
        yield f"runs.{run}.claims.runs: must be runs that make results, {', '.join(known)}; got {wrong[0]!r}"
    elif read:
        chosen = {name: runs[name] for name in read}
        for paper in claims.papers():
            try:
                claims.require_made(claims.read_paper(paper).claims, chosen, STAGES)
            except ConfigError as error:
                yield f"runs.{run}.claims.runs: {error}"


def _setting_mistakes(error: ValidationError, raw: Mapping[str, Any], run: str) -> Iterator[str]:
    """One sentence per pydantic error, led by the place in the file where the value stands."""
    for item in error.errors():
        loc = tuple(item["loc"])
        if item["type"] == "value_error":  # raised by a validator above: "field: sentence"
            field, _, sentence = str(item["ctx"]["error"]).partition(": ")
            yield f"runs.{run}.{'.'.join(map(str, (*loc, field)))}: {sentence}"
        elif item["type"] == "extra_forbidden":
            yield f"{_place(raw, run, loc)}: unknown field; allowed: {', '.join(_fields_at(loc[:-1]))}"
        elif item["type"] == "model_type":
            yield f"{_place(raw, run, loc)}: must be a mapping of settings, got {item['input']!r}"
        else:
            sentence = item["msg"].removeprefix("Input ").removeprefix("String ").replace("should", "must", 1)
            yield f"{_place(raw, run, loc)}: {sentence}, got {item['input']!r}"


def _place(raw: Mapping[str, Any], run: str, loc: Sequence[str | int]) -> str:
    """The dotted path of a setting: in the run's overlay if it stands there, else in the defaults."""
    path = ".".join(map(str, loc))
    in_defaults = _has(raw.get("defaults") or {}, loc) and not _has(raw["runs"][run] or {}, loc)
    return f"defaults.{path}" if in_defaults else f"runs.{run}.{path}"


def _has(tree: Any, loc: Sequence[str | int]) -> bool:
    for key in loc:
        if isinstance(tree, Mapping) and key in tree:
            tree = tree[key]
        else:
            return isinstance(tree, list)  # lists are replaced as a whole: the list stands here
    return True


def _fields_at(loc: Sequence[str | int]) -> list[str]:
    """The fields allowed at a place of the tree."""
    model: type[BaseModel] = Settings
    for key in loc:
        section = model.model_fields[str(key)].annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        model = section
    return list(model.model_fields)
