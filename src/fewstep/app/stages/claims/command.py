"""`fewstep claims`: from the results of finished runs to verdicts on what the papers claim."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.app.settings import ClaimsSettings
from fewstep.pipeline.stage.options import takes_settings
from fewstep.pipeline.stage.spec import STAMP, Spec, require_result_folder, result_folder

SUFFIXES = {".json", ".txt", ".png"}


@takes_settings(hide=("runs",))
def command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="folders of finished runs, such as results/digits-full"),
    ],
    out: Annotated[Path, typer.Option(help="folder to write")],
    *,
    claims: ClaimsSettings,
    spec: Spec | None,
) -> None:
    """Judge what the papers claim by the results of runs: holds, does not hold, undecided, or out of scale.

    A claim holds where the interval of what was measured lies on the side of the bound that it names.

    Example: fewstep claims results/digits-full --out board
    """
    from fewstep.app.stages import STAGES
    from fewstep.app.stages.claims.board import judged_papers, save_board

    require_result_folder(out, spec, SUFFIXES)
    papers = judged_papers({run.absolute().name: run for run in runs}, STAGES)
    with result_folder(out, spec) as folder:
        text = save_board(papers, folder)
    typer.echo(f"{text}\n{out / STAMP if spec else out}" if not spec else f"{out}: {len(papers)} papers")
