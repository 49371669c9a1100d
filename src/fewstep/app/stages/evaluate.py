"""`fewstep evaluate`: from images to certificates."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.app.settings import EvaluateSettings
from fewstep.checks import ConfigError
from fewstep.files import require_file
from fewstep.pipeline.parts import PATIENCE, parse_shard
from fewstep.pipeline.samples import files_in, require_distinct_names, stem_of
from fewstep.pipeline.stage import Stage, reported_features
from fewstep.pipeline.stage.options import (
    BackendOption,
    DeviceOption,
    MeasuredExtractorOption,
    ShardOption,
    takes_settings,
)
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder


@takes_settings(hide=("shards",))
def command(
    samples: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES...",
            help="samples files or other .npz or .npy of images, folders of them or of image files, packed datasets",
        ),
    ],
    reference: Annotated[Path, typer.Option(help="statistics file, from fewstep stats, or name in the zoo")],
    extractor: MeasuredExtractorOption,
    out: Annotated[Path, typer.Option(help="certificate (.json) for one set of images, folder for several")],
    fitted_reference: Annotated[
        Path | None,
        typer.Option(
            help="statistics of the same images in the features that plans were fitted in: their distance is stated "
            "beside"
        ),
    ] = None,
    fitted_extractor: Annotated[
        str | None, typer.Option(help="whose features these are; another one than --extractor")
    ] = None,
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

    An interrupted measurement resumes. With --shard K/N, or under torchrun, features are
    extracted by N workers that share the folder; the measurement without --shard then puts them together.

    Plans that were searched or aligned are ahead in the features that they were fitted in. Give these as --fitted-...,
    and as --extractor features that nothing was fitted to, by which reports then rank.

    Example: fewstep evaluate samples.npz --reference stats.npz --extractor extractor --out certificate.json
    """
    from fewstep.interop.zoo import find_reference
    from fewstep.metrics.certificate import write_certificate
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import load_reference
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.evaluation import Evaluation, MeasuredBy
    from fewstep.pipeline.features import FeatureStore
    from fewstep.pipeline.images import open_images
    from fewstep.progress import track
    from fewstep.train.world import joined

    paths = images_in(samples)
    to_folder = out.suffix != ".json"
    if not to_folder and len(paths) > 1:
        raise ConfigError(f"--out must be a folder for {len(paths)} sets of images, got the file {out}.")
    if not to_folder:
        require_file(out)
    if to_folder:
        require_distinct_names(paths)
        require_result_folder(out, spec, {".json"})
    if (fitted_reference is None) != (fitted_extractor is None):
        raise ConfigError(
            "--fitted-reference and --fitted-extractor must be given together; add the other, or leave out both."
        )
    reference = find_reference(reference, extractor)
    with joined(patience=PATIENCE) as world:
        chosen = chosen_device(device, local_rank=world.local_rank)
        network = load_extractor(extractor, device=chosen, backend=backend)
        statistics = load_reference(reference, extractor=network)
        store = FeatureStore(features or out.with_name(f".{out.name}.features"))
        fitted = None
        if fitted_reference is not None and fitted_extractor is not None:
            path = find_reference(fitted_reference, fitted_extractor)
            through = load_extractor(fitted_extractor, device=chosen)
            fitted = MeasuredBy(
                load_reference(path, extractor=through), path, through, Path(fitted_extractor)
            )
        evaluation = Evaluation(
            statistics,
            reference,
            Path(extractor),
            network,
            evaluate,
            protocol,
            store,
            evaluate.max_pixels,
            fitted,
        )
        mine = parse_shard(shard)
        several = len(paths) > 1
        sets = [open_images(path, max_pixels=evaluate.max_pixels) for path in paths]
        evaluation.require_preset(sets)
        evaluation.require_measurable(sets)
        for path in track("features", unit="set")(paths) if several else paths:
            for one in evaluation.extractors:
                store.make(
                    open_images(path, max_pixels=evaluate.max_pixels),
                    one,
                    mine,
                    track=None if several else track,
                )
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
    from fewstep.pipeline.images import arrays_in

    return [
        found for path in paths for found in (arrays_in(path) if path.is_dir() else files_in([path], ".npz"))
    ]


STAGE = Stage(
    name="evaluate",
    measures="fewstep.pipeline.report.measures",
    command=command,
    makes="certificates",
    does="measure the images",
    settings=EvaluateSettings,
    over="images",
    inputs=lambda settings, nfe: reported_features(settings),
)
