"""`fewstep vitgan`: a generator of transformers without one of its parts at a time."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.files import write_json
from fewstep.methods.vitgan.stage.settings import VitganSettings
from fewstep.pipeline.gan.settings import GanSettings
from fewstep.pipeline.stage.options import DeviceOption, StudyOption, takes_settings
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder

RECORD, TRAININGS, CURVES = "vitgan.json", "trainings.csv", "curves.csv"

_FIRST_SEED = 1_800_000_000


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
    gan: GanSettings,
    vitgan: VitganSettings,
    spec: Spec | None,
) -> None:
    """Train a generator of transformers whole and without one of its parts at a time, from several seeds each.

    Example: fewstep vitgan --network vitgan --variants "full,dot products" --data data/digits --reference stats.npz
    --extractor extractor --out ablations
    """
    from fewstep.data.packed import load_dataset
    from fewstep.methods.vitgan.jacobian import KINDS, SCALES, norms
    from fewstep.methods.vitgan.variants import VARIANTS
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.gan.comparison import Comparison, curves, summary, table
    from fewstep.pipeline.gan.monitor import measure_by
    from fewstep.pipeline.gan.training import untrained
    from fewstep.progress import track

    if not vitgan.variants or gan.network != "vitgan":
        raise ConfigError(
            f"--network must be vitgan, and --variants name some of {', '.join(VARIANTS)}; got {gan.network} and "
            f"{', '.join(vitgan.variants) or 'none'}."
        )
    require_result_folder(out, spec, {".json", ".csv"})
    dataset = load_dataset(data, "train")
    chosen_settings = {
        (name, seed): GanSettings.model_validate(
            gan.model_dump()
            | {"steps": vitgan.variant_steps, "probe_images": vitgan.variant_images, "seed": seed}
            | VARIANTS[name]
        )
        for seed in range(gan.seed, gan.seed + vitgan.variant_seeds)
        for name in vitgan.variants
    }
    for settings in chosen_settings.values():
        untrained(settings, dataset.shape)
    chosen = chosen_device(device, exact=False)
    measure = measure_by(extractor, reference, dataset.shape, chosen)
    kept = study or out.with_name(f"{out.name}.study")
    kept = kept / spec.key if spec else kept
    kept.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(dataset, measure, kept, vitgan.variant_images, chosen, _FIRST_SEED, track)
    outcomes = [comparison.train(name, settings) for (name, _), settings in chosen_settings.items()]
    trainings = table(outcomes)
    record = {
        "settings": {"gan": gan.model_dump(mode="json"), "vitgan": vitgan.model_dump(mode="json")},
        "jacobian": {
            "scales": list(SCALES),
            **{kind: [norms(kind, seed) for seed in range(vitgan.variant_seeds)] for kind in KINDS},
        },
    }
    with result_folder(out, spec) as folder:
        write_json(folder / RECORD, record)
        trainings.to_csv(folder / TRAININGS, index=False, lineterminator="\n")
        curves(outcomes).to_csv(folder / CURVES, index=False, lineterminator="\n")
    for row in summary(trainings):
        typer.echo(f"{row['arm']}: FD {row['fd']:.4g} ({row['low']:.4g} to {row['high']:.4g})", err=True)
    typer.echo(f"{out}: {len(vitgan.variants)} variants, {vitgan.variant_seeds} trainings each")
