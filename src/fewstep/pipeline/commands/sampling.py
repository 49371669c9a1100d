"""`fewstep plan`, `plans`, `sample`: known samplers as plan files, and images from them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.files import require_space
from fewstep.nets import PLANS
from fewstep.pipeline.conditions import identity_of, with_conditions
from fewstep.pipeline.config import PlanSettings, SampleSettings
from fewstep.pipeline.options import ConditionsOption, DeviceOption, takes_settings
from fewstep.pipeline.parts import PATIENCE, parse_shard
from fewstep.pipeline.samples import files_in, parse_seeds, require_distinct_names
from fewstep.pipeline.seeds import require_unseen, require_unseen_rows
from fewstep.pipeline.specs import Spec, require_result_folder, result_folder

if TYPE_CHECKING:
    from fewstep.diffusion.schedule import Schedule
    from fewstep.sampling.plan import Plan

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="model folder, name in the zoo, or a pipeline of diffusers")
]


def _preset(name: str, schedule: "Schedule", nfe: int, grid: str | Sequence[float], to_zero: bool) -> "Plan":
    from fewstep.sampling.presets import PRESETS

    if name not in PRESETS:
        raise ConfigError(f"PRESET must be one of {', '.join(PRESETS)}; got {name!r}.")
    return PRESETS[name](schedule, nfe, grid=grid, to_zero=to_zero)


def _rows(text: str) -> list[int]:
    try:
        return [int(k) for k in text.split(",")]
    except ValueError:
        raise ConfigError(f"--timesteps must be whole numbers such as 999,666,333; got {text!r}.") from None


def plan(
    preset: Annotated[str, typer.Argument(help="a known sampler, such as ddim, dpmpp-2m, unipc-3")],
    model: Annotated[Path, typer.Option(help="model folder whose noise schedule the plan is for")],
    nfe: Annotated[int, typer.Option(help="network calls per image")],
    out: Annotated[Path, typer.Option(help="plan file to write")],
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

    Example: fewstep plan dpmpp-2m --model results/digits/model --nfe 10 --out plan.json
    Timesteps of diffusers: fewstep plan ddim --model DIR --nfe 3 --timesteps 999,666,333 --to-zero --out plan.json
    """
    from fewstep.diffusion.grids import of_rows
    from fewstep.interop.load import load_model

    if grid is not None and timesteps is not None:
        raise ConfigError("--timesteps and --grid both say where the times are; leave out one of the two.")
    schedule = load_model(model).schedule
    spacing = (grid or "uniform-lambda") if timesteps is None else of_rows(schedule, _rows(timesteps))
    made = _preset(preset, schedule, nfe, spacing, to_zero)
    made.save(out)
    typer.echo(f"{out}: {made.name}, {made.nfe} network calls per image")


@takes_settings(hide=("nfe",))
def plans(
    model: Annotated[
        Path, typer.Option(help="model folder or name in the zoo, whose noise schedule they are for")
    ],
    nfe: Annotated[int, typer.Option(help="network calls per image")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    *,
    plans: PlanSettings,
    spec: Spec | None,
) -> None:
    """Write every preset on every grid as a plan; those that cannot make NFE calls, and repeats, are left out.

    Plans of as many calls in the model's own folder plans/ are copied beside them.

    Example: fewstep plans --model results/digits/model --nfe 10 --presets ddim,unipc-3 --out plans
    """
    from fewstep.interop.load import load_model
    from fewstep.interop.zoo import find
    from fewstep.sampling.plan import load_plan, require_distinct_plans
    from fewstep.sampling.sample import check_fingerprint

    loaded = load_model(model)
    schedule = loaded.schedule
    left_out: list[str] = []
    made: dict[str, Plan] = {}
    for preset in plans.presets:
        for grid in plans.grids:
            try:
                one = _preset(preset, schedule, nfe, grid, plans.to_zero)
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
            one.save(folder / f"{one.name}.json")
    for reason in left_out:
        typer.echo(f"left out: {reason}", err=True)
    typer.echo(f"{out}: {len(made)} plans of {nfe} network calls per image")


@takes_settings(hide=("n", "seed", "shards"))
def sample(
    model: ModelArgument,
    plans: Annotated[list[Path], typer.Argument(metavar="PLAN...", help="plan files, or folders of them")],
    out: Annotated[Path, typer.Option(help="samples file (.npz) for one plan, folder for several")],
    seeds: Annotated[str | None, typer.Option(help="one image per seed, FIRST-LAST, such as 0-49999")] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="draw the share of worker K of N alone, and put nothing together"),
    ] = None,
    conditions: ConditionsOption = None,
    device: DeviceOption = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="accept plans for another model or schedule")
    ] = False,
    *,
    sample: SampleSettings,
    spec: Spec | None,
) -> None:
    """Draw images: image i depends on seed i alone, whatever the batch size.

    Many images are drawn in parts, and what was drawn before an interruption is not drawn again. With --shard K/N, or
    under torchrun, N workers share the parts; the command without --shard then puts them together.

    Example: fewstep sample results/digits/model plan.json --seeds 0-999 --out samples.npz
    """
    from fewstep.interop.load import load_model
    from fewstep.interop.zoo import find
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.drawing import Drawing
    from fewstep.sampling.plan import load_plan
    from fewstep.train.world import joined

    files = files_in(plans, ".json")
    loaded = [load_plan(path) for path in files]
    chosen = parse_seeds(seeds) if seeds else range(sample.seed, sample.seed + sample.n)
    for one in loaded:
        require_unseen(one, chosen)
    to_folder = out.suffix != ".npz"
    if not to_folder and len(files) > 1:
        raise ConfigError(f"--out must be a folder for {len(files)} plans, got the file {out}.")
    if to_folder:
        require_distinct_names(files)
        require_result_folder(out, spec, {".npz", ".json"})
    with joined(patience=PATIENCE) as world:
        network = load_model(model, device=chosen_device(device, local_rank=world.local_rank))
        network = with_conditions(network, conditions)
        for one in loaded:
            require_unseen_rows(one, chosen, identity_of(network))
        require_space(out, len(chosen) * math.prod(network.image_shape) * len(files))
        drawing = Drawing(network, chosen, sample, find(model), out, force, conditions)
        mine = parse_shard(shard)
        for path, one in zip(files, loaded, strict=True):
            drawing.make(one, path, mine)
        world.wait()
        if shard is not None or not world.leads:
            typer.echo(
                f"{drawing.parts}: images of {len(files)} plans, shard {mine.index + 1} of {mine.count}"
            )
            return
    if not to_folder:
        drawing.write(out, loaded[0], files[0])
    else:
        with result_folder(out, spec) as folder:
            for path, one in zip(files, loaded, strict=True):
                drawing.write(folder / f"{path.stem}.npz", one, path)
    drawing.drop()
    typer.echo(f"{out}: {len(chosen)} images from {'each of ' if len(files) > 1 else ''}{len(files)} plans")
