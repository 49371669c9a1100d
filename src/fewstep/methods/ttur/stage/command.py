"""`fewstep disturb`: how far disturbed real images are from the reference, level by level."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.methods.ttur.stage.settings import DisturbSettings
from fewstep.pipeline.stage.options import DeviceOption, MeasuredExtractorOption, takes_settings
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder


@takes_settings()
def command(
    data: Annotated[Path, typer.Option(help="packed dataset; its held-out images are disturbed")],
    reference: Annotated[Path, typer.Option(help="statistics, from fewstep stats, or a name in the zoo")],
    extractor: MeasuredExtractorOption,
    out: Annotated[Path, typer.Option(help="folder to write")],
    device: DeviceOption = "auto",
    *,
    disturb: DisturbSettings,
    spec: Spec | None,
) -> None:
    """Measure the distance of real images that are disturbed: noise, blur, rectangles, swirl, salt and pepper.

    A distance that is to be trusted rises with each level of each disturbance.

    Example: fewstep disturb --data data/digits --reference stats.npz --extractor extractor --out disturbed
    """
    from fewstep.interop.zoo import find_reference
    from fewstep.methods.ttur.stage.run import measure, save
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import load_reference
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track

    require_result_folder(out, spec, {".json", ".png"})
    network = load_extractor(extractor, device=chosen_device(device))
    found = measure(
        data,
        load_reference(find_reference(reference, network.id), extractor=network),
        network,
        disturb,
        track=track,
    )
    with result_folder(out, spec) as folder:
        save(found, folder)
    typer.echo(f"{out}: {found.record['protocol']['n']} images, {len(found.record['results'])} distances")
