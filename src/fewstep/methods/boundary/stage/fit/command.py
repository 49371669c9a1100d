"""`fewstep boundary fit`: find the planes between images with an attribute and others."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.methods.boundary.stage.fit.settings import BoundarySettings
from fewstep.pipeline.stage.options import DeviceOption, ModelOption, takes_settings
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder


@takes_settings()
def command(
    model: ModelOption,
    data: Annotated[Path, typer.Option(help="packed dataset, whose training images are inverted")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    do: Annotated[str, typer.Argument(metavar="fit", help="what to do")] = "fit",
    plan: Annotated[
        Path | None,
        typer.Option(
            help="plan of order 1, whose times up to the mixing step are used (default: --calls uniform ones)"
        ),
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            help="with which edits are judged where the attribute is not measured of pixels: an extractor by name, or "
            "the folder of a classifier"
        ),
    ] = None,
    device: DeviceOption = "auto",
    *,
    boundary: BoundarySettings,
    spec: Spec | None,
) -> None:
    """Fit the boundaries of attributes in the states of a frozen model, at a mixing step that is found.

    Example: fewstep boundary fit --model model --data data/digits --attribute 3/8 --extractor extractor --out found
    """
    from fewstep.interop.load import load_model
    from fewstep.methods.boundary.stage.fit.run import Fitting, save
    from fewstep.metrics.extractor import load_extractor
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track
    from fewstep.sampling.plan import load_plan

    if do != "fit":
        raise ConfigError(f"What to do must be fit; got {do}.")
    if not boundary.attribute:
        raise ConfigError(
            "--attribute must name what to find boundaries of, such as 3/8 or brightness; got none."
        )
    require_result_folder(out, spec, {".json", ".npz"})
    chosen = chosen_device(device)
    fitting = Fitting(
        load_model(model, device=chosen),
        data,
        boundary,
        None if extractor is None else load_extractor(extractor, device=chosen),
        None if plan is None else load_plan(plan),
    )
    record, boundaries = fitting.all(track)
    with result_folder(out, spec) as folder:
        save(record, boundaries, folder)
    typer.echo(f"{out}: {', '.join(boundaries)} at the step {record['chosen']['t']:.3g}")
