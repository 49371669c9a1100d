"""`fewstep plans`: known samplers as plans, every preset on every grid."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.app.settings import PlansSettings
from fewstep.checks import ConfigError
from fewstep.nets import PLANS
from fewstep.pipeline.stage import MODEL, Stage
from fewstep.pipeline.stage.options import CallOption, takes_settings
from fewstep.pipeline.stage.spec import Spec, result_folder

if TYPE_CHECKING:
    from fewstep.diffusion.schedule import Schedule
    from fewstep.sampling.plan import Plan


@takes_settings(hide=("nfe",))
def command(
    model: Annotated[
        Path, typer.Option(help="model folder or name in the zoo, whose noise schedule they are for")
    ],
    nfe: Annotated[int, typer.Option(help="network calls per image")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    call: CallOption = None,
    *,
    plans: PlansSettings,
    spec: Spec | None,
) -> None:
    """Write every preset on every grid as a plan; those that cannot make NFE calls, and repeats, are left out.

    Plans of as many calls in the model's own folder plans/ are copied beside them.

    Example: fewstep plans --model results/digits/train --nfe 10 --presets ddim,unipc-3 --out plans
    """
    from fewstep.interop.load import load_model
    from fewstep.interop.zoo import find
    from fewstep.sampling.document import save_plan
    from fewstep.sampling.plan import load_plan, require_distinct_plans
    from fewstep.sampling.sample import check_fingerprint

    loaded = load_model(model, call=call)
    schedule = loaded.schedule
    left_out: list[str] = []
    made: dict[str, Plan] = {}
    for preset in plans.presets:
        for grid in plans.grids:
            try:
                one = known(preset, schedule, nfe, grid, plans.to_zero)
            except ConfigError as error:
                left_out.append(f"{preset} on {grid}: {error}")
                continue
            # with few steps lowered orders can leave two presets the same: one row of a table, not two
            if one.hash in made:
                left_out.append(f"{preset} on {grid}: the same plan as {made[one.hash].name}")
            else:
                made[one.hash] = one
    for file in sorted((find(model) / PLANS).glob("*.json")):
        one = load_plan(file)
        if one.nfe == nfe:
            check_fingerprint(loaded, one)
            made.setdefault(one.hash, one)
    require_distinct_plans(made.values())
    if not made:
        raise ConfigError(f"No preset can make {nfe} network calls: {' '.join(left_out)}")
    with result_folder(out, spec) as folder:
        for one in made.values():
            save_plan(one, folder / f"{one.name}.json")
    for reason in left_out:
        typer.echo(f"left out: {reason}", err=True)
    typer.echo(f"{out}: {len(made)} plans of {nfe} network calls per image")


def known(name: str, schedule: "Schedule", nfe: int, grid: str | Sequence[float], to_zero: bool) -> "Plan":
    """A known sampler as a plan.
    Raises: ConfigError: no sampler of that name, or one that cannot make so many calls.
    """
    from fewstep.sampling.presets import PRESETS

    if name not in PRESETS:
        raise ConfigError(f"PRESET must be one of {', '.join(PRESETS)}; got {name!r}.")
    return PRESETS[name](schedule, nfe, grid=grid, to_zero=to_zero)


STAGE = Stage(
    name="plans",
    command=command,
    makes="plans",
    does="write the known samplers of {nfe} network calls as plans",
    settings=PlansSettings,
    inputs=lambda settings, nfe: {"model": MODEL},
    nfe=lambda settings: settings.plans.nfe,
    gpu=False,
    short=True,
)
