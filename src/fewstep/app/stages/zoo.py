"""`fewstep zoo`: the trained models that have a name."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.checks import ConfigError, DataError
from fewstep.files import atomic_dir, atomic_file
from fewstep.nets import CARD, CONFIG, CURVE, PLANS, WEIGHTS
from fewstep.pipeline.stage import UNFITTED, Stage, Value
from fewstep.pipeline.stage.options import takes_settings
from fewstep.pipeline.stage.spec import Spec, stamp

if TYPE_CHECKING:
    from rich.table import Table

    from fewstep.interop.zoo import Entry

_FILES = (WEIGHTS, CONFIG, CARD, CURVE)
_FACTS = {"steps": "training steps", "seconds_of_training": "seconds of training", "device": "trained on"}
"""What a card may say beside the columns of the table."""


@takes_settings()
def command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="tell all about this model")] = None,
    out: Annotated[Path | None, typer.Option(help="copy the model to this folder")] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="copy the statistics of the model's dataset to this file (.npz)")
    ] = None,
    extractor: Annotated[
        str, typer.Option(help="whose features the statistics are of")
    ] = "effnet-lite0-p320",
    unfitted: Annotated[
        str | None,
        typer.Option(help="with --out: copy the statistics in these features into the folder, too"),
    ] = None,
    *,
    spec: Spec | None,
) -> None:
    """List the models that --model and MODEL take by name; tell about one of them, check its files, copy them.

    Example: fewstep zoo cifar10-32-tiny
    Then: fewstep plan unipc-2 --model cifar10-32-tiny --nfe 10 --out plan.json
    """
    from rich.console import Console

    from fewstep.interop.zoo import entries, references, zoo_folder

    if name is None and (out or statistics):
        raise ConfigError(
            "--out and --statistics need a NAME of whose files to copy; fewstep zoo lists them."
        )
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    models = {entry.name: entry for entry in entries()}
    if name is not None:
        wanted = name.removeprefix("zoo/")
        if wanted not in models:
            raise DataError(
                f"NAME must be a model of the zoo, {', '.join(models) or 'which has none'}; got {name!r}."
            )
        for what, fact in _told(models[wanted]).items():
            console.print(f"{what}: {fact}", markup=False, soft_wrap=True)
        if out is not None:
            _copy(models[wanted], out, extractor if spec else None, spec, unfitted)
        if statistics is not None:
            with atomic_file(statistics) as copy:
                shutil.copyfile(_statistics(models[wanted], extractor), copy)
        return
    console.print(_table(list(models.values())))
    for reference in references():
        console.print(f"--reference {reference}", markup=False, soft_wrap=True)
    typer.echo(f"{zoo_folder()}: {len(models)} model{'' if len(models) == 1 else 's'}")


def _copy(model: "Entry", out: Path, extractor: str | None, spec: Spec | None, unfitted: str | None) -> None:
    """Copy a model; for a run with the statistics of its dataset beside it, through an extractor."""
    from fewstep.interop.zoo import STATISTICS

    folder = model.folder
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise DataError(
            f"{folder} must hold {' and '.join(missing)} to be copied, but does not; copy the zoo again."
        )
    with atomic_dir(out) as copy:
        for name in _FILES:
            shutil.copyfile(folder / name, copy / name)
        if (folder / PLANS).is_dir():
            shutil.copytree(folder / PLANS, copy / PLANS)
        if extractor is not None:
            shutil.copyfile(_statistics(model, extractor), copy / STATISTICS)
        if unfitted is not None:
            shutil.copyfile(_statistics(model, unfitted), copy / UNFITTED)
        if spec:
            stamp(spec, copy)


def _statistics(model: "Entry", extractor: str) -> Path:
    from fewstep.interop.zoo import find_reference

    return find_reference(f"{model.dataset}.{extractor}")


def _table(entries: "list[Entry]") -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("model", "data", "parameters", "images seen", "MB", "quality"):
        right = heading in ("parameters", "images seen", "MB")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for entry in entries:
        table.add_row(*_cells(entry))
    return table


def _cells(entry: "Entry") -> tuple[str, ...]:
    return (
        entry.name,
        entry.dataset or "",
        "" if entry.parameters is None else f"{entry.parameters:,}",
        "" if entry.images_seen is None else f"{entry.images_seen:,}",
        f"{entry.megabytes:.1f}",
        "" if entry.value is None else f"{entry.metric} {entry.value:.4g}",
    )


def _told(entry: "Entry") -> dict[str, str]:
    """Everything about one model, after its files have been compared with their checksums."""
    from fewstep.interop.zoo import field, licence_of, mapping, verify

    checked = verify(entry.folder, WEIGHTS, CONFIG)
    path = entry.folder / CONFIG
    config, card = mapping(path), mapping(entry.folder / CARD)
    name, dataset, parameters, seen, megabytes, quality = _cells(entry)
    facts = {
        "model": name,
        "folder": str(entry.folder),
        "data": dataset if entry.images is None else f"{dataset}, {entry.images:,} images",
        "shape": " x ".join(map(str, field(config, "shape", list, path) or ())),
        "prediction": str(config.get("prediction", "")),
        "schedule": str((field(config, "schedule", dict, path) or {}).get("type", "")),
        "classes": str(config.get("n_classes") or "none"),
        "parameters": parameters,
        "images seen": seen,
        **{label: str(card[key]) for key, label in _FACTS.items() if key in card},
        "weights": f"{megabytes} MB",
        "plans": ", ".join(path.stem for path in sorted((entry.folder / PLANS).glob("*.json"))),
        "quality": quality,
        "licence": licence_of(entry.folder) or "",
        "checksums": f"held for {', '.join(checked)}",
    }
    return {what: fact for what, fact in facts.items() if fact}


def _requires(settings: Any) -> None:
    """What needs training images, which a model of the zoo comes without, must not be asked for."""
    if settings.extractor.name == "classifier":
        raise ValueError(
            f"extractor.name: must not need training images with model.zoo, got {settings.extractor.name}; take a "
            "published extractor"
        )
    unfitted = settings.unfitted.of(settings.extractor.name)
    if unfitted == "classifier":
        raise ValueError(
            "unfitted.name: must not need training images with model.zoo, got classifier; take auto, or none"
        )
    if unfitted == settings.extractor.name:
        raise ValueError(
            f"unfitted.name: must differ from extractor.name, in whose features plans are fitted, got {unfitted} for "
            "both; take auto, or none to report the fitted features"
        )
    if set(settings.evaluate.metrics) - {"fd", "is", "inf"}:
        raise ValueError(
            f"evaluate.metrics: must not need training images with model.zoo, got {settings.evaluate.metrics}; take "
            "the metric fd alone"
        )


def _unfitted(settings: Any) -> dict[str, Value]:
    name = settings.unfitted.of(settings.extractor.name)
    return {} if name is None else {"unfitted": Value(name)}


def _digest(settings: Any) -> str:
    from fewstep.files import sha256_text
    from fewstep.interop.zoo import REFERENCES, digest, find, zoo_folder

    return sha256_text(digest(find(settings.model.zoo)) + digest(zoo_folder() / REFERENCES))


STAGE = Stage(
    name="zoo",
    command=command,
    makes="model",
    does="take the model from the zoo, and the statistics of its dataset",
    inputs=lambda settings, nfe: {
        "name": Value(settings.model.zoo or ""),
        "extractor": Value(settings.extractor.name),
        **_unfitted(settings),
    },
    reads=("model.zoo",),
    applies=lambda settings, before: settings.model.zoo is not None,
    requires=_requires,
    source=_digest,
    record="fewstep.app.stages.curve",
    gpu=False,
)
