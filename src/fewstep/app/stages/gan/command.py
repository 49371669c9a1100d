"""`fewstep gan`: from a packed dataset to the model folder of a generator."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.app.settings import TrackSettings
from fewstep.app.stages.curve import live
from fewstep.checks import ConfigError
from fewstep.files import require_replaceable
from fewstep.nets import CARD, CONFIG, CURVE, PICTURES, WEIGHTS
from fewstep.pipeline.gan.settings import GanSettings
from fewstep.pipeline.stage.options import DeviceOption, ReferenceOption, takes_settings
from fewstep.pipeline.stage.spec import STAMP, Spec, stamp

if TYPE_CHECKING:
    from fewstep.pipeline.gan.monitor import Monitor

_FIRST_SEED = 1_800_000_000
"""Of the images that are measured on the way; results are measured on other ones."""


@takes_settings(hide=("uri", "live"))
def command(
    data: Annotated[Path, typer.Option(help="packed dataset, from fewstep prepare")],
    out: Annotated[Path, typer.Option(help="model folder to write")],
    checkpoints: Annotated[Path, typer.Option(help="folder of checkpoints, from which training resumes")],
    reference: ReferenceOption = None,
    extractor: Annotated[
        str | None,
        typer.Option(help="whose features are compared on the way: its name, or the folder of a classifier"),
    ] = None,
    device: DeviceOption = "auto",
    *,
    gan: GanSettings,
    track: TrackSettings,
    spec: Spec | None,
) -> None:
    """Train a generator that makes an image in one network call; the same command resumes one that was interrupted.

    A generator that has collapsed, or a discriminator that has run away, stops the training with the reason. With
    --reference and --extractor the curve has the Fréchet distance of its samples.

    Example: fewstep gan --network dcgan --data data/digits --out generator --checkpoints checkpoints
    """
    import torch

    from fewstep.data.packed import load_dataset
    from fewstep.nets.folder import save_generator
    from fewstep.nets.generator import Generator
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.environment import card_facts
    from fewstep.pipeline.gan.training import recipe_of, train_pair, untrained
    from fewstep.progress import track as bar
    from fewstep.train.adversarial import GENERATOR
    from fewstep.train.world import joined

    if gan.network is None:
        raise ConfigError("--network must name a generator, dcgan, resnet or vitgan; got none.")
    require_replaceable(out, set(), names={WEIGHTS, CONFIG, CARD, CURVE, PICTURES, STAMP})
    dataset = load_dataset(data, "train")
    recipe_of(gan)
    folder = checkpoints / spec.key if spec else checkpoints
    metrics, pictures = folder / CURVE, folder / "pictures"
    if gan.threads:
        torch.set_num_threads(gan.threads)
    started = time.time()
    with joined() as world:
        chosen = chosen_device(device, local_rank=world.local_rank, exact=False)
        pair = untrained(gan, dataset.shape)
        for net in pair:
            net.to(chosen)
        monitor = _monitor(gan, data, reference, extractor, chosen, pictures)
        with live(metrics, track, spec, leads=world.leads):
            state = train_pair(
                pair,
                dataset,
                gan,
                measure=monitor.probe(gan.probe_every),
                checkpoints=folder,
                metrics=metrics,
                world=world,
                progress=bar("gan", unit="step"),
            )
        if not world.leads:
            return
    averaged = state.ema[GENERATOR].net
    assert isinstance(averaged, Generator)

    def finish(made: Path) -> None:
        shutil.copyfile(metrics, made / CURVE)
        _join(pictures, made / PICTURES)
        if spec:
            stamp(spec, made)

    save_generator(
        out,
        averaged,
        name=f"{dataset.name}-{spec.run if spec else out.resolve().name}-{gan.network}",
        card={
            **card_facts(dataset, averaged),
            "parameters_of_discriminator": sum(p.numel() for p in pair.discriminator.parameters()),
            "settings": {"gan": gan.model_dump(mode="json")},
            "steps": state.step,
            "images_seen": state.images_seen,
            "seconds_of_last_start": round(time.time() - started, 1),
        },
        finish=finish,
    )
    typer.echo(
        f"{out}: {gan.network} of {dataset.name}, {state.step} steps, {state.images_seen:,} images seen"
    )


def _monitor(
    gan: GanSettings, data: Path, reference: Path | None, extractor: str | None, device: str, pictures: Path
) -> "Monitor":
    from fewstep.data.packed import load_dataset
    from fewstep.pipeline.gan.monitor import Monitor, measure_by

    if (reference is None) != (extractor is None):
        raise ConfigError(
            "--reference and --extractor must be given together, as distances need both; add the other one."
        )
    dataset = load_dataset(data, "train")
    measure = None
    if reference is not None and extractor is not None:
        measure = measure_by(extractor, reference, dataset.shape, device)
    seeds = range(_FIRST_SEED, _FIRST_SEED + gan.probe_images)
    return Monitor(dataset, gan.steps, seeds, measure, pictures)


def _join(folder: Path, path: Path) -> None:
    """Put the images of all measurements into one file: steps (K,) and images (K, N, H, W, C)."""
    import numpy as np

    found = sorted(folder.glob("*.npy"))
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            steps=np.array([int(one.stem) for one in found], np.int64),
            images=np.stack([np.load(one, allow_pickle=False) for one in found]),
        )
