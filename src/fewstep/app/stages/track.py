"""`fewstep track`: finished results in MLflow."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.app.settings import TrackSettings
from fewstep.files import atomic_dir, write_json
from fewstep.pipeline.stage import Stage
from fewstep.pipeline.stage.options import takes_settings
from fewstep.pipeline.stage.spec import Spec, stamp

RECORD = "tracked.json"


@takes_settings(hide=("live",))
def command(
    run: Annotated[str, typer.Argument(help="run whose results stand in results/RUN")],
    out: Annotated[Path, typer.Option(help=f"folder to write; {RECORD} says what was written where")],
    *,
    track: TrackSettings,
    spec: Spec | None,
) -> None:
    """Show finished results in MLflow; what is already there is left alone.

    Example: fewstep track digits --out state/digits/track
    """
    from fewstep.app.stages import STAGES
    from fewstep.app.tracking import track_run, tracking_uri
    from fewstep.pipeline.environment import git_commit

    done = track_run(run, stages=STAGES, uri=tracking_uri(track.uri), commit=git_commit())
    with atomic_dir(out) as folder:
        write_json(folder / RECORD, done)
        if spec:
            stamp(spec, folder)
    typer.echo(f"{out}: {done}")


STAGE = Stage(
    name="track",
    command=command,
    makes="numbers",
    does="show the results in MLflow",
    settings=TrackSettings,
    inputs=lambda settings, nfe: {"run": "report"},
    gpu=False,
    root="state",
)
