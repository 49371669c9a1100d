"""`fewstep ttur`: two learning rates of a generator and its discriminator, searched and compared with one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.files import write_json
from fewstep.methods.ttur.stage.rates.settings import TturSettings
from fewstep.pipeline.stage.options import DeviceOption, StudyOption, takes_settings
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder

if TYPE_CHECKING:
    from fewstep.methods.ttur.stage.rates.run import Found

RECORD, TRIALS, TRAININGS, CURVES, EXPORT = (
    "ttur.json",
    "trials.csv",
    "trainings.csv",
    "curves.csv",
    "gan.json",
)


@takes_settings()
def command(
    data: Annotated[Path, typer.Option(help="packed dataset, from fewstep prepare")],
    reference: Annotated[Path, typer.Option(help="statistics of the reference images, from fewstep stats")],
    extractor: Annotated[
        str, typer.Option(help="whose features are compared: its name, or the folder of a classifier")
    ],
    out: Annotated[Path, typer.Option(help="folder to write")],
    study: StudyOption = None,
    device: DeviceOption = "auto",
    *,
    ttur: TturSettings,
    spec: Spec | None,
) -> None:
    """Search the learning rates of both sides at a budget of images, and compare them with single rates.

    The best pair is written as settings of fewstep gan. It is compared on training seeds and on images that had no
    part in the search.

    Example: fewstep ttur --network dcgan --data data/digits --reference stats.npz --extractor extractor --out rates
    """
    from fewstep.data.packed import load_dataset
    from fewstep.methods.ttur.stage.rates.run import gan_settings, run_ttur
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.gan.comparison import Comparison, summary
    from fewstep.pipeline.gan.monitor import measure_by
    from fewstep.pipeline.gan.training import untrained
    from fewstep.progress import track

    if ttur.network is None:
        raise ConfigError("--network must name a generator, dcgan or resnet; got none.")
    require_result_folder(out, spec, {".json", ".csv"})
    dataset = load_dataset(data, "train")
    untrained(gan_settings(ttur, {"lr_g": 1e-4, "lr_d": 1e-4, "d_steps": 1}, 0), dataset.shape)
    chosen = chosen_device(device, exact=False)
    measure = measure_by(extractor, reference, dataset.shape, chosen)
    kept = study or out.with_name(f"{out.name}.study")
    kept = kept / spec.key if spec else kept
    kept.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(dataset, measure, kept / "trainings", ttur.images, chosen, FIRST_SEED, track)
    identity = {
        "data": dataset.fingerprint,
        "reference": measure.reference.protocol,
        "extractor": measure.extractor.protocol,
    }
    found = run_ttur(comparison, ttur, storage=str(kept / "journal.log"), identity=identity, track=track)
    with result_folder(out, spec) as folder:
        save(found, ttur, folder)
    for row in summary(found.trainings):
        typer.echo(f"{row['arm']}: FD {row['fd']:.4g} ({row['low']:.4g} to {row['high']:.4g})", err=True)
    typer.echo(f"{out}: {len(found.trials)} trainings searched, {len(found.trainings)} compared")


FIRST_SEED = 1_800_000_000
"""Of the images that trainings of the search are judged by."""


def save(found: "Found", settings: TturSettings, folder: Path) -> None:
    """Write the record, the tables, and the best pair as settings of `fewstep gan`."""
    from fewstep.methods.ttur.stage.rates.run import gan_settings

    write_json(folder / RECORD, found.record)
    for name, frame in ((TRIALS, found.trials), (TRAININGS, found.trainings), (CURVES, found.curves)):
        frame.to_csv(folder / name, index=False, lineterminator="\n")
    arms = found.record["arms"]
    best = arms.get("two rates") or arms["two rates, published"]
    write_json(folder / EXPORT, json.loads(gan_settings(settings, best, 0).model_dump_json()))
