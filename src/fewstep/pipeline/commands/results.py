"""`fewstep report`, `leaderboard`, `track`: results for people."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.files import write_json
from fewstep.pipeline.config import TrackingSettings
from fewstep.pipeline.options import takes_settings
from fewstep.pipeline.samples import files_in
from fewstep.pipeline.specs import Spec, stamp

Certificates = Annotated[
    list[Path], typer.Argument(metavar="CERTIFICATE...", help="certificate files, or folders of them")
]


@takes_settings()
def report(
    certificates: Certificates,
    out: Annotated[Path, typer.Option(help="folder to write")],
    samples: Annotated[
        list[Path] | None, typer.Option(help="samples files or folders to show images of")
    ] = None,
    search: Annotated[
        list[Path] | None, typer.Option(help="folder of fewstep search, to show how plans were found")
    ] = None,
    composed: Annotated[
        Path | None, typer.Option(help="folder of fewstep compose, to show quality against time")
    ] = None,
    detection: Annotated[
        Path | None, typer.Option(help="folder of fewstep detect, to show what tells images apart")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="model folder, for its card and training curve")] = None,
    run: Annotated[str, typer.Option(help="name in the title")] = "",
    *,
    spec: Spec | None,
) -> None:
    """Write the report: one HTML page, the leaderboard as CSV, and figures.

    Example: fewstep report eval/nfe4 eval/nfe8 --samples samples/nfe8 --out report
    """
    from fewstep.interop.zoo import find
    from fewstep.pipeline.report import build_report

    folder = None if model is None else find(model)

    build_report(
        files_in(certificates, ".json"),
        files_in(samples or [], ".npz"),
        out,
        run=spec.run if spec else run or out.resolve().name,
        card=None if folder is None else folder / "card.json",
        training=None if folder is None else folder / "metrics.jsonl",
        searches=search or [],
        composed=composed,
        detection=detection,
    )
    if spec:
        stamp(spec, out)
    typer.echo(f"{out / 'index.html'}")


def leaderboard(
    certificates: Certificates,
    top: Annotated[int, typer.Option(min=0, help="rows per number of calls; 0 shows all")] = 3,
    nfe: Annotated[int | None, typer.Option(help="show this number of calls alone")] = None,
) -> None:
    """Print the best samplers at each number of network calls.

    Example: fewstep leaderboard results/digits/eval/*
    """
    from fewstep.pipeline.report import print_leaderboard, read_results

    print_leaderboard(read_results(files_in(certificates, ".json")), top=top or None, nfe=nfe)


@takes_settings()
def track(
    run: Annotated[str, typer.Argument(help="run whose results stand in results/RUN")],
    out: Annotated[Path, typer.Option(help="JSON file that says what was written where")],
    *,
    tracking: TrackingSettings,
    spec: Spec | None,
) -> None:
    """Show finished results in MLflow; what is already there is left alone.

    Example: fewstep track digits --out state/digits/tracked.json
    """
    from fewstep.pipeline.environment import git_commit
    from fewstep.pipeline.tracking import track_run, tracking_uri

    done = track_run(run, uri=tracking_uri(tracking.uri), commit=git_commit())
    write_json(out, {**done, "spec_key": spec.key if spec else None})
    typer.echo(f"{out}: {done}")
