"""Settings on the command line: one option per field of a settings section, or all of them from a spec."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fewstep.checks import ConfigError
from fewstep.pipeline.stage.settings import Section
from fewstep.pipeline.stage.spec import load_spec

Command = Callable[..., None]

CertificatesArgument = Annotated[
    list[Path], typer.Argument(metavar="CERTIFICATE...", help="certificate files, or folders of them")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes cuda where there is one")]
ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="model folder, name in the zoo, or a pipeline of diffusers")
]
ModelOption = Annotated[Path, typer.Option(help="model folder, name in the zoo, or a pipeline of diffusers")]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(help="statistics of the reference images: from fewstep stats, or a name in the zoo"),
]
DataOption = Annotated[Path | None, typer.Option(help="packed dataset of the reference images, instead")]
ExtractorOption = Annotated[
    str, typer.Option(help="whose features are compared: its name, or the folder of a classifier")
]
MeasuredExtractorOption = Annotated[
    str,
    typer.Option(help="effnet-lite0-p320, effnet-lite0-h1280, inception2015, or the folder of a classifier"),
]
BackendOption = Annotated[str, typer.Option(help="torch, or openvino on a CPU; the metrics' names say which")]
ShardOption = Annotated[
    str | None,
    typer.Option(metavar="K/N", help="do the share of worker K of N alone, and put nothing together"),
]
GuidanceOption = Annotated[float, typer.Option(help="classifier-free guidance scale; 1: none")]
PlansGuidanceOption = Annotated[
    float, typer.Option(help="classifier-free guidance scale of plans that name none; 1: none")
]
ConditionsOption = Annotated[
    Path | None,
    typer.Option(
        "--conditions",
        "--prompts",
        metavar="FOLDER|FILE[:COLUMN]",
        help="conditions folder, or a list of prompts (.txt, .csv, .parquet): seed s has row s modulo rows",
    ),
]
CallOption = Annotated[
    Path | None,
    typer.Option(
        "--call",
        metavar="FILE",
        help="YAML file of what a text-to-image pipeline is called with: guidance_scale, negative_prompt, height, "
        "width, ..., dtype, lora, lora_scale",
    ),
]
StudyOption = Annotated[
    Path | None, typer.Option(help="folder from which an interrupted search resumes (default: OUT.study)")
]


def takes_settings(*, hide: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Turn each parameter annotated with a `Section` into options, and `spec: Spec | None` into `--spec FILE`.

    The decorated function is called with valid sections. With `--spec` they are the spec's, which the results are
    stamped with, so options beside it are refused.

    Args:
        hide: Fields that get no option, because the command has its own for them.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        sections = {
            name: parameter.annotation
            for name, parameter in signature.parameters.items()
            if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, Section)
        }
        fields = {
            field_name: (name, field)
            for name, section in sections.items()
            for field_name, field in section.model_fields.items()
            if field_name not in hide
        }

        @functools.wraps(command)
        def run(*, spec: Path | None = None, **values: Any) -> None:
            given = {name: value for name in fields if (value := values.pop(name)) is not None}
            loaded = None if spec is None else load_spec(spec)
            if loaded is not None and given:
                raise ConfigError(
                    f"--spec holds all settings, so --{_flag(next(iter(given)))} must not be given beside it; "
                    "leave out one of the two."
                )
            for name, section in sections.items():
                own = {field: text for field, text in given.items() if fields[field][0] == name}
                values[name] = _from_text(section, own) if loaded is None else loaded.section(name, section)
            command(spec=loaded, **values)

        kept = [p for name, p in signature.parameters.items() if name not in sections and name != "spec"]
        options = [_option(name, field) for name, (_, field) in fields.items()]
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[
                p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*kept, *options, _SPEC_OPTION)
            ]
        )
        run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
        return run

    return decorate


_SPEC_OPTION = inspect.Parameter(
    "spec",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option("--spec", metavar="FILE", help="take all settings from a spec of the workflow"),
    ],
)


def _flag(field: str) -> str:
    return field.replace("_", "-")


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is list


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    default = field.get_default(call_default_factory=True)
    if _nested(field):
        default, description = default.type, next(iter(type(default).model_fields.values())).description
    else:
        description = field.description
    shown = ",".join(map(str, default)) if isinstance(default, list) else default
    suffix = "" if default is None else f" (default: {shown})"
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            str | None,
            typer.Option(
                f"--{_flag(name)}",
                help=f"{description}{suffix}",
                metavar=_metavar(field),
                rich_help_panel="Settings",
            ),
        ],
    )


def _metavar(field: FieldInfo) -> str:
    names = {int: "INT", float: "NUMBER", bool: "true|false"}
    kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,)) if kind is not type(None)]
    name = names.get(kinds[0], "TEXT") if len(kinds) == 1 else "TEXT"
    return f"{name},..." if _is_list(field) else name


def _from_text(section: type[Section], texts: dict[str, str]) -> Section:
    """Validate what was typed; fields not typed have their defaults."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        field = section.model_fields[name]
        if _nested(field):
            values[name] = {"type": text}
        elif text == "null" and type(None) in get_args(field.annotation):
            values[name] = None
        elif _is_list(field):
            values[name] = text.split(",") if text else []
        else:
            values[name] = text
    try:
        return section.model_validate(values, strict=False)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            if item["type"] == "value_error":
                name, _, sentence = str(item["ctx"]["error"]).partition(": ")
            else:
                name, sentence = (
                    str(item["loc"][0]),
                    item["msg"].removeprefix("Input ").replace("should", "must", 1),
                )
                sentence += f", got {texts.get(name)!r}"
            lines.append(f"--{_flag(name)} {sentence}")
        raise ConfigError("; ".join(lines)) from None
