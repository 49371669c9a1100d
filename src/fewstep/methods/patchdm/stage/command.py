"""`fewstep enlarge`: images larger than those that a model of patches was trained on, and a measurement of seams."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.methods.patchdm.stage.settings import EnlargeSettings
from fewstep.pipeline.conditions import with_conditions
from fewstep.pipeline.stage.options import ConditionsOption, DeviceOption, ModelOption, takes_settings
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder


@takes_settings()
def command(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="folder to write")],
    plan: Annotated[
        list[Path], typer.Option(help="plan file; of a measurement also several, or folders of them")
    ],
    data: Annotated[
        Path | None, typer.Option(help="to measure seams, too: packed dataset of the images of training")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="with --data: statistics, from fewstep stats, or a name in the zoo")
    ] = None,
    extractor: Annotated[
        str | None, typer.Option(help="with --data: an extractor by name, or the folder of a classifier")
    ] = None,
    conditions: ConditionsOption = None,
    device: DeviceOption = "auto",
    *,
    enlarge: EnlargeSettings,
    spec: Spec | None,
) -> None:
    """Draw images of any number of patches, by a model that was trained on patches (train --objective patchdm).

    Example: fewstep enlarge --model patches --plan plan.json --size 16x64,32x32 --out larger
    Measure: fewstep enlarge --model patches --plan plans --size 16x64 --data data/digits --images 500 --reference
    stats.npz --extractor extractor --out enlarge
    """
    from fewstep.interop.load import load_model
    from fewstep.methods.patchdm.stage.run import Enlarging, Measured, chosen_plans, files, save
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track

    require_result_folder(out, spec, {".json", ".png"})
    if data is None and not enlarge.size:
        raise ConfigError("--size must name a size or more, height x width, such as 16x64; got none.")
    plans = chosen_plans(plan, enlarge.match)
    if data is None and len(plans) != 1:
        raise ConfigError(
            f"Without --data images are drawn by one plan; got {len(plans)}; choose with --match."
        )
    place = chosen_device(device)
    loaded = with_conditions(load_model(model, device=place), conditions)
    measured = None
    if data is not None:
        from fewstep.interop.zoo import find_reference
        from fewstep.metrics.extractor import load_extractor
        from fewstep.metrics.reference import load_reference

        if reference is None or extractor is None:
            raise ConfigError("With --data there must be --reference and --extractor.")
        if enlarge.images < 4:
            raise ConfigError(f"--images must be 4 or more, to be measured; got {enlarge.images}.")
        network = load_extractor(extractor, device=place)
        measured = Measured(data, load_reference(find_reference(reference), extractor=network), network)
    record, images, sheets = Enlarging(loaded, plans, enlarge, measured).all(track)
    with result_folder(out, spec) as folder:
        save(record, files(images, sheets, enlarge.seed), folder)
    said = [f"{len(drawn)} images of {size}" for size, drawn in images.items()]
    said += [] if measured is None else [f"{len(record['results'])} measurements of {enlarge.images} images"]
    typer.echo(f"{out}: {', '.join(said)}")
