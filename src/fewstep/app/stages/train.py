"""`fewstep train`: from a packed dataset to a model folder."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.app.settings import ModelSettings, TrackSettings, TrainSettings
from fewstep.app.stages.curve import live
from fewstep.checks import ConfigError
from fewstep.files import require_replaceable, sha256_file
from fewstep.nets import CARD, CONFIG, CURVE, WEIGHTS
from fewstep.pipeline.conditions import conditions_of_images
from fewstep.pipeline.stage import Stage
from fewstep.pipeline.stage.options import DeviceOption, takes_settings
from fewstep.pipeline.stage.spec import STAMP, Spec, stamp

if TYPE_CHECKING:
    from fewstep.nets.unet import UNet

DataOption = Annotated[Path, typer.Option(help="packed dataset, from fewstep prepare")]


@takes_settings(hide=("uri", "live", "zoo"))
def command(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="model folder to write")],
    checkpoints: Annotated[Path, typer.Option(help="folder of checkpoints, from which training resumes")],
    start: Annotated[
        Path | None,
        typer.Option(
            help="model folder of the same architecture, or of one without --conditions, to start from "
            "(default: random)"
        ),
    ] = None,
    conditions: Annotated[
        Path | None,
        typer.Option(
            help="conditions folder with one row for each training image: what the model is conditioned on"
        ),
    ] = None,
    device: DeviceOption = "auto",
    *,
    model: ModelSettings,
    train: TrainSettings,
    track: TrackSettings,
    spec: Spec | None,
) -> None:
    """Train a diffusion model; the same command resumes one that was interrupted.

    Example: fewstep train --data data/digits --out model --checkpoints checkpoints --steps 2000
    Several GPUs or cores: torchrun --nproc-per-node 2 --no-python -- fewstep train --data D --out M --checkpoints C
    """
    import torch

    from fewstep.data.packed import load_dataset
    from fewstep.diffusion.condition import Stored
    from fewstep.diffusion.schedule import DDPMTable, schedule_from_config
    from fewstep.nets.folder import save_model
    from fewstep.nets.unet import UNet, inputs_of
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.environment import card_facts
    from fewstep.progress import track as bar
    from fewstep.rng import initial_weights
    from fewstep.train.denoiser import train_denoiser
    from fewstep.train.recipe import Recipe
    from fewstep.train.sandwich import Sandwich
    from fewstep.train.world import joined

    require_replaceable(out, set(), names={WEIGHTS, CONFIG, CARD, CURVE, STAMP})
    dataset = load_dataset(data, "train")
    channels, height, width = dataset.shape
    if height != width:
        raise ConfigError(
            f"Training needs square images, got {height} x {width}; prepare {data} with --size."
        )
    if model.class_conditional and dataset.classes is None:
        raise ConfigError(f"--class-conditional needs labels, but {data} has none; leave it out.")
    of_images = None if conditions is None else conditions_of_images(conditions, dataset, str(data))
    inputs = {} if of_images is None else inputs_of(Stored(of_images).entries, height)
    table = model.schedule.type == "ddpm"
    schedule = DDPMTable.linear() if table else schedule_from_config({"type": model.schedule.type})
    folder = checkpoints / spec.key if spec else checkpoints
    metrics = folder / CURVE

    def finish(made: Path) -> None:
        shutil.copyfile(metrics, made / CURVE)
        if spec:
            stamp(spec, made)

    if train.threads:
        torch.set_num_threads(train.threads)
    started = time.time()
    with joined() as world, initial_weights(train.seed):
        net = UNet(
            height,
            channels,
            model.channels,
            multipliers=model.multipliers,
            blocks=model.blocks,
            attention=model.attention,
            patch=model.patch,
            dropout=model.dropout,
            n_classes=len(dataset.classes or ()) if model.class_conditional else 0,
            **inputs,
        ).to(chosen_device(device, local_rank=world.local_rank, exact=False))
        started_from = None if start is None else _copied(start, net)
        several = len(model.widths) > 1
        recipe = Recipe(
            schedule=schedule,
            prediction=model.prediction,
            steps=train.steps,
            batch_size=train.batch_size,
            lr=train.lr,
            seed=train.seed,
            warmup_steps=train.warmup,
            lr_schedule=train.lr_schedule,
            cooldown=train.cooldown,
            clip=train.clip,
            weighting=train.weighting,
            condition_dropout=train.label_dropout,
            flip=train.flip,
            ema_decay=train.ema_decay,
            precision=train.precision,
            compile=train.compile,
            loss_of_step=Sandwich(net, model.widths, distil=train.distil) if several else None,
            start=started_from,
        )
        with live(metrics, track, spec, leads=world.leads):
            state = train_denoiser(
                dataset,
                net,
                recipe,
                condition=of_images,
                checkpoints=folder,
                metrics=metrics,
                log_every=train.log_every,
                checkpoint_seconds=train.checkpoint_seconds,
                world=world,
                progress=bar("train", unit="step"),
            )
        if not world.leads:
            return
    save_model(
        out,
        state.ema["net"].net,
        schedule=schedule,
        prediction=model.prediction,
        shape=dataset.shape,
        name=f"{dataset.name}-{spec.run if spec else out.resolve().name}",
        card={
            **card_facts(dataset, net),
            **({} if of_images is None else {"conditions": Stored(of_images).identity}),
            "settings": {"model": model.model_dump(mode="json"), "train": train.model_dump(mode="json")},
            "started_from": started_from,
            "steps": state.step,
            "images_seen": state.images_seen,
            "seconds_of_last_start": round(time.time() - started, 1),
        },
        widths=model.widths,
        finish=finish,
    )
    typer.echo(f"{out}: {dataset.name}, {state.step} steps, {state.images_seen:,} images seen")


def _copied(folder: Path, net: "UNet") -> str:
    """Fill a network with the weights of a model folder; returns their hash."""
    from fewstep.interop.zoo import find, verify
    from fewstep.nets.folder import fill, read_weights

    folder = find(folder)
    verify(folder)
    fill(net, read_weights(folder / WEIGHTS), source=folder / WEIGHTS, may_lack=net.condition_parts())
    return sha256_file(folder / WEIGHTS)


STAGE = Stage(
    name="train",
    command=command,
    makes="model",
    does="train the diffusion model",
    settings=TrainSettings,
    inputs=lambda settings, nfe: {"data": "prepare"},
    reads=("model",),
    uses=("track",),
    applies=lambda settings, before: settings.model.zoo is None,
    keeps="checkpoints",
    record="fewstep.app.stages.curve",
    threads=lambda settings: settings.train.threads,
)
