"""`fewstep train`: from a packed dataset to a model folder."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from fewstep.app.settings import BaseSettings, ModelSettings, TrackSettings, Training, TrainSettings
from fewstep.app.stages.autoencoder import autoencoder_of
from fewstep.app.stages.curve import live
from fewstep.checks import ConfigError
from fewstep.files import require_replaceable, sha256_file
from fewstep.nets import AUTOENCODER, CARD, CONFIG, CURVE, ENCODER, WEIGHTS
from fewstep.pipeline.stage import Every, First, Of, Stage
from fewstep.pipeline.stage.options import DeviceOption, takes_settings
from fewstep.pipeline.stage.spec import STAMP, Spec, stamp
from fewstep.pipeline.training_rows import conditions_of_images

if TYPE_CHECKING:
    from fewstep.data.latents import Latents
    from fewstep.data.packed import Dataset
    from fewstep.diffusion.schedule import Schedule
    from fewstep.nets.patched import PatchedUNet
    from fewstep.nets.transformer import Transformer
    from fewstep.nets.unet import UNet
    from fewstep.train.recipe import LossOfStep, Objective

    Network = UNet | PatchedUNet | Transformer

DataOption = Annotated[
    Path, typer.Option(help="packed dataset, from fewstep prepare, or its latents, from fewstep latents")
]
OutOption = Annotated[Path, typer.Option(help="model folder to write")]
CheckpointsOption = Annotated[Path, typer.Option(help="folder of checkpoints, from which training resumes")]


@takes_settings(hide=("uri", "live", "zoo"))
def command(
    data: DataOption,
    out: OutOption,
    checkpoints: CheckpointsOption,
    start: Annotated[
        Path | None,
        typer.Option(
            help="model folder, or name in the zoo, to start from: of the same architecture, of one without "
            "--conditions, or with no option of the network its own architecture is taken (default: random)"
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
    Several GPUs or cores of this machine share each batch with --processes 2; those of several machines are started by
    torchrun on each of them, with this command.
    """
    given = _Given(start, conditions, pairs, autoencoder, encoder)
    _train(data, out, checkpoints, given, device, model, train, track, spec)


@takes_settings(hide=("uri", "live", "zoo"))
def base_command(
    data: DataOption,
    out: OutOption,
    checkpoints: CheckpointsOption,
    device: DeviceOption = "auto",
    *,
    model: ModelSettings,
    base: BaseSettings,
    track: TrackSettings,
    spec: Spec | None,
) -> None:
    """Train the model that fewstep train --start of a run starts from: fewstep train with settings of its own.

    Example: fewstep base --data data/digits --out base --checkpoints checkpoints --steps 2500
    """
    if base.steps < 1:
        raise ConfigError(f"--steps must be 1 or more; got {base.steps}.")
    _train(data, out, checkpoints, _Given(), device, model, base, track, spec)


@dataclass(frozen=True)
class _Given:
    """What a training is given beside its images; the options say what each is."""

    start: Path | None = None
    conditions: Path | None = None
    pairs: Path | None = None
    autoencoder: Path | None = None
    encoder: Path | None = None


