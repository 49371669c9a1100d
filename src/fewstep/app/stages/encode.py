"""`fewstep encode`: images through a frozen encoder, as tokens that models are conditioned on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.app.settings import EncodeSettings
from fewstep.checks import ConfigError, DataError
from fewstep.files import require_replaceable
from fewstep.nets import ENCODER
from fewstep.pipeline.stage import Stage
from fewstep.pipeline.stage.options import DeviceOption, takes_settings
from fewstep.pipeline.stage.spec import STAMP, Spec, result_folder

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.data.packed import Dataset
    from fewstep.interop.encoders import Encoder

PARTS = ("train", "search", "report")


@takes_settings()
def command(
    data: Annotated[Path, typer.Option(help="packed dataset of the images, from fewstep prepare")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    device: DeviceOption = "auto",
    *,
    encode: EncodeSettings,
    spec: Spec | None,
) -> None:
    """Write the tokens of the training images, and of halves of the held-out ones to search and to report on.

    The encoder and the normalisation of its tokens stand beside them, so that models can encode images by themselves.

    Example: fewstep encode --data data/cifar10 --encoder effnet-lite0 --out tokens
    """
    from fewstep.data.conditions import save_conditions
    from fewstep.data.packed import load_dataset
    from fewstep.diffusion.condition import CONTEXT, Condition
    from fewstep.interop.encoders import normalised, save_tokens
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track

    if encode.encoder is None:
        raise ConfigError("--encoder must be classifier, effnet-lite0 or the folder of an encoder; got none.")
    require_replaceable(out, set(), names={*PARTS, ENCODER, STAMP})
    train = load_dataset(data, "train")
    if train.heldout_split is None:
        raise DataError(f"{data} must have held-out images, a split test or valid, to search and report on.")
    heldout = load_dataset(data, train.heldout_split)
    with result_folder(out, spec) as folder:
        encoder = _encoder(encode, train, folder, chosen_device(device))
        tokens = normalised(encoder, _batches(train, encode.batch_size, track("normalise", unit="batch")))
        half = len(heldout) // 2
        parts = {"train": (train, range(len(train))), "search": (heldout, range(half))}
        parts["report"] = (heldout, range(half, len(heldout)))
        for part, (dataset, rows) in parts.items():
            batches = _batches(dataset, encode.batch_size, track(f"encode {part}", unit="batch"), rows)
            found = Condition.cat([Condition({CONTEXT: tokens(images)}) for images in batches])
            source = {
                "fingerprint": dataset.fingerprint,
                "split": "train" if part == "train" else train.heldout_split,
                "rows": [rows[0], rows[-1]],
                "heldout_classes": list(encode.heldout_classes),
            }
            made_by = {
                "name": encoder.name,
                "fingerprint": encoder.fingerprint,
                "preprocess": encoder.preprocess,
            }
            save_conditions(folder / part, found, source=source, encoder=made_by)
        save_tokens(folder / ENCODER, tokens)
        _drop(folder)
    shape = tuple(found.values[CONTEXT].shape[1:])
    typer.echo(
        f"{out}: {len(train)} + {len(heldout)} images as {shape[0]} tokens of {shape[1]} by {encoder.name}"
    )


_TRAINED = ".classifier"


def _drop(folder: Path) -> None:
    """Delete the classifier that was trained here; it stands in the folder of the encoder."""
    import shutil

    shutil.rmtree(folder / _TRAINED, ignore_errors=True)


def _encoder(settings: EncodeSettings, train: "Dataset", folder: Path, device: Any) -> "Encoder":
    """The encoder that the settings name; a classifier of the classes that are not held out is trained here."""
    from fewstep.interop.encoders import load_encoder
    from fewstep.nets.classifier import Classifier
    from fewstep.nets.folder import save_classifier
    from fewstep.pipeline.environment import card_facts
    from fewstep.progress import track
    from fewstep.rng import initial_weights
    from fewstep.train.classifier import train_classifier

    name = settings.encoder
    assert name is not None
    if name != "classifier":
        return load_encoder(name, device=device)
    seen = seen_images(train, settings.heldout_classes)
    n_classes = int(seen.labels.max()) + 1 if seen.labels is not None else 0
    with initial_weights(settings.seed):
        net = Classifier(train.shape[0], n_classes).to(device)
    train_classifier(
        seen,
        net,
        steps=settings.steps,
        batch_size=128,
        lr=1e-3,
        seed=settings.seed,
        progress=track("encoder", unit="step"),
    )
    place = folder / _TRAINED
    card = {**card_facts(seen, net), "heldout_classes": list(settings.heldout_classes)}
    save_classifier(place, net, shape=train.shape, name=f"{train.name}-encoder", card=card)
    return load_encoder(place, device=device)


def seen_images(train: "Dataset", heldout: list[int]) -> "Dataset":
    """The images of the classes that are not held out, whose labels are then 0, 1, ...

    Raises: ConfigError: the dataset has no labels, or lacks such a class, or none is left to tell apart.
    """
    import numpy as np

    if train.labels is None or train.classes is None:
        raise ConfigError(f"--encoder classifier needs labels, but {train.name} has none; take effnet-lite0.")
    if unknown := [label for label in heldout if label >= len(train.classes)]:
        raise ConfigError(
            f"--heldout-classes must be below {len(train.classes)}, the number of classes; got {unknown[0]}."
        )
    kept = [label for label in range(len(train.classes)) if label not in heldout]
    if len(kept) < 2:
        raise ConfigError(f"--heldout-classes must leave two classes or more; got {heldout}.")
    number = np.full(len(train.classes), -1)
    number[kept] = np.arange(len(kept))
    rows = np.flatnonzero(np.isin(train.labels, kept))
    return replace(train, images=train.images[rows], labels=number[train.labels[rows]])


def _batches(dataset: "Dataset", size: int, progress: Any, rows: range | None = None) -> "Iterator[Tensor]":
    rows = range(len(dataset)) if rows is None else rows
    for first in progress(range(0, len(rows), size)):
        yield dataset.batch(list(rows[first : first + size]))


def _requires(settings: Any) -> None:
    if settings.train.flip:
        raise ValueError("train.flip: must be false where conditions are tokens of their images, got true")
    if settings.align.nfe and settings.align.reads_images:
        raise ValueError(
            f"align.objectives: must not need training images for a model of stored conditions, got "
            f"{settings.align.objectives}; take the objective trajectory alone"
        )
    if settings.maps.kind is not None:
        raise ValueError(
            f"encode.encoder: must be null for a model of maps, as a run has conditions of one kind, got "
            f"{settings.encode.encoder}"
        )


STAGE = Stage(
    name="encode",
    command=command,
    makes="conditions",
    does="encode the images as tokens",
    settings=EncodeSettings,
    inputs=lambda settings, nfe: {"data": "prepare"},
    applies=lambda settings, before: settings.encode.encoder is not None and settings.model.zoo is None,
    requires=_requires,
)
