"""`fewstep extractor`: a small classifier whose features compare images."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.app.settings import ExtractorSettings
from fewstep.checks import ConfigError
from fewstep.files import require_folder
from fewstep.pipeline.stage import Stage
from fewstep.pipeline.stage.options import DeviceOption, takes_settings
from fewstep.pipeline.stage.spec import Spec, stamp


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
    from fewstep.data.packed import load_dataset
    from fewstep.nets.classifier import Classifier
    from fewstep.nets.folder import save_classifier
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.environment import card_facts
    from fewstep.progress import track
    from fewstep.rng import initial_weights
    from fewstep.train.classifier import accuracy, train_classifier

    require_folder(out)
    dataset = load_dataset(data, "train")
    if dataset.classes is None:
        raise ConfigError(
            f"A classifier needs labels, but {data} has none; use the extractor effnet-lite0-p320."
        )
    with initial_weights(extractor.seed):
        net = Classifier(dataset.shape[0], len(dataset.classes)).to(chosen_device(device))
    train_classifier(
        dataset,
        net,
        steps=extractor.steps,
        batch_size=extractor.batch_size,
        lr=extractor.lr,
        seed=extractor.seed,
        progress=track("extractor", unit="step"),
    )
    right = accuracy(net, load_dataset(data, "test"))
    save_classifier(
        out,
        net,
        shape=dataset.shape,
        name=f"{dataset.name}-cnn",
        card={
            **card_facts(dataset, net),
            "settings": extractor.model_dump(mode="json"),
            "test_accuracy": right,
        },
    )
    if spec:
        stamp(spec, out)
    typer.echo(f"{out}: classifier of {dataset.name}, {right:.1%} of the test images right")


STAGE = Stage(
    name="extractor",
    command=command,
    makes="extractor",
    does="train the classifier whose features compare images",
    settings=ExtractorSettings,
    inputs=lambda settings, nfe: {"data": "prepare"},
    applies=lambda settings, before: settings.model.zoo is None and settings.extractor.name == "classifier",
)
