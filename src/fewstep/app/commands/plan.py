"""`fewstep plan`: one known sampler as a plan, on a grid or on the times of another program; and back.

A solver that another program trained is a plan, too.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.app.stages.plans import known
from fewstep.checks import ConfigError
from fewstep.files import atomic_file, require_file
from fewstep.pipeline.stage.options import CallOption

if TYPE_CHECKING:
    from fewstep.diffusion.denoiser import Model
    from fewstep.diffusion.schedule import Schedule
    from fewstep.sampling.plan import Plan

TRAINED = ("gs", "dyweight", "epd", "amed", "ld3", "dual-solver")
"""Programs whose trained solvers can be read, the keys of `fewstep.interop.trained_solvers.SOLVERS`."""


def plan(
    out: Annotated[Path, typer.Option(help="plan file to write; with --to the list")],
    preset: Annotated[
        str | None,
        typer.Argument(
            help="a known sampler, such as ddim, dpmpp-2m, unipc-3; with --to a plan file; none for a trained solver"
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="model folder whose noise schedule the plan is for")
    ] = None,
    nfe: Annotated[int | None, typer.Option(help="network calls per image")] = None,
    call: CallOption = None,
    grid: Annotated[
        str | None, typer.Option(help="spacing of times, shifted:S with a shift (default: uniform-lambda)")
    ] = None,
    to_zero: Annotated[
        bool, typer.Option("--to-zero", help="end at clean data, by a step of order 1")
    ] = False,
    timesteps: Annotated[
        str | None,
        typer.Option(
            metavar="K,K,...",
            help="rows of the model's table instead of a spacing; without --to-zero with the end",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="times of another program instead of a spacing, or its trained solver",
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="what --from holds: sigmas, comfyui, diffusers-sigmas, ays; or the tensors of a trained solver: "
            "gs, dyweight, epd, amed, ld3, dual-solver"
        ),
    ] = "sigmas",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="of a trained solver, what its file and the settings beside it do not say, such as afs=true",
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="write a plan's times for another program: one of the kinds of --kind")
    ] = None,
    shift: Annotated[
        float, typer.Option(help="of the scheduler that diffusers-sigmas are for, which applies it again")
    ] = 1.0,
) -> None:
    """Write a known sampler, or a solver that another program trained, as a plan; or the times of a plan as a list.

    Example: fewstep plan dpmpp-2m --model results/digits/train --nfe 10 --out plan.json
    Timesteps of diffusers: fewstep plan ddim --model DIR --nfe 3 --timesteps 999,666,333 --to-zero --out plan.json
    Times of another program: fewstep plan ddim --model DIR --from sigmas.txt --out plan.json
    And back: fewstep plan plan.json --to comfyui --out sigmas.txt
    A trained solver: fewstep plan --kind gs --from checkpoint.pt --model DIR --out plan.json
    """
    require_file(out)
    trained = kind in TRAINED
    if setting and not trained:
        raise ConfigError(f"--setting is of a trained solver, --kind {', '.join(TRAINED)}; got {kind!r}.")
    if trained:
        others = (preset, grid, timesteps, to)
        if source is None or to_zero or any(given is not None for given in others):
            raise ConfigError(
                f"A trained solver ({kind}) is all of a plan: give its file with --from, and no PRESET, --grid, "
                "--timesteps, --to-zero or --to."
            )
    elif preset is None:
        raise ConfigError("PRESET must name a known sampler, such as ddim or unipc-2; got none.")
    if to is not None and preset is not None:
        _write_list(Path(preset), to, shift, out)
        return
    if sum(given is not None for given in (grid, timesteps, source)) > 1:
        names = "--timesteps and --grid both" if source is None else "--from and --grid or --timesteps both"
        raise ConfigError(f"{names} say where the times are; leave out one of the two.")
    if model is None:
        raise ConfigError("--model must name the model whose noise schedule the plan is for; got none.")
    from fewstep.diffusion.grids import of_rows
    from fewstep.interop.load import load_model
    from fewstep.sampling.document import save_plan

    loaded = load_model(model, call=call)
    if trained and source is not None:
        made = _trained(source, kind, loaded, setting or [], nfe)
        save_plan(made, out)
        typer.echo(f"{out}: {made.name}, {made.nfe} network calls per image, of depth {made.depth}")
        return
    schedule = loaded.schedule
    spacing: str | list[float]
    if source is not None:
        nfe, spacing, to_zero = _read_times(source, kind, schedule, shift, nfe)
    elif timesteps is not None:
        spacing = of_rows(schedule, _rows(timesteps))
    else:
        spacing = "uniform-lambda" if grid is None else grid
    if nfe is None:
        raise ConfigError("--nfe must say how many network calls an image takes; got none.")
    assert preset is not None
    made = known(preset, schedule, nfe, spacing, to_zero)
    save_plan(made, out)
    typer.echo(f"{out}: {made.name}, {made.nfe} network calls per image")


def _trained(source: Path, kind: str, model: "Model", setting: list[str], nfe: int | None) -> "Plan":
    """The plan of another program's solver, which the model can run."""
    from fewstep.interop.trained_solvers import read_solver
    from fewstep.sampling.solver import compile_plan

    settings = {}
    for text in setting:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--setting must be NAME=VALUE, such as afs=true; got {text!r}.")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    made = replace(read_solver(source, kind, model.schedule, settings), fingerprint=model.fingerprint)
    compile_plan(made, model.schedule, model.prediction)
    if nfe not in (None, made.nfe):
        raise ConfigError(f"--nfe must be {made.nfe}, the calls of {source}, or be left out; got {nfe}.")
    return made


def _rows(text: str) -> list[int]:
    try:
        return [int(k) for k in text.split(",")]
    except ValueError:
        raise ConfigError(f"--timesteps must be whole numbers such as 999,666,333; got {text!r}.") from None


def _read_times(
    source: Path, kind: str, schedule: "Schedule", shift: float, nfe: int | None
) -> tuple[int, list[float], bool]:
    """Network calls, times, and that they end at clean data."""
    from fewstep.sampling.lists import read_list, times_of

    times = times_of(read_list(source), kind, schedule, shift=shift)
    if nfe is not None and nfe != len(times):
        raise ConfigError(f"--nfe must be {len(times)}, the times of {source}, or be left out; got {nfe}.")
    return len(times), times, True


def _write_list(file: Path, to: str, shift: float, out: Path) -> None:
    from fewstep.sampling.lists import list_of, sampler_of, text_of
    from fewstep.sampling.plan import load_plan

    made = load_plan(file)
    values = list_of(made, to, shift=shift)
    with atomic_file(out) as temporary:
        temporary.write_text(text_of(values, to), encoding="utf-8")
    typer.echo(f"{out}: {to} of {made.nfe} network calls, for the sampler {sampler_of(made).name}")
