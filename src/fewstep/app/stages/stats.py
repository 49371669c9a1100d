"""`fewstep stats`: the statistics of the reference images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.app.settings import StatsSettings
from fewstep.checks import ConfigError
from fewstep.pipeline.stage import Stage
from fewstep.pipeline.stage import extractor as extractor_of
from fewstep.pipeline.stage.options import (
    BackendOption,
    DeviceOption,
    MeasuredExtractorOption,
    takes_settings,
)
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder

if TYPE_CHECKING:
    from fewstep.metrics.reference import Baseline, Reference

_BASELINES = (500, 1000, 2000, 5000, 10_000, 50_000)
"""Numbers of images that are compared in practice."""


@takes_settings()
def command(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="packed dataset")],
    extractor: MeasuredExtractorOption,
    out: Annotated[Path, typer.Option(help="statistics file to write (.npz), or a folder for it")],
    compact: Annotated[
        bool,
        typer.Option(
            "--compact", help="keep mean and covariance alone, rounded: small, for Fréchet distances"
        ),
    ] = False,
    device: DeviceOption = "auto",
    backend: BackendOption = "torch",
    *,
    stats: StatsSettings,
    spec: Spec | None,
) -> None:
    """Measure the reference images that samples will be compared with.

    Example: fewstep stats data/digits --extractor extractor --out stats.npz
    """
    from fewstep.interop.zoo import STATISTICS
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import build_reference, save_reference
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.recorded import record_dataset
    from fewstep.progress import track

    to_file = out.suffix == ".npz"
    if to_file and spec:
        raise ConfigError(f"--out must be a folder for a spec, got the file {out}.")
    if not to_file:
        require_result_folder(out, spec, {".npz"})
    network = load_extractor(extractor, device=chosen_device(device), backend=backend)
    heldout = "test" if stats.split == "train" else "train"
    reference = build_reference(
        data, network, split=stats.split, heldout=heldout, progress=track("stats", unit="batch")
    )
    reference.meta["dataset"]["files"] = record_dataset(data, beside=out.parent if to_file else out)
    baselines = _baselines(reference) if compact else None
    if to_file:
        save_reference(out, reference, baselines=baselines, compact=compact)
    else:
        with result_folder(out, spec) as folder:
            save_reference(folder / STATISTICS, reference, baselines=baselines, compact=compact)
    typer.echo(f"{out}: {network.id} features of {reference.meta['n']} images of the {stats.split} split")


def _baselines(reference: "Reference") -> "dict[int, Baseline]":
    """What real images score, which cannot be computed once their features are dropped."""
    from fewstep.metrics.baseline import real_baseline

    found = {n: real_baseline(reference, n) for n in _BASELINES}
    return {n: baseline for n, baseline in found.items() if baseline is not None}


STAGE = Stage(
    name="stats",
    command=command,
    makes="statistics",
    does="measure the reference images",
    settings=StatsSettings,
    inputs=lambda settings, nfe: {"data": "prepare", "extractor": extractor_of(settings)},
    applies=lambda settings, before: settings.model.zoo is None,
)