def _train(
    data: Path,
    out: Path,
    checkpoints: Path,
    given: _Given,
    device: str,
    model: ModelSettings,
    train: Training,
    track: TrackSettings,
    spec: Spec | None,
) -> None:
    import torch

    from fewstep.pipeline.processes import is_one_of_several, run_in

    if train.processes > 1 and not is_one_of_several():
        raise typer.Exit(run_in(train.processes))

    from fewstep.data.pairs import load_pairs
    from fewstep.diffusion.condition import Stored
    from fewstep.diffusion.schedule import DDPMTable, schedule_from_config
    from fewstep.nets.folder import save_model
    from fewstep.nets.lora import adapt, merge
    from fewstep.nets.unet import inputs_of
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.environment import card_facts
    from fewstep.progress import track as bar
    from fewstep.rng import generator, initial_weights
    from fewstep.train.denoiser import train_denoiser
    from fewstep.train.recipe import Recipe
    from fewstep.train.world import joined

    require_replaceable(out, set(), names={WEIGHTS, CONFIG, CARD, CURVE, STAMP, AUTOENCODER, ENCODER})
    how = train if isinstance(train, TrainSettings) else TrainSettings()
    if how.lora_rank is not None and given.start is None:
        raise ConfigError(
            f"--lora-rank needs --start, the model whose layers are adapted; got {how.lora_rank} without one."
        )
    dataset = _dataset(data, given.autoencoder, flip=train.flip)
    channels, height, width = dataset.shape
    if height != width:
        raise ConfigError(
            f"Training needs square images, got {height} x {width}; prepare {data} with --size."
        )
    if model.class_conditional and dataset.classes is None:
        raise ConfigError(f"--class-conditional needs labels, but {data} has none; leave it out.")
    of_images = (
        None if given.conditions is None else conditions_of_images(given.conditions, dataset, str(data))
    )
    _require_encoder(given.encoder, given.conditions)
    table = None if given.pairs is None else load_pairs(given.pairs)
    inputs = {} if of_images is None else inputs_of(Stored(of_images).entries, height)
    tabled = model.schedule.type == "ddpm"
    schedule = DDPMTable.linear() if tabled else schedule_from_config({"type": model.schedule.type})
    prediction: str = model.prediction
    own = _of_start(given, model, spec, dataset.shape)
    if own is not None:
        schedule, prediction = own.schedule, own.prediction
    several = len(model.widths) > 1
    if how.objective is not None and several:
        raise ConfigError(f"--widths must be 1.0 with --objective {how.objective}, got {model.widths}.")
    folder = checkpoints / spec.key if spec else checkpoints
    metrics = folder / CURVE

    def finish(made: Path) -> None:
        shutil.copyfile(metrics, made / CURVE)
        if given.encoder is not None:
            shutil.copytree(given.encoder, made / ENCODER)
        if given.autoencoder is not None:
            shutil.copytree(
                given.autoencoder, made / AUTOENCODER, ignore=shutil.ignore_patterns(CURVE, STAMP)
            )
        if spec:
            stamp(spec, made)

    if train.threads:
        torch.set_num_threads(train.threads)
    started = time.time()
    with joined() as world, initial_weights(train.seed):
        n_classes = len(dataset.classes or ()) if model.class_conditional else 0
        net = _network(model, dataset.shape, n_classes=n_classes, **inputs) if own is None else own.net
        started_from = None if given.start is None else _copied(given.start, net)
        objective = (
            None
            if how.objective is None
            else _objective(how.objective, schedule, prediction, train.weighting, net)
        )
        times = None if objective is None else objective.times
        if times is not None and given.autoencoder is not None:
            raise ConfigError(
                f"--objective {how.objective} needs images, whose pixels have times of their own; got latents, {data}."
            )
        net = net.to(chosen_device(device, local_rank=world.local_rank, exact=False))
        if how.lora_rank is not None:
            rng = generator(train.seed, "lora")
            adapt(net, rank=how.lora_rank, roles=how.lora_roles, rng=rng, name=str(given.start))
        recipe = Recipe(
            schedule=schedule,
            prediction=prediction,
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
            loss_of_step=_sandwich(net, model, train) if several else objective,
            times_of_step=times,
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
    averaged = state.ema["net"].net
    merge(averaged)
    save_model(
        out,
        averaged,
        schedule=schedule,
        prediction=prediction,
        shape=dataset.shape,
        name=f"{dataset.name}-{spec.run if spec else out.resolve().name}",
        card={
            **card_facts(dataset, averaged),
            **({} if of_images is None else {"conditions": Stored(of_images).identity}),
            **({} if table is None else {"pairs": {"sha256": table.sha256, "n": len(table)}}),
            "settings": {
                "model": model.model_dump(mode="json") if own is None else f"of {given.start}",
                "train": train.model_dump(mode="json"),
            },
            "started_from": started_from,
            "steps": state.step,
            "images_seen": state.images_seen,
            "seconds_of_last_start": round(time.time() - started, 1),
        },
        widths=model.widths,
        guidable=train.label_dropout > 0,
        pixel_times=times is not None,
        finish=finish,
    )
    typer.echo(f"{out}: {dataset.name}, {state.step} steps, {state.images_seen:,} images seen")


class _Own(NamedTuple):
    """The network of a model folder, and what it was trained for."""

    net: "Network"
    schedule: "Schedule"
    prediction: str


def _of_start(
    given: _Given, model: ModelSettings, spec: Spec | None, shape: tuple[int, int, int]
) -> _Own | None:
    """The network that a training starts from, where no option says what the network is like."""
    from fewstep.interop.zoo import find, verify
    from fewstep.nets.folder import load_model
    from fewstep.nets.patched import PatchedUNet
    from fewstep.nets.transformer import Transformer
    from fewstep.nets.unet import UNet

    if given.start is None or given.conditions is not None or spec is not None or model.model_fields_set:
        return None
    folder = find(given.start)
    verify(folder)
    loaded = load_model(folder)
    if not isinstance(loaded.net, UNet | PatchedUNet | Transformer) or loaded.shape != shape:
        raise ConfigError(
            f"--start must be a diffusion model of images of {shape}, as --data has them; {given.start} is one of "
            f"{loaded.shape}."
        )
    return _Own(loaded.net.requires_grad_(True), loaded.schedule, loaded.prediction)


def _objective(
    name: str, schedule: "Schedule", prediction: str, weighting: str, net: "Network"
) -> "Objective":
    """What a paper calls its objective of training."""
    module = import_module(_objective_module(name))
    found: Objective = module.objective(name, schedule, prediction, weighting, net)
    return found


def _objective_module(name: str) -> str:
    """The module of an objective.
    Raises: ConfigError: no paper has one of this name.
    """
    from fewstep.app.stages import STAGES

    known = {name: module for stage in STAGES for name, module in stage.objectives.items()}
    if name not in known:
        raise ConfigError(f"--objective must be one of {', '.join(sorted(known))}; got {name}.")
    return known[name]


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
) -> "Network":
    """The untrained network for images, or latents, of a shape."""
    from fewstep.nets.patched import PatchedUNet
    from fewstep.nets.transformer import Transformer
    from fewstep.nets.unet import UNet

    channels, side, _ = shape
    shared = {"patch": model.patch, "dropout": model.dropout, "n_classes": n_classes, **inputs}
    if model.network == "transformer":
        return Transformer(side, channels, model.channels, depth=model.depth, **shared)
    arguments = {
        "image_size": side if model.tile is None else model.tile,
        "in_channels": channels,
        "channels": model.channels,
        "multipliers": model.multipliers,
        "blocks": model.blocks,
        "attention": model.attention,
        **shared,
    }
    if model.tile is None:
        return UNet(**arguments)
    net = PatchedUNet(arguments)
    net.grid(side, side)
    return net


