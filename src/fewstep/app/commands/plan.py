"""`fewstep plan`: one known sampler as a plan."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.app.stages.plans import known
from fewstep.checks import ConfigError
from fewstep.files import require_file
from fewstep.pipeline.stage.options import CallOption


def plan(
    preset: Annotated[str, typer.Argument(help="a known sampler, such as ddim, dpmpp-2m, unipc-3")],
    model: Annotated[Path, typer.Option(help="model folder whose noise schedule the plan is for")],
    nfe: Annotated[int, typer.Option(help="network calls per image")],
    out: Annotated[Path, typer.Option(help="plan file to write")],
    call: CallOption = None,
    grid: Annotated[str | None, typer.Option(help="spacing of times (default: uniform-lambda)")] = None,
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
) -> None:
    """Write a known sampler as a plan.

    Example: fewstep plan dpmpp-2m --model results/digits/train --nfe 10 --out plan.json
    Timesteps of diffusers: fewstep plan ddim --model DIR --nfe 3 --timesteps 999,666,333 --to-zero --out plan.json
    """
    from fewstep.diffusion.grids import of_rows
    from fewstep.interop.load import load_model
    from fewstep.sampling.document import save_plan

    if grid is not None and timesteps is not None:
        raise ConfigError("--timesteps and --grid both say where the times are; leave out one of the two.")
    require_file(out)
    schedule = load_model(model, call=call).schedule
    spacing = (
        ("uniform-lambda" if grid is None else grid)
        if timesteps is None
        else of_rows(schedule, _rows(timesteps))
    )
    made = known(preset, schedule, nfe, spacing, to_zero)
    save_plan(made, out)
    typer.echo(f"{out}: {made.name}, {made.nfe} network calls per image")


def _rows(text: str) -> list[int]:
    try:
        return [int(k) for k in text.split(",")]
    except ValueError:
        raise ConfigError(f"--timesteps must be whole numbers such as 999,666,333; got {text!r}.") from None
