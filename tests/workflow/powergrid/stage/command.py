"""`fewstep powergrid`: DDIM on times spaced by a power."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fewstep.methods.powergrid.stage.settings import PowerGridSettings
from fewstep.pipeline.stage.options import ModelOption, takes_settings
from fewstep.pipeline.stage.spec import Spec, result_folder


@takes_settings(hide=("nfe",))
def command(
    model: ModelOption,
    nfe: Annotated[int, typer.Option(help="network calls per image")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    *,
    powergrid: PowerGridSettings,
    spec: Spec | None,
) -> None:
    """Write DDIM on times spaced by a power as a plan."""
    from fewstep.interop.load import load_model
    from fewstep.methods.powergrid import times
    from fewstep.sampling.document import save_plan
    from fewstep.sampling.presets import PRESETS

    loaded = load_model(model)
    grid = times(loaded.schedule, nfe, powergrid.power)
    plan = replace(
        PRESETS["ddim"](loaded.schedule, nfe, grid=grid, to_zero=True),
        name=f"powergrid.nfe{nfe}",
        fingerprint=loaded.fingerprint,
        provenance={"sampler": "powergrid", "grid": f"power {powergrid.power:g}"},
    )
    with result_folder(out, spec) as folder:
        save_plan(plan, folder / f"{plan.name}.json")
    typer.echo(f"{out}: {plan.name}")
