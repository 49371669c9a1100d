"""`fewstep onecall`: the plan of a generator."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.pipeline.stage import Stage
from fewstep.pipeline.stage.options import takes_settings
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder


@takes_settings()
def command(
    model: Annotated[Path, typer.Option(help="model folder of a generator, from fewstep gan")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    *,
    spec: Spec | None,
) -> None:
    """Write the plan by which a generator is sampled: one network call, from noise to the image.

    Example: fewstep onecall --model results/digits-gan/gan --out plans
    """
    from fewstep.interop.load import load_model
    from fewstep.nets.folder import architecture
    from fewstep.sampling.document import save_plan
    from fewstep.sampling.presets import PRESETS

    require_result_folder(out, spec, {".json"})
    loaded = load_model(model)
    if loaded.most_calls != 1 or loaded.net is None:
        raise ConfigError(
            f"--model must be a generator, which makes an image in one call; {model} is none; take fewstep plan."
        )
    kind = architecture(loaded.net)["type"]
    plan = replace(
        PRESETS["ddim"](loaded.schedule, 1, grid="uniform-t", to_zero=True),
        name=f"{kind}.nfe1",
        guidance=1.0,
        fingerprint=loaded.fingerprint,
        provenance={"preset": "ddim", "sampler": kind, "grid": "one call", "generator": loaded.name},
    )
    with result_folder(out, spec) as folder:
        save_plan(plan, folder / f"{plan.name}.json")
    typer.echo(f"{out}: {plan.name}")


STAGE = Stage(
    name="onecall",
    command=command,
    makes="plans",
    does="write the plan of the generator",
    inputs=lambda settings, nfe: {"model": "gan"},
    applies=lambda settings, before: settings.gan.network is not None,
    gpu=False,
)
