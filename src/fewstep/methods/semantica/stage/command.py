"""`fewstep semantica`: how a model varies images that it is shown."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.methods.semantica.stage.settings import SemanticaSettings
from fewstep.pipeline.conditions import with_conditions
from fewstep.pipeline.stage.options import (
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
    conditions: Annotated[Path, typer.Option(help="tokens of held-out images: OUT/report of fewstep encode")],
    extractor: MeasuredExtractorOption,
    out: Annotated[Path, typer.Option(help="folder to write")],
    pairs: Annotated[
        Path | None, typer.Option(help="pairs that the model was trained with, to show their audit")
    ] = None,
    device: DeviceOption = "auto",
    *,
    semantica: SemanticaSettings,
    spec: Spec | None,
) -> None:
    """Measure variations: whether they are of the image's class, how they differ, and few-shot distances by class.

    Example: fewstep semantica --model model --data data/digits --conditions tokens/report --extractor extractor
    --images 120 --out variations
    """
    from fewstep.interop.load import load_model
    from fewstep.methods.semantica.stage.run import Varying, save
    from fewstep.metrics.extractor import load_extractor
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track

    if semantica.images < 2:
        raise ConfigError(f"--images must be at least 2, the images to vary; got {semantica.images}.")
    require_result_folder(out, spec, {".json", ".png"})
    network = load_extractor(extractor, device=chosen_device(device))
    loaded = with_conditions(load_model(model, device=chosen_device(device)), conditions)
    varying = Varying(loaded, data, conditions, network, semantica, pairs)
    record, pictures = varying.all(track)
    with result_folder(out, spec) as folder:
        save(record, pictures, folder)
    typer.echo(
        f"{out}: {semantica.variations} variations of each of {record['protocol']['conditions']} images"
    )
