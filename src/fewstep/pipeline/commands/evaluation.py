"""`fewstep stats` and `evaluate`: from images to certificates."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.checks import ConfigError
from fewstep.files import atomic_dir, sha256_file
from fewstep.pipeline.config import EvaluateSettings, StatsSettings
from fewstep.pipeline.options import DeviceOption, takes_settings
from fewstep.pipeline.samples import files_in, read_samples
from fewstep.pipeline.specs import Spec, stamp

if TYPE_CHECKING:
    from fewstep.metrics.extractor import Extractor
    from fewstep.metrics.reference import Reference

ExtractorOption = Annotated[
    str,
    typer.Option(help="effnet-lite0-p320, effnet-lite0-h1280, inception2015, or the folder of a classifier"),
]


@takes_settings()
def stats(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="packed dataset")],
    extractor: ExtractorOption,
    out: Annotated[Path, typer.Option(help="statistics file to write (.npz)")],
    device: DeviceOption = "auto",
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

    network = load_extractor(extractor, device=chosen_device(device))
    heldout = "test" if stats.split == "train" else "train"
    reference = build_reference(
        data, network, split=stats.split, heldout=heldout, progress=track("stats", unit="batch")
    )
    save_reference(out, reference)
    if spec:
        stamp(spec, out.parent)
    typer.echo(f"{out}: {network.id} features of {reference.meta['n']} images of the {stats.split} split")


@takes_settings()
def evaluate(
    samples: Annotated[
        list[Path], typer.Argument(metavar="SAMPLES...", help="samples files (.npz), or folders of them")
    ],
    reference: Annotated[Path, typer.Option(help="statistics file, from fewstep stats")],
    extractor: ExtractorOption,
    out: Annotated[Path, typer.Option(help="certificate (.json) for one samples file, folder for several")],
    device: DeviceOption = "auto",
    *,
    evaluate: EvaluateSettings,
    spec: Spec | None,
) -> None:
    """Measure samples and write a certificate for each: numbers, intervals, and all that they depend on.

    Example: fewstep evaluate samples.npz --reference stats.npz --extractor extractor --out certificate.json
    """
    from fewstep.metrics.certificate import write_certificate
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import load_reference
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track

    files = files_in(samples, ".npz")
    network = load_extractor(extractor, device=chosen_device(device))
    statistics = load_reference(reference, extractor=network)
    to_folder = out.suffix != ".json"
    if not to_folder:
        if len(files) > 1:
            raise ConfigError(f"--out must be a folder for {len(files)} samples files, got the file {out}.")
        write_certificate(out, _certificate(files[0], statistics, network, evaluate, spec))
    else:
        with atomic_dir(out) as folder:
            for path in track("evaluate", unit="plan")(files):
                certificate = _certificate(path, statistics, network, evaluate, spec)
                write_certificate(folder / f"{path.stem}.json", certificate)
            if spec:
                stamp(spec, folder)
    typer.echo(f"{out}: {len(files)} certificates")


def _certificate(
    path: Path, reference: "Reference", extractor: "Extractor", settings: EvaluateSettings, spec: Spec | None
) -> dict[str, Any]:
    from fewstep.metrics.certificate import build_certificate
    from fewstep.metrics.evaluate import evaluate_samples
    from fewstep.pipeline.environment import environment

    samples = read_samples(path)
    meta = samples.meta
    results = evaluate_samples(
        samples.images,
        reference,
        extractor,
        metrics=settings.metrics,
        level=settings.level,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    made_by = meta["plan"]["provenance"]
    dataset = reference.meta["dataset"]
    return build_certificate(
        model={"fingerprint": meta["model"]["fingerprint"], "name": meta["model"]["name"]},
        plan={
            "hash": meta["plan_hash"],
            "name": meta["plan_name"],
            "sampler": made_by.get("sampler") or made_by.get("preset") or meta["plan_name"],
            "grid": made_by.get("grid", ""),
            "nfe": meta["nfe"],
        },
        data={"name": dataset["name"], "fingerprint": dataset["fingerprint"]},
        n=len(samples.images),
        seeds=meta["seeds"],
        reference=reference.protocol,
        extractor=extractor.protocol,
        results=results,
        costs=meta["costs"],
        environment=environment(),
        samples_sha256=sha256_file(path),
        dtype=meta["dtype"],
        ema=meta["model"]["ema"],
        spec_key=spec.key if spec else None,
    )
