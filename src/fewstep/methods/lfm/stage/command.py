"""`fewstep lfm`: what a model of latent flow matching does at few steps, with guidance, with masks and with maps."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.methods.lfm.stage.settings import LfmSettings
from fewstep.pipeline.conditions import with_conditions
from fewstep.pipeline.stage.options import (
    ConditionsOption,
    DeviceOption,
    MeasuredExtractorOption,
    ModelOption,
    takes_settings,
)
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder


@takes_settings()
def command(
    model: ModelOption,
    data: Annotated[Path, typer.Option(help="packed dataset of the images")],
    reference: Annotated[Path, typer.Option(help="statistics, from fewstep stats, or a name in the zoo")],
    extractor: MeasuredExtractorOption,
    out: Annotated[Path, typer.Option(help="folder to write")],
    latents: Annotated[
        Path | None, typer.Option(help="latents that the model was trained on, for the pieces of the bound")
    ] = None,
    maps: Annotated[
        Path | None, typer.Option(help="result of fewstep maps, whose rows to report on are --conditions")
    ] = None,
    conditions: ConditionsOption = None,
    device: DeviceOption = "auto",
    *,
    lfm: LfmSettings,
    spec: Spec | None,
) -> None:
    """Measure distances by steps and by guidance, inpainting or maps, and the pieces of the bound.

    Example: fewstep lfm --model model --data data/digits --reference stats.npz --extractor extractor --images 1000
    --out lfm
    """
    from fewstep.interop.load import load_model
    from fewstep.interop.zoo import find_reference
    from fewstep.methods.lfm.stage.run import Measuring, save
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import load_reference
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track

    require_result_folder(out, spec, {".json", ".png"})
    network = load_extractor(extractor, device=chosen_device(device))
    loaded = with_conditions(load_model(model, device=chosen_device(device)), conditions)
    measuring = Measuring(
        loaded,
        data,
        load_reference(find_reference(reference, network.id), extractor=network),
        network,
        lfm,
        latents=latents,
        maps=maps,
        autoencoder=model,
    )
    record, pictures = measuring.all(track)
    with result_folder(out, spec) as folder:
        save(record, pictures, folder)
    typer.echo(f"{out}: {len(record['results'])} distances of {lfm.images} images each")
