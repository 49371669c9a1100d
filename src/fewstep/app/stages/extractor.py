"""`fewstep extractor`: a small classifier whose features compare images."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.app.settings import ClassifierTraining, ExtractorSettings
from fewstep.checks import ConfigError
from fewstep.files import require_replaceable
from fewstep.nets import CARD, CONFIG, WEIGHTS
from fewstep.pipeline.stage import Stage
from fewstep.pipeline.stage.options import DeviceOption, takes_settings
from fewstep.pipeline.stage.spec import STAMP, Spec, stamp

if TYPE_CHECKING:
    from fewstep.nets.folder import Finish


@takes_settings(hide=("name",))
def command(
    data: Annotated[Path, typer.Option(help="packed dataset, from fewstep prepare")],
    out: Annotated[Path, typer.Option(help="model folder to write")],
    device: DeviceOption = "auto",
    *,
    extractor: ExtractorSettings,
    spec: Spec | None,
) -> None:
    """Train a small classifier on the labels; its features then serve to compare images.

    Example: fewstep extractor --data data/digits --out extractor
    """
    require_replaceable(out, set(), names={WEIGHTS, CONFIG, CARD, STAMP})
    finish = None if spec is None else partial(stamp, spec)
    typer.echo(write_classifier(data, out, extractor, device, name="cnn", finish=finish))


def write_classifier(
    data: Path,
    out: Path,
    settings: ClassifierTraining,
    device: str,
    *,
    name: str,
    finish: "Finish | None",
    **shape: Any,
) -> str:
    """Train a classifier on the labels of a packed dataset, write its folder, and say in a sentence how good it is.

    Args:
        data: the dataset.
        out: the folder.
        settings: of the training.
        device: of the network.
        name: of its kind, after the dataset's.
        finish: writes what else belongs into the folder.
        **shape: arguments of `fewstep.nets.classifier.Classifier` that are not its defaults.

    Raises:
        ConfigError: the dataset has no labels, or no images to judge it by.
    """
    from fewstep.data.packed import load_dataset
    from fewstep.nets.classifier import Classifier
    from fewstep.nets.folder import save_classifier
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.environment import card_facts
    from fewstep.progress import track
    from fewstep.rng import initial_weights
    from fewstep.train.classifier import accuracy, train_classifier

    dataset = load_dataset(data, "train")
    judged_on = dataset.heldout_split
    if dataset.classes is None:
        raise ConfigError(
            f"A classifier needs labels, but {data} has none; use the extractor effnet-lite0-p320."
        )
    if judged_on is None:
        raise ConfigError(
            f"A classifier must be judged on images that it was not trained on, but {data} has no test or valid split; "
            "prepare it with test_fraction above 0."
        )
    heldout = load_dataset(data, judged_on)
    with initial_weights(settings.seed):
        net = Classifier(dataset.shape[0], len(dataset.classes), **shape).to(chosen_device(device))
    train_classifier(
        dataset,
        net,
        steps=settings.steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=settings.seed,
        progress=track("extractor", unit="step"),
    )
    right = accuracy(net, heldout)
    save_classifier(
        out,
        net,
        shape=dataset.shape,
        name=f"{dataset.name}-{name}",
        card={
            **card_facts(dataset, net),
            "settings": settings.model_dump(mode="json"),
            f"{judged_on}_accuracy": right,
        },
        finish=finish,
    )
    return f"{out}: classifier of {dataset.name}, {right:.1%} of the {judged_on} images right"


STAGE = Stage(
    name="extractor",
    command=command,
    makes="extractor",
    does="train the classifier whose features compare images",
    settings=ExtractorSettings,
    inputs=lambda settings, nfe: {"data": "prepare"},
    applies=lambda settings, before: settings.model.zoo is None and settings.extractor.name == "classifier",
)