def _sandwich(net: "Network", model: ModelSettings, train: Training) -> "LossOfStep":
    from fewstep.nets.unet import UNet
    from fewstep.train.sandwich import Sandwich

    if not isinstance(net, UNet):
        raise ConfigError(f"--widths must be 1.0 for a transformer, as only U-Nets slim, got {model.widths}.")
    return Sandwich(net, model.widths, distil=train.distil)


def _copied(folder: Path, net: "Network") -> str:
    """Fill a network with the weights of a model folder; returns their hash."""
    from fewstep.interop.zoo import find, verify
    from fewstep.nets.folder import fill, read_weights

    folder = find(folder)
    verify(folder)
    fill(net, read_weights(folder / WEIGHTS), source=folder / WEIGHTS, may_lack=net.condition_parts())
    return sha256_file(folder / WEIGHTS)


def _requires(settings: Any) -> None:
    objective = settings.train.objective
    if objective is not None:
        try:
            _objective_module(objective)
        except ConfigError as error:
            raise ValueError(f"train.objective: {str(error).removeprefix('--objective ')}") from None
        if len(settings.model.widths) > 1:
            raise ValueError(f"model.widths: must be [1.0] with train.objective, got {settings.model.widths}")
    if settings.train.lora_rank is not None and not settings.base.steps:
        raise ValueError(
            f"train.lora_rank: must be null without base.steps, whose model is adapted, got {settings.train.lora_rank}"
        )


def _requires_base(settings: Any) -> None:
    others = {
        "autoencoder.factor": settings.autoencoder.factor,
        "autoencoder.source": settings.autoencoder.source,
        "maps.kind": settings.maps.kind,
        "encode.encoder": settings.encode.encoder,
    }
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"{name}: must be null with base.steps, a model of pixels alone, got {value}")


def _code(settings: Any) -> Sequence[str]:
    objective = settings.train.objective
    return () if objective is None else (_objective_module(objective),)


BASE = Stage(
    name="base",
    command=base_command,
    makes="model",
    does="train the model that training starts from",
    settings=BaseSettings,
    inputs=lambda settings, nfe: {"data": "prepare"},
    reads=("model",),
    uses=("track",),
    applies=lambda settings, before: settings.base.steps > 0 and settings.model.zoo is None,
    requires=_requires_base,
    keeps="checkpoints",
    record="fewstep.app.stages.curve",
    threads=lambda settings: settings.base.threads,
    processes=lambda settings: settings.base.processes,
)

STAGE = Stage(
    name="train",
    command=command,
    makes="model",
    does="train the diffusion model",
    settings=TrainSettings,
    inputs=lambda settings, nfe: {
        "data": First(("latents", "prepare")),
        "start": "base",
        "pairs": Every("pairs"),
        "encoder": Of("encode", file=ENCODER),
        **autoencoder_of(settings),
    },
    reads=("model",),
    rows="train",
    uses=("track",),
    applies=lambda settings, before: settings.model.zoo is None,
    requires=_requires,
    keeps="checkpoints",
    record="fewstep.app.stages.curve",
    threads=lambda settings: settings.train.threads,
    processes=lambda settings: settings.train.processes,
    uses_code=_code,
)
