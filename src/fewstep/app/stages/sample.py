"""`fewstep sample`: images from sampling plans."""

import math
from pathlib import Path
from typing import Annotated

import typer

from fewstep.app.settings import SampleSettings
from fewstep.checks import ConfigError
from fewstep.files import require_file, require_space
from fewstep.pipeline.conditions import identity_of, with_conditions
from fewstep.pipeline.parts import PATIENCE, parse_shard
from fewstep.pipeline.samples import files_in, parse_seeds, require_distinct_names
from fewstep.pipeline.seeds import require_unseen, require_unseen_prompts, require_unseen_rows
from fewstep.pipeline.settings import require_dropout
from fewstep.pipeline.stage import OfSource, Stage
from fewstep.pipeline.stage.options import (
    CallOption,
    ConditionsOption,
    DeviceOption,
    ModelArgument,
    ShardOption,
    takes_settings,
)
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder


@takes_settings(hide=("n", "seed", "shards"))
def command(
    model: ModelArgument,
    plans: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PLAN...]", help="plan files, or folders of them; a bundle has its own"),
    ] = None,
    out: Annotated[Path, typer.Option(help="samples file (.npz) for one plan, folder for several")] = ...,  # type: ignore[assignment]
    seeds: Annotated[str | None, typer.Option(help="one image per seed, FIRST-LAST, such as 0-49999")] = None,
    shard: ShardOption = None,
    conditions: ConditionsOption = None,
    call: CallOption = None,
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

    Example: fewstep sample results/digits/train plan.json --seeds 0-999 --out samples.npz
    """
    from fewstep.interop.load import load_model
    from fewstep.interop.zoo import find
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.drawing import Drawing
    from fewstep.sampling.plan import load_plan
    from fewstep.sampling.quantised import with_integers
    from fewstep.train.world import joined

    files = _plan_files(model, plans or [])
    loaded = [load_plan(path) for path in files]
    chosen = parse_seeds(seeds) if seeds else range(sample.seed, sample.seed + sample.n)
    for one in loaded:
        require_unseen(one, chosen)
    to_folder = out.suffix != ".npz"
    if not to_folder and len(files) > 1:
        raise ConfigError(f"--out must be a folder for {len(files)} plans, got the file {out}.")
    if not to_folder:
        require_file(out)
    if to_folder:
        require_distinct_names(files)
        require_result_folder(out, spec, {".npz", ".json"})
    with joined(patience=PATIENCE) as world:
        network = load_model(model, call=call, device=chosen_device(device, local_rank=world.local_rank))
        network = with_integers(with_conditions(network, conditions), list(zip(files, loaded, strict=True)))
        for one in loaded:
            require_unseen_rows(one, chosen, identity_of(network))
            require_unseen_prompts(one, chosen, network)
        require_space(out, len(chosen) * math.prod(network.image_shape) * len(files))
        drawing = Drawing(network, chosen, sample, find(model), out, force, conditions, call)
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


def _plan_files(model: Path, plans: list[Path]) -> list[Path]:
    """The plans that are named, or that of a bundle."""
    from fewstep.interop.bundle import PLAN, is_bundle

    if not plans and is_bundle(model):
        return [model / PLAN]
    if not plans:
        raise ConfigError(f"A plan must be named to sample {model}, which is no bundle; got none.")
    return files_in(plans, ".json")


STAGE = Stage(
    name="sample",
    command=command,
    makes="images",
    does="draw the images",
    settings=SampleSettings,
    rows="report",
    over="plans",
    inputs=lambda settings, nfe: {"model": OfSource("model")},  # of a generator, its own
    requires=lambda settings: require_dropout(settings, "sample", "guidance", unguided=1),
)
