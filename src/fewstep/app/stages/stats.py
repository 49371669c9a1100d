"""`fewstep stats`: the statistics of the reference images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.app.settings import StatsSettings
from fewstep.checks import ConfigError
from fewstep.files import require_file
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
    from fewstep.metrics.extractor import Extractor
    from fewstep.metrics.reference import Baseline, Reference

_BASELINES = (500, 1000, 2000, 5000, 10_000, 50_000)
"""Numbers of images that are compared in practice."""


@takes_settings()
def command(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="packed dataset, or statistics of another program (.npz, .pkl)"),
    ],
    extractor: MeasuredExtractorOption,
    out: Annotated[Path, typer.Option(help="statistics file to write (.npz), or a folder for it")],
    compact: Annotated[
        bool,
        typer.Option(
            "--compact", help="keep mean and covariance alone, rounded: small, for Fréchet distances"
        ),
    ] = False,
    n: Annotated[
        int | None,
        typer.Option(
            min=2, help="of how many images statistics of another program are, where they do not tell"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="dataset of statistics of another program, in certificates (default: the file's name)"
        ),
    ] = None,
    device: DeviceOption = "auto",
    backend: BackendOption = "torch",
    *,
    stats: StatsSettings,
    spec: Spec | None,
) -> None:
    """Measure the reference images that samples will be compared with, or import statistics of another program.

    Example: fewstep stats data/digits --extractor extractor --out stats.npz

    Mean and covariance of pytorch-fid, clean-fid, TTUR, ADM, EDM and EDM2 are taken as they are: you vouch for the
    extractor. They give Fréchet distances (fewstep evaluate --metrics fd), but neither KID, precision and recall, which
    need features, nor the distance of real images (baseline).

    Example: fewstep stats cifar10-32x32.npz --extractor inception2015 --n 50000 --name cifar10 --out stats.npz
    """
    from fewstep.interop.zoo import STATISTICS
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import save_reference
    from fewstep.pipeline.devices import chosen_device

    is_foreign = data.is_file()
    if not is_foreign and (n is not None or name is not None):
        raise ConfigError(
            f"--n and --name are for statistics of another program, a file, but {data} is none; leave them out."
        )
    to_file = out.suffix == ".npz"
    if to_file and spec:
        raise ConfigError(f"--out must be a folder for a spec, got the file {out}.")
    if to_file:
        require_file(out)
    else:
        require_result_folder(out, spec, {".npz"})
    network = load_extractor(extractor, device=chosen_device(device), backend=backend)
    beside = out.parent if to_file else out
    if is_foreign:
        reference = _imported(data, network, beside, name=name or data.stem, split=stats.split, n=n)
    else:
        reference = measured_reference(data, network, beside, split=stats.split)
    baselines = _baselines(reference) if compact else None
    if to_file:
        save_reference(out, reference, baselines=baselines, compact=compact)
    else:
        with result_folder(out, spec) as folder:
            save_reference(folder / STATISTICS, reference, baselines=baselines, compact=compact)
    of = reference.meta
    if is_foreign and reference.statistics.features is None:
        typer.echo(
            f"{out}: mean and covariance of {data} as {network.id} features of {of['n'] or 'an unknown number of'} "
            f"images of {of['dataset']['name']}; for Fréchet distances alone, without baseline: evaluate --metrics fd"
        )
    else:
        split = f"{of['dataset']['name']}" if is_foreign else f"the {stats.split} split"
        typer.echo(f"{out}: {network.id} features of {of['n']} images of {split}")


def measured_reference(data: Path, network: "Extractor", beside: Path, *, split: str) -> "Reference":
    """Statistics of a packed dataset through an extractor; its files are named as seen from the folder `beside`."""
    from fewstep.metrics.reference import build_reference
    from fewstep.pipeline.recorded import record_dataset
    from fewstep.progress import track

    heldout = "test" if split == "train" else "train"
    reference = build_reference(
        data, network, split=split, heldout=heldout, progress=track("stats", unit="batch")
    )
    reference.meta["dataset"]["files"] = record_dataset(data, beside=beside)
    return reference


def _imported(
    file: Path, network: "Extractor", beside: Path, *, name: str, split: str, n: int | None
) -> "Reference":
    """Statistics of another program; certificates name the file and its hash."""
    from fewstep.metrics.reference import import_reference
    from fewstep.pipeline.recorded import record

    reference = import_reference(file, network, name=name, split=split, n=n)
    reference.meta["dataset"]["files"] = record(file, beside=beside)
    return reference


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
