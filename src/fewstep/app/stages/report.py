"""`fewstep report`: the page, the tables and the figures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.nets import CARD, CURVE
from fewstep.pipeline.samples import files_in
from fewstep.pipeline.stage import MODEL, Every, Panels, Stage
from fewstep.pipeline.stage.options import takes_settings
from fewstep.pipeline.stage.spec import Spec, stamp

if TYPE_CHECKING:
    from fewstep.app.report.build import Shown


@takes_settings()
def command(
    certificates: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CERTIFICATE...", help="certificate files, or folders of them; none: the panels alone"
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="folder to write")],
    samples: Annotated[
        list[Path] | None, typer.Option(help="samples files or folders to show images of")
    ] = None,
    panel: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE=FOLDER", help="results of a stage to show, such as search=found"),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="model folder, for its card and training curve")] = None,
    run: Annotated[str, typer.Option(help="name in the title")] = "",
    spec: Spec | None,
) -> None:
    """Write the report: one HTML page, the leaderboard as CSV, and figures.

    Example: fewstep report certificates --samples samples --panel search=found --out report
    """
    from fewstep.app.report.build import build_panels, build_report
    from fewstep.interop.zoo import find

    shown = _panels(panel or [])
    run = spec.run if spec else run or out.resolve().name
    if certificates:
        folder = None if model is None else find(model)
        build_report(
            files_in(certificates, ".json"),
            files_in(samples or [], ".npz"),
            out,
            run=run,
            card=None if folder is None else folder / CARD,
            training=None if folder is None else folder / CURVE,
            panels=shown,
        )
    else:
        build_panels(out, run=run, panels=shown)
    if spec:
        stamp(spec, out)
    typer.echo(f"{out / 'index.html'}")


def _panels(given: Sequence[str]) -> "list[Shown]":
    """What to show, in the order of the stages.
    Raises: ConfigError: not STAGE=FOLDER, or no stage of that name has a panel.
    """
    from fewstep.app.report.build import Shown
    from fewstep.app.stages import STAGES

    modules = {stage.name: stage.panel for stage in STAGES if stage.panel is not None}
    folders: dict[str, list[Path]] = {name: [] for name in modules}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not folder or name not in modules:
            raise ConfigError(
                f"--panel must be STAGE=FOLDER, with a stage that the report shows, {', '.join(modules)}; got "
                f"{text!r}."
            )
        folders[name].append(Path(folder))
    return [Shown(name, modules[name], found) for name, found in folders.items() if found]


STAGE = Stage(
    name="report",
    command=command,
    makes="report",
    does="write the report",
    inputs=lambda settings, nfe: {
        "certificates": Every("certificates"),
        "samples": Every("images"),
        "panel": Panels(),
        "model": MODEL,
    },
    gpu=False,
)
