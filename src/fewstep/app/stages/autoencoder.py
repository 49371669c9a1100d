"""`fewstep autoencoder`: a variational autoencoder, and `fewstep latents`: what it makes of a dataset."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.app.settings import AutoencoderSettings, LatentsSettings
from fewstep.checks import ConfigError
from fewstep.files import require_replaceable
from fewstep.nets import CARD, CONFIG, CURVE, WEIGHTS
from fewstep.pipeline.stage import Inputs, Stage, Value
from fewstep.pipeline.stage.options import DeviceOption, takes_settings
from fewstep.pipeline.stage.spec import STAMP, Spec, stamp

ImagesOption = Annotated[Path, typer.Option(help="packed dataset of the images, from fewstep prepare")]


@takes_settings(hide=("source",))
def command(
    data: ImagesOption,
    out: Annotated[Path, typer.Option(help="folder to write")],
    checkpoints: Annotated[Path, typer.Option(help="folder of checkpoints, from which training resumes")],
    device: DeviceOption = "auto",
    *,
    autoencoder: AutoencoderSettings,
    spec: Spec | None,
) -> None:
    """Train a variational autoencoder, measure the scale of its latents, and how well it rebuilds held-out images.

    Example: fewstep autoencoder --data data/digits --out autoencoder --checkpoints checkpoints --factor 2
    """
    from fewstep.data.packed import load_dataset
    from fewstep.nets.autoencoder import VAE
    from fewstep.nets.folder import save_autoencoder
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.environment import card_facts
    from fewstep.progress import track
    from fewstep.rng import initial_weights
    from fewstep.train.autoencoder import measured_scale, reconstruction_error, train_autoencoder

    if autoencoder.factor is None:
        raise ConfigError(
            "--factor must be the side of an image over that of its latent, such as 2; got none."
        )
    require_replaceable(out, set(), names={WEIGHTS, CONFIG, CARD, CURVE, STAMP})
    dataset = load_dataset(data, "train")
    channels, height, width = dataset.shape
    if height % autoencoder.factor or width % autoencoder.factor:
        raise ConfigError(
            f"--factor must divide the sides of the images, {height} x {width}; got {autoencoder.factor}."
        )
    with initial_weights(autoencoder.seed):
        net = VAE(
            channels,
            autoencoder.channels,
            autoencoder.latent_channels,
            autoencoder.factor,
            autoencoder.blocks,
        ).to(chosen_device(device, exact=False))
    folder = checkpoints / spec.key if spec else checkpoints
    state = train_autoencoder(
        dataset,
        net,
        steps=autoencoder.steps,
        batch_size=autoencoder.batch_size,
        lr=autoencoder.lr,
        seed=autoencoder.seed,
        kl_weight=autoencoder.kl_weight,
        flip=autoencoder.flip,
        checkpoints=folder,
        metrics=folder / CURVE,
        progress=track("autoencoder", unit="step"),
    )
    scale = measured_scale(net, dataset)
    judged_on = dataset.heldout_split or "train"
    error = reconstruction_error(net, load_dataset(data, judged_on))

    def finish(made: Path) -> None:
        shutil.copyfile(folder / CURVE, made / CURVE)
        if spec:
            stamp(spec, made)

    save_autoencoder(
        out,
        net,
        scale=scale,
        name=f"{dataset.name}-vae{autoencoder.factor}",
        card={
            **card_facts(dataset, net),
            "settings": autoencoder.model_dump(mode="json"),
            "steps": state.step,
            "images_seen": state.images_seen,
            f"{judged_on}_mse": error,
        },
        finish=finish,
    )
    typer.echo(
        f"{out}: autoencoder of {dataset.name}, squared error {error:.4g} on the {judged_on} images, scale of the "
        f"latents {scale:.4g}"
    )


@takes_settings()
def encode(
    data: ImagesOption,
    autoencoder: Annotated[
        Path, typer.Option(help="folder of an autoencoder, of this project or an AutoencoderKL of diffusers")
    ],
    out: Annotated[Path, typer.Option(help="folder to write")],
    device: DeviceOption = "auto",
    *,
    latents: LatentsSettings,
    spec: Spec | None,
) -> None:
    """Draw a latent of each image from its posterior, once; models then train on them with `fewstep train --data`.

    Image i has the noise of seed + i, so that its latent does not depend on the batch.

    Example: fewstep latents --data data/digits --autoencoder autoencoder --out latents
    """
    import torch

    from fewstep.data.latents import ARRAY, LABELS, MANIFEST, draw_latents, write_latents
    from fewstep.data.packed import load_dataset
    from fewstep.files import atomic_dir
    from fewstep.interop.autoencoder import load_autoencoder
    from fewstep.nets.autoencoder import require_unit
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track

    require_replaceable(out, set(), names={ARRAY, LABELS, MANIFEST, STAMP})
    dataset, loaded = load_dataset(data), load_autoencoder(autoencoder, device=chosen_device(device))
    c, h, w = loaded.latent_shape(dataset.shape)
    array = draw_latents(
        dataset,
        loaded.encode,
        (c, h, w),
        seed=latents.seed,
        batch_size=latents.batch_size,
        device=chosen_device(device),
        progress=track("latents", unit="batch"),
    )
    require_unit(torch.from_numpy(array), str(autoencoder))
    facts = {"name": loaded.name, "fingerprint": loaded.fingerprint, "scale": loaded.scale}
    with atomic_dir(out) as folder:
        write_latents(folder, array, dataset, autoencoder=facts)
        if spec:
            stamp(spec, folder)
    typer.echo(f"{out}: {len(array)} latents of {c} x {h} x {w} of {dataset.name}")


def autoencoder_of(settings: Any) -> Inputs:
    """The autoencoder of a run, as an input; nothing for a run on pixels."""
    if settings.autoencoder.source is not None:
        return {"autoencoder": Value(settings.autoencoder.source)}
    return {"autoencoder": "autoencoder"} if settings.autoencoder.factor is not None else {}


def _is_latent(settings: Any) -> bool:
    return settings.model.zoo is None and bool(autoencoder_of(settings))


def _requires(settings: Any) -> None:
    if settings.train.flip:
        raise ValueError(
            "train.flip: must be false for a model of latents, as a mirrored latent is not that of the mirrored image; "
            "got true; set autoencoder.flip, or prepare mirrored images"
        )
    if settings.align.nfe and settings.align.reads_images:
        raise ValueError(
            f"align.objectives: must not need training images for a model of latents, got {settings.align.objectives}; "
            "take the objective trajectory alone"
        )


STAGE = Stage(
    name="autoencoder",
    command=command,
    makes="autoencoder",
    does="train the autoencoder",
    settings=AutoencoderSettings,
    inputs=lambda settings, nfe: {"data": "prepare"},
    applies=lambda settings, before: _is_latent(settings) and settings.autoencoder.source is None,
    keeps="checkpoints",
    first=True,
)

LATENTS = Stage(
    name="latents",
    command=encode,
    makes="dataset",
    does="encode the images as latents",
    settings=LatentsSettings,
    inputs=lambda settings, nfe: {"data": "prepare", **autoencoder_of(settings)},
    applies=lambda settings, before: _is_latent(settings),
    requires=_requires,
)
