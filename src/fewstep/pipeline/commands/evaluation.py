"""`fewstep stats` and `evaluate`: from images to certificates."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.pipeline.config import EvaluateSettings, StatsSettings
from fewstep.pipeline.features import FeatureStore
from fewstep.pipeline.images import arrays_in, open_images
from fewstep.pipeline.options import DeviceOption, takes_settings
from fewstep.pipeline.parts import PATIENCE, parse_shard
from fewstep.pipeline.recorded import record_dataset
from fewstep.pipeline.samples import files_in, require_distinct_names, stem_of
from fewstep.pipeline.specs import Spec, require_result_folder, result_folder, stamp

if TYPE_CHECKING:
    from fewstep.metrics.evaluate import Baseline
    from fewstep.metrics.reference import Reference

ExtractorOption = Annotated[
    str,
    typer.Option(help="effnet-lite0-p320, effnet-lite0-h1280, inception2015, or the folder of a classifier"),
]

BackendOption = Annotated[str, typer.Option(help="torch, or openvino on a CPU; the metrics' names say which")]
ShardOption = Annotated[
    str | None,
    typer.Option(metavar="K/N", help="do the share of worker K of N alone, and put nothing together"),
]

_BASELINES = (500, 1000, 2000, 5000, 10_000, 50_000)
"""Numbers of images that are compared in practice."""


@takes_settings()
def stats(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="packed dataset")],
    extractor: ExtractorOption,
    out: Annotated[Path, typer.Option(help="statistics file to write (.npz)")],
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
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import build_reference, save_reference
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track

    network = load_extractor(extractor, device=chosen_device(device), backend=backend)
    heldout = "test" if stats.split == "train" else "train"
    reference = build_reference(
        data, network, split=stats.split, heldout=heldout, progress=track("stats", unit="batch")
    )
    reference.meta["dataset"]["files"] = record_dataset(data, beside=out.parent)
    save_reference(out, reference, baselines=_baselines(reference) if compact else None, compact=compact)
    if spec:
        stamp(spec, out.parent)
    typer.echo(f"{out}: {network.id} features of {reference.meta['n']} images of the {stats.split} split")


def _baselines(reference: "Reference") -> "dict[int, Baseline]":
    """What real images score, which cannot be told any more once their features are dropped."""
    from fewstep.metrics.evaluate import real_baseline

    found = {n: real_baseline(reference, n) for n in _BASELINES}
    return {n: baseline for n, baseline in found.items() if baseline is not None}


@takes_settings()
def evaluate(
    samples: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES...",
            help="samples files or other .npz or .npy of images, folders of them or of image files, packed datasets",
        ),
    ],
    reference: Annotated[Path, typer.Option(help="statistics file, from fewstep stats, or name in the zoo")],
    extractor: ExtractorOption,
    out: Annotated[Path, typer.Option(help="certificate (.json) for one set of images, folder for several")],
    features: Annotated[
        Path | None, typer.Option(help="folder in which to keep features; fewstep verify reads them, too")
    ] = None,
    shard: ShardOption = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="published protocol that the measurement must keep to, of fewstep protocols"),
    ] = None,
    device: DeviceOption = "auto",
    backend: BackendOption = "torch",
    *,
    evaluate: EvaluateSettings,
    spec: Spec | None,
) -> None:
    """Measure images and write a certificate for each set: numbers, intervals, and all that they depend on.

    What was measured before an interruption is not measured again. With --shard K/N, or under torchrun, features are
    extracted by N workers that share the folder; the measurement without --shard then puts them together.

    Example: fewstep evaluate samples.npz --reference stats.npz --extractor extractor --out certificate.json
    """
    from fewstep.interop.zoo import find_reference
    from fewstep.metrics.certificate import write_certificate
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import load_reference
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.evaluation import Evaluation
    from fewstep.progress import track
    from fewstep.train.world import joined

    paths = images_in(samples)
    to_folder = out.suffix != ".json"
    if not to_folder and len(paths) > 1:
        raise ConfigError(f"--out must be a folder for {len(paths)} sets of images, got the file {out}.")
    if to_folder:
        require_distinct_names(paths)
        require_result_folder(out, spec, {".json"})
    reference = find_reference(reference)
    with joined(patience=PATIENCE) as world:
        chosen = chosen_device(device, local_rank=world.local_rank)
        network = load_extractor(extractor, device=chosen, backend=backend)
        statistics = load_reference(reference, extractor=network)
        store = FeatureStore(features or out.with_name(f".{out.name}.features"))
        evaluation = Evaluation(statistics, reference, Path(extractor), network, evaluate, protocol, store)
        mine = parse_shard(shard)
        several = len(paths) > 1
        sets = [open_images(path) for path in paths]
        evaluation.require_preset(sets)
        evaluation.require_measurable(sets)
        for path in track("features", unit="set")(paths) if several else paths:
            store.make(open_images(path), network, mine, track=None if several else track)
        world.wait()
        if shard is not None or not world.leads:
            typer.echo(
                f"{store.folder}: features of {len(paths)} sets, shard {mine.index + 1} of {mine.count}"
            )
            return
    if not to_folder:
        write_certificate(out, evaluation.certificate(paths[0], out.parent, spec))
    else:
        with result_folder(out, spec) as folder:
            for path in track("evaluate", unit="set")(paths):
                write_certificate(folder / f"{stem_of(path)}.json", evaluation.certificate(path, out, spec))
    if features is None:
        store.drop()
    typer.echo(f"{out}: {len(paths)} certificates")


def images_in(paths: list[Path]) -> list[Path]:
    """The sets of images that are meant: those named, and the arrays in named folders that hold such files."""
    return [
        found for path in paths for found in (arrays_in(path) if path.is_dir() else files_in([path], ".npz"))
    ]
