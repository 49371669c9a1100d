"""`fewstep leaderboard`: the best samplers in the terminal."""

from typing import Annotated

import typer

from fewstep.pipeline.samples import files_in
from fewstep.pipeline.stage.options import CertificatesArgument


def leaderboard(
    certificates: CertificatesArgument,
    top: Annotated[int, typer.Option(min=0, help="rows per number of calls; 0 shows all")] = 3,
    nfe: Annotated[int | None, typer.Option(help="show this number of calls alone")] = None,
) -> None:
    """Print the best samplers at each number of network calls.

    Example: fewstep leaderboard results/digits/evaluate
    """
    from fewstep.app.report.terminal import print_leaderboard
    from fewstep.pipeline.report.results import read_results

    print_leaderboard(read_results(files_in(certificates, ".json")), top=top or None, nfe=nfe)
