"""`fewstep train`: from a packed dataset to a model folder."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.app.settings import ModelSettings, TrackSettings, TrainSettings
from fewstep.app.stages.autoencoder import autoencoder_of
from fewstep.app.stages.curve import live
from fewstep.checks import ConfigError
from fewstep.files import require_replaceable, sha256_file
from fewstep.nets import AUTOENCODER, CARD, CONFIG, CURVE, ENCODER, WEIGHTS
from fewstep.pipeline.conditions import conditions_of_images
from fewstep.pipeline.stage import Every, First, Of, Stage
from fewstep.pipeline.stage.options import DeviceOption, takes_settings
from fewstep.pipeline.stage.spec import STAMP, Spec, stamp

if TYPE_CHECKING:
    from fewstep.data.latents import Latents
    from fewstep.data.packed import Dataset
    from fewstep.nets.transformer import Transformer
    from fewstep.nets.unet import UNet
    from fewstep.train.recipe import LossOfStep

DataOption = Annotated[
    Path, typer.Option(help="packed dataset, from fewstep prepare, or its latents, from fewstep latents")
]


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
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="table of pairs (pairs.csv, or its folder): which rows of the conditions each image is trained with"
        ),
    ] = None,
    autoencoder: Annotated[
        Path | None, typer.Option(help="of a model of latents: their autoencoder, which becomes part of it")
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="of a model of tokens: the folder encoder/ of fewstep encode, which becomes part of the model, so "
            "that it takes images"
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

    from fewstep.data.pairs import load_pairs
    from fewstep.diffusion.condition import Stored
    from fewstep.diffusion.schedule import DDPMTable, schedule_from_config
    from fewstep.nets.folder import save_model
    from fewstep.nets.unet import inputs_of
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.environment import card_facts
    from fewstep.progress import track as bar
    from fewstep.rng import initial_weights
    from fewstep.train.denoiser import train_denoiser
    from fewstep.train.recipe import Recipe
    from fewstep.train.world import joined

    require_replaceable(out, set(), names={WEIGHTS, CONFIG, CARD, CURVE, STAMP, AUTOENCODER, ENCODER})
    dataset = _dataset(data, autoencoder, flip=train.flip)
    channels, height, width = dataset.shape
    if height != width:
        raise ConfigError(
            f"Training needs square images, got {height} x {width}; prepare {data} with --size."
        )
    if model.class_conditional and dataset.classes is None:
        raise ConfigError(f"--class-conditional needs labels, but {data} has none; leave it out.")
    of_images = None if conditions is None else conditions_of_images(conditions, dataset, str(data))
    _require_encoder(encoder, conditions)
    table = None if pairs is None else load_pairs(pairs)
    inputs = {} if of_images is None else inputs_of(Stored(of_images).entries, height)
    tabled = model.schedule.type == "ddpm"
    schedule = DDPMTable.linear() if tabled else schedule_from_config({"type": model.schedule.type})
    folder = checkpoints / spec.key if spec else checkpoints
    metrics = folder / CURVE

    def finish(made: Path) -> None:
        shutil.copyfile(metrics, made / CURVE)
        if encoder is not None:
            shutil.copytree(encoder, made / ENCODER)
        if autoencoder is not None:
            shutil.copytree(autoencoder, made / AUTOENCODER, ignore=shutil.ignore_patterns(CURVE, STAMP))
        if spec:
            stamp(spec, made)

    if train.threads:
        torch.set_num_threads(train.threads)
    started = time.time()
    with joined() as world, initial_weights(train.seed):
        n_classes = len(dataset.classes or ()) if model.class_conditional else 0
        net = _network(model, dataset.shape, n_classes=n_classes, **inputs)
        net = net.to(chosen_device(device, local_rank=world.local_rank, exact=False))
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
            loss_of_step=_sandwich(net, model, train) if several else None,
            start=started_from,
        )
        with live(metrics, track, spec, leads=world.leads):
            state = train_denoiser(
                dataset,
                net,
                recipe,
                condition=of_images,
                pairs=table,
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
            **({} if table is None else {"pairs": {"sha256": table.sha256, "n": len(table)}}),
            "settings": {"model": model.model_dump(mode="json"), "train": train.model_dump(mode="json")},
            "started_from": started_from,
            "steps": state.step,
            "images_seen": state.images_seen,
            "seconds_of_last_start": round(time.time() - started, 1),
        },
        widths=model.widths,
        guidable=train.label_dropout > 0,
        finish=finish,
    )
    typer.echo(f"{out}: {dataset.name}, {state.step} steps, {state.images_seen:,} images seen")


def _require_encoder(encoder: Path | None, conditions: Path | None) -> None:
    """Raise ConfigError where an encoder is not that of the conditions."""
    from fewstep.data.conditions import read_conditions_manifest
    from fewstep.interop.encoders import load_tokens

    if encoder is None:
        return
    loaded = load_tokens(encoder).encoder
    made_by = None if conditions is None else read_conditions_manifest(conditions)["encoder"]
    if not isinstance(made_by, dict) or made_by.get("fingerprint") != loaded.fingerprint:
        raise ConfigError(
            f"--encoder must be the one that made --conditions, {made_by and made_by.get('name')}; got {loaded.name} "
            f"of {encoder}."
        )


def _dataset(data: Path, autoencoder: Path | None, *, flip: bool) -> "Dataset | Latents":
    """The training images, or their latents.

    Raises: ConfigError: latents without their autoencoder, or the other way round, or to be mirrored.
    """
    from fewstep.data.latents import is_latents, load_latents
    from fewstep.data.packed import load_dataset
    from fewstep.interop.autoencoder import load_autoencoder

    if not is_latents(data):
        if autoencoder is not None:
            raise ConfigError(
                f"--autoencoder must be left out for {data}, which are no latents; make some with fewstep latents."
            )
        return load_dataset(data, "train")
    latents = load_latents(data, "train")
    made_by = latents.manifest["autoencoder"]
    if autoencoder is None:
        raise ConfigError(
            f"--autoencoder must name the folder of {made_by['name']}, whose latents {data} are, so that the model can "
            "decode them; got none."
        )
    loaded = load_autoencoder(autoencoder)
    if (loaded.fingerprint, loaded.scale) != (made_by["fingerprint"], made_by["scale"]):
        raise ConfigError(
            f"--autoencoder must be {made_by['name']} of fingerprint {made_by['fingerprint']:.12}... and scale "
            f"{made_by['scale']:.6g}, which made {data}; got {loaded.name} of {loaded.fingerprint:.12}... and "
            f"{loaded.scale:.6g}."
        )
    if flip:
        raise ConfigError(
            "--flip must be false for latents, as a mirrored latent is not that of the mirrored image; got true."
        )
    return latents


def _network(
    model: ModelSettings, shape: tuple[int, int, int], *, n_classes: int, **inputs: Any
) -> "UNet | Transformer":
    """The untrained network for images, or latents, of a shape."""
    from fewstep.nets.transformer import Transformer
    from fewstep.nets.unet import UNet

    channels, side, _ = shape
    shared = {"patch": model.patch, "dropout": model.dropout, "n_classes": n_classes, **inputs}
    if model.network == "transformer":
        return Transformer(side, channels, model.channels, depth=model.depth, **shared)
    return UNet(
        side,
        channels,
        model.channels,
        multipliers=model.multipliers,
        blocks=model.blocks,
        attention=model.attention,
        **shared,
    )


def _sandwich(net: "UNet | Transformer", model: ModelSettings, train: TrainSettings) -> "LossOfStep":
    from fewstep.nets.unet import UNet
    from fewstep.train.sandwich import Sandwich

    if not isinstance(net, UNet):
        raise ConfigError(f"--widths must be 1.0 for a transformer, as only U-Nets slim, got {model.widths}.")
    return Sandwich(net, model.widths, distil=train.distil)


def _copied(folder: Path, net: "UNet | Transformer") -> str:
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
    inputs=lambda settings, nfe: {
        "data": First(("latents", "prepare")),
        "pairs": Every("pairs"),
        "encoder": Of("encode", file=ENCODER),
        **autoencoder_of(settings),
    },
    reads=("model",),
    rows="train",
    uses=("track",),
    applies=lambda settings, before: settings.model.zoo is None,
    keeps="checkpoints",
    record="fewstep.app.stages.curve",
    threads=lambda settings: settings.train.threads,
)
