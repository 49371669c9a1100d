"""`fewstep doctor`: what a pipeline of diffusers really does at N steps."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.checks import ConfigError, UserError
from fewstep.pipeline.stage.options import CallOption, DeviceOption

if TYPE_CHECKING:
    from fewstep.interop.doctor import Examination, Finding


def doctor(
    pipeline: Annotated[
        Path, typer.Argument(metavar="PIPELINE", help="folder of a text-to-image pipeline of diffusers")
    ],
    steps: Annotated[int, typer.Option(min=1, help="num_inference_steps")] = 4,
    call: CallOption = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE[:COLUMN]", help="prompts whose length is checked (.txt, .csv, .parquet)"),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="NAME=VALUE",
            help="a field of the scheduler to try, such as spacing=trailing, shift=3, sigmas=1,0.75,0.5,0.25; may be "
            "given again",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for a picture and the numbers as JSON")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Say what the network of a pipeline is told at N steps, and what is wrong with it; one run, no search.

    Ends with status 1 where something is found.

    Example: fewstep doctor my-pipeline --steps 4 --with spacing=trailing
    """
    from rich.console import Console
    from rich.table import Table

    from fewstep.data.prompts import read_prompts
    from fewstep.interop.asking import PROBE
    from fewstep.interop.doctor import Finding, examine, findings
    from fewstep.interop.load import load_model
    from fewstep.interop.text_model import TextFunction
    from fewstep.pipeline.devices import chosen_device

    console = Console(soft_wrap=True)
    given = _changes(changes or [])
    texts = [PROBE] if prompts is None else read_prompts(prompts)
    given_call = _with_dtype(call, given)
    try:
        model = load_model(pipeline, call=given_call, device=chosen_device(device))
        if not isinstance(model.fn, TextFunction):
            raise ConfigError(
                f"{pipeline} must be a text-to-image pipeline of diffusers, with model_index.json."
            )
        asked = model.fn.asked
    except UserError as error:
        if not (pipeline / "model_index.json").exists() or isinstance(error, ConfigError):
            raise
        _print(console, [Finding("files", str(error), "mend the folder")])
        raise typer.Exit(1) from None
    seen = examine(asked.pipe, asked.call, steps=steps, prompts=texts, changes=given)
    wrong = findings(seen)
    table = Table(
        "step", "sigma", "timestep", "told", "rows", title=f"{seen.pipeline}, {seen.scheduler}, {seen.dtype}"
    )
    for number, one in enumerate(seen.calls, 1):
        table.add_row(
            str(number), f"{one.sigma:.5g}", f"{one.timestep:.6g}", f"{one.told:.6g}", str(one.rows)
        )
    table.add_row("end", f"{seen.end:.5g}", "", "", "")
    console.print(table)
    _print(console, wrong)
    if out is not None:
        _write(out, seen, wrong)
    if wrong:
        raise typer.Exit(1)
    console.print("nothing found")


def _print(console: Any, wrong: "list[Finding]") -> None:
    for one in wrong:
        tried = "" if one.trial is None else f" (try --with {one.trial})"
        console.print(f"{one.kind}: {one.sentence} Fix: {one.fix}{tried}.", highlight=False, markup=False)


def _changes(texts: list[str]) -> dict[str, Any]:
    """NAME=VALUE as plain values; lists of numbers by commas."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--with must be NAME=VALUE, such as spacing=trailing; got {text!r}.")
        found[name] = _value(name, value)
    return found


def _value(name: str, text: str) -> Any:
    if name in ("sigmas", "timesteps"):
        try:
            return [float(part) if name == "sigmas" else int(part) for part in text.split(",")]
        except ValueError:
            raise ConfigError(f"--with {name} must be numbers such as 1,0.75,0.5; got {text!r}.") from None
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        return text


def _with_dtype(call: Path | None, given: dict[str, Any]) -> Any:
    """The call, in another dtype where --with names one."""
    if "dtype" not in given:
        return call
    from fewstep.interop.text_model import read_call

    return {**read_call(call), "dtype": given.pop("dtype")}


def _write(out: Path, seen: "Examination", wrong: "list[Finding]") -> None:
    """The numbers, and a picture of the noise of the states against what the network is told."""
    from dataclasses import asdict

    from matplotlib.figure import Figure

    from fewstep.files import atomic_dir, write_json

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    steps = range(1, len(seen.calls) + 1)
    axes[0].step([*steps, len(seen.calls) + 1], [*(c.sigma for c in seen.calls), seen.end], where="post")
    axes[0].set(xlabel="step", ylabel="sigma of the state", yscale="linear" if seen.flow else "symlog")
    axes[1].plot(steps, [seen.row_of(c.sigma) for c in seen.calls], "o-", label="of the state's noise")
    axes[1].plot(steps, [c.timestep for c in seen.calls], "x--", label="that the network is told")
    axes[1].set(xlabel="step", ylabel="timestep")
    axes[1].legend(frameon=False)
    with atomic_dir(out) as folder:
        figure.savefig(folder / "doctor.png", dpi=150)
        write_json(
            folder / "doctor.json",
            {
                "schema": "fewstep.doctor/1",
                "pipeline": seen.pipeline,
                "scheduler": seen.scheduler,
                "steps": seen.steps,
                "calls": [asdict(one) for one in seen.calls],
                "end": seen.end,
                "findings": [asdict(one) for one in wrong],
            },
        )
