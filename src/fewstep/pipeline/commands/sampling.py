"""`fewstep plan`, `plans`, `sample`: known samplers as plan files, and images from them."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.files import atomic_dir, require_space
from fewstep.pipeline.config import PlanSettings, SampleSettings
from fewstep.pipeline.options import DeviceOption, takes_settings
from fewstep.pipeline.samples import (
    Samples,
    files_in,
    parse_seeds,
    seeds_text,
    write_samples,
)
from fewstep.pipeline.seeds import require_unseen
from fewstep.pipeline.specs import Spec, stamp

if TYPE_CHECKING:
    from fewstep.diffusion.denoiser import Model
    from fewstep.diffusion.schedule import Schedule
    from fewstep.sampling.plan import Plan

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="model folder, or a pipeline of diffusers")
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
    model: Annotated[Path, typer.Option(help="model folder whose noise schedule the plans are for")],
    nfe: Annotated[int, typer.Option(help="network calls per image")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    *,
    plans: PlanSettings,
    spec: Spec | None,
) -> None:
    """Write every preset on every grid as a plan; those that cannot make NFE calls, and repeats, are left out.

    Example: fewstep plans --model results/digits/model --nfe 10 --presets ddim,unipc-3 --out plans
    """
    from fewstep.interop.load import load_model

    schedule = load_model(model).schedule
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
    if not made:
        raise ConfigError(f"No preset can make {nfe} network calls: {' '.join(left_out)}")
    with atomic_dir(out) as folder:
        for one in made.values():
            one.save(folder / f"{one.name}.json")
        if spec:
            stamp(spec, folder)
    for reason in left_out:
        typer.echo(f"left out: {reason}", err=True)
    typer.echo(f"{out}: {len(made)} plans of {nfe} network calls per image")


@takes_settings(hide=("n", "seed"))
def sample(
    model: ModelArgument,
    plans: Annotated[list[Path], typer.Argument(metavar="PLAN...", help="plan files, or folders of them")],
    out: Annotated[Path, typer.Option(help="samples file (.npz) for one plan, folder for several")],
    seeds: Annotated[str | None, typer.Option(help="one image per seed, FIRST-LAST, such as 0-49999")] = None,
    device: DeviceOption = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="accept plans for another model or schedule")
    ] = False,
    *,
    sample: SampleSettings,
    spec: Spec | None,
) -> None:
    """Draw images: image i depends on seed i alone, whatever the batch size.

    Example: fewstep sample results/digits/model plan.json --seeds 0-999 --out samples.npz
    """
    from fewstep.interop.load import load_model
    from fewstep.pipeline.devices import chosen_device
    from fewstep.sampling.plan import load_plan

    files = files_in(plans, ".json")
    loaded = [load_plan(path) for path in files]
    chosen = parse_seeds(seeds) if seeds else range(sample.seed, sample.seed + sample.n)
    for one in loaded:
        require_unseen(one, chosen)
    network = load_model(model, device=chosen_device(device))
    to_folder = out.suffix != ".npz"
    if not to_folder and len(files) > 1:
        raise ConfigError(f"--out must be a folder for {len(files)} plans, got the file {out}.")
    require_space(out, len(chosen) * math.prod(network.image_shape) * len(files))
    if not to_folder:
        write_samples(out, _drawn(network, loaded[0], chosen, sample, force))
    else:
        with atomic_dir(out) as folder:
            for path, one in zip(files, loaded, strict=True):
                write_samples(folder / f"{path.stem}.npz", _drawn(network, one, chosen, sample, force))
            if spec:
                stamp(spec, folder)
    typer.echo(f"{out}: {len(chosen)} images from {'each of ' if len(files) > 1 else ''}{len(files)} plans")


def _drawn(model: "Model", plan: "Plan", seeds: range, settings: SampleSettings, force: bool) -> Samples:
    import numpy as np
    import torch

    from fewstep.pipeline.devices import device_name
    from fewstep.pipeline.environment import environment
    from fewstep.progress import track
    from fewstep.sampling.sample import Costs, sample

    labels = torch.tensor(seeds) % model.n_classes if model.n_classes else None
    # a plan that was found for one guidance is drawn with it
    guidance = settings.guidance if plan.guidance is None else plan.guidance
    costs = Costs()
    started = time.perf_counter()
    images = sample(
        model,
        plan,
        seeds=seeds,
        batch_size=settings.batch_size,
        labels=labels,
        guidance=guidance,
        force=force,
        progress=track(plan.name or "sample", unit="batch"),
        costs=costs,
    )
    wall = time.perf_counter() - started
    meta = {
        "model": {"fingerprint": model.fingerprint, "name": model.name, "ema": True},
        "plan": plan.to_json(),
        "plan_hash": plan.hash,
        "plan_name": plan.name,
        "nfe": plan.nfe,
        "seeds": seeds_text(seeds),
        "dtype": "float32",
        "guidance": guidance,
        "costs": {
            "nfe": costs.nfe,
            "network_calls": costs.nfe * (2 if guidance != 1.0 else 1),
            "network_ms_per_image": 1000 * costs.network_seconds / costs.images,
            "wall_seconds": wall,
            "device": device_name(model.device),
        },
        "environment": environment(),
    }
    array = np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1))
    return Samples(array, np.array(seeds, np.int64), meta)
