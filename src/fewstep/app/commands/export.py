"""`fewstep export`: plans for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.pipeline.stage.options import CallOption

TARGETS = ("diffusers",)


def export(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="model folder, name in the zoo, or a pipeline of diffusers"),
    ],
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="plan file")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    call: CallOption = None,
    to: Annotated[str, typer.Option(help=f"what it is for: {', '.join(TARGETS)}")] = "diffusers",
) -> None:
    """Write a plan as a scheduler of diffusers, which any of its pipelines can use without fewstep.

    Example: fewstep export my-pipeline plan.json --to diffusers --out scheduler
    """
    if to not in TARGETS:
        raise ConfigError(f"--to must be one of {', '.join(TARGETS)}; got {to!r}.")
    from fewstep.interop.diffusers_model import require_diffusers
    from fewstep.interop.load import load_model
    from fewstep.sampling.plan import load_plan

    require_diffusers()
    from fewstep.interop.diffusers_plan import export_diffusers

    scheduler = export_diffusers(load_plan(plan), load_model(model, call=call), out)
    typer.echo(
        f"{out}: scheduler of diffusers, num_inference_steps={scheduler.num_inference_steps}, "
        f"starts at noise of std {scheduler.config.init_noise_sigma:.6g}"
    )
