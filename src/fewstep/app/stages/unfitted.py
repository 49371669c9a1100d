"""`fewstep unfitted`: features that nothing is fitted to, and the reference images in them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.app.settings import StatsSettings, UnfittedSettings
from fewstep.app.stages.extractor import write_classifier
from fewstep.app.stages.stats import measured_reference
from fewstep.checks import ConfigError
from fewstep.files import atomic_dir, require_replaceable
from fewstep.nets import CARD, CONFIG, WEIGHTS
from fewstep.pipeline.stage import Stage
from fewstep.pipeline.stage.options import DeviceOption, takes_settings
from fewstep.pipeline.stage.spec import STAMP, Spec, stamp

CHANNELS, FEATURES, BODY = 24, 48, "residual"
"""Of the classifier: another width, another number of features and other layers than those of `fewstep extractor`."""


@takes_settings()
def command(
    data: Annotated[Path, typer.Option(help="packed dataset, from fewstep prepare")],
    out: Annotated[Path, typer.Option(help="folder to write: a classifier, if it is one, and statistics")],
    device: DeviceOption = "auto",
    *,
    unfitted: UnfittedSettings,
    stats: StatsSettings,
    spec: Spec | None,
) -> None:
    """Prepare features that no plan is fitted to, to report plans by: an extractor and statistics of the images.

    Example: fewstep unfitted --data data/digits --out unfitted
    Then: fewstep evaluate samples.npz --reference unfitted --extractor unfitted --out certificate.json
    """
    from fewstep.interop.zoo import STATISTICS
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import save_reference
    from fewstep.pipeline.devices import chosen_device

    fitted = "classifier" if spec is None else spec.value("extractor.name")
    name = unfitted.of(fitted)
    if name is None:
        raise ConfigError("--name must name an extractor, got none; leave fewstep unfitted out.")

    def write_statistics(folder: Path, extractor: str | Path) -> None:
        network = load_extractor(extractor, device=chosen_device(device))
        save_reference(folder / STATISTICS, measured_reference(data, network, out, split=stats.split))
        if spec is not None:
            stamp(spec, folder)

    require_replaceable(out, set(), names={WEIGHTS, CONFIG, CARD, STAMP, STATISTICS})
    if name != "classifier":
        with atomic_dir(out) as folder:
            write_statistics(folder, name)
        typer.echo(f"{out}: {name} features of the {stats.split} split")
        return
    typer.echo(
        write_classifier(
            data,
            out,
            unfitted,
            device,
            name="res",
            finish=lambda folder: write_statistics(folder, folder),
            channels=CHANNELS,
            features=FEATURES,
            body=BODY,
        )
    )


def _requires(settings: Any) -> None:
    """Raise ValueError where the reported features are those that plans are fitted in."""
    fitted, unfitted = settings.extractor, settings.unfitted
    name = unfitted.of(fitted.name)
    if name == fitted.name and name != "classifier":
        raise ValueError(
            f"unfitted.name: must differ from extractor.name, in whose features plans are fitted, got {name} for both; "
            "take auto, or none to report the fitted features"
        )
    if name == "classifier" == fitted.name and unfitted.seed == fitted.seed:
        raise ValueError(
            f"unfitted.seed: must differ from extractor.seed, whose features plans are fitted in, got {unfitted.seed} "
            "for both"
        )


STAGE = Stage(
    name="unfitted",
    command=command,
    makes="extractor",
    does="prepare the features that plans are reported by, and that nothing is fitted to",
    settings=UnfittedSettings,
    inputs=lambda settings, nfe: {"data": "prepare"},
    reads=("stats", "extractor.name"),
    applies=lambda settings, before: (
        settings.model.zoo is None and settings.unfitted.of(settings.extractor.name) is not None
    ),
    requires=_requires,
)
