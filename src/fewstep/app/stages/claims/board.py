"""The board as files: `claims.json` with all that a verdict depends on, a table as text, and the figures behind it."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.checks import ConfigError, DataError
from fewstep.files import object_or_empty, read_json, write_json
from fewstep.pipeline.claims import FILE, Judged, Paper, judge, papers, read_paper, require_metrics
from fewstep.pipeline.report.numbers import number
from fewstep.pipeline.stage.spec import STAMP
from fewstep.pipeline.stage.stages import Stages

SCHEMA = "fewstep.claims/1"
RECORD, TABLE = "claims.json", "board.txt"


@dataclass(frozen=True)
class JudgedPaper:
    """A paper with its judged claims, the keys of the results that they were judged by, and the figures behind them."""

    folder: str
    paper: Paper
    claims: Sequence[Judged]
    keys: Mapping[str, str]
    figures: Mapping[str, Path]


def judged_papers(runs: Mapping[str, Path], stages: Stages) -> list[JudgedPaper]:
    """Read and judge the claims of all papers.

    Args:
        runs: folders of the results of finished runs, by name.
        stages: all stages, of which claims name some.

    Raises:
        ConfigError: a claim is not whole, or about a run that is not among these.
        DataError: a result is missing or damaged.
    """
    for name, results in runs.items():
        if not (results / "evaluate").is_dir():
            raise DataError(
                f"{results} must be the folder of a finished run, with its results, but there is none; run make "
                f"run RUN={name}"
            )
    read = {folder: read_paper(folder) for folder in papers()}
    for folder, paper in read.items():
        require_metrics(paper, stages, name=f"methods/{folder}/{FILE}")
        for claim in paper.claims:
            if claim.run is not None and claim.run not in runs:
                raise ConfigError(
                    f"claims must be about runs that are given, {', '.join(runs)}; {claim.name} of {folder} is about "
                    f"{claim.run}; add results/{claim.run}"
                )
    return [_judged(folder, paper, runs, stages) for folder, paper in read.items()]


def _judged(folder: str, paper: Paper, runs: Mapping[str, Path], stages: Stages) -> JudgedPaper:
    judged, keys, figures = [], {}, {}
    for claim in paper.claims:
        results = runs[claim.run] if claim.run is not None else Path()
        judged.append(judge(claim, results, stages))
        if claim.run is not None:
            keys[claim.run] = str(object_or_empty(results / "report" / STAMP).get("key", ""))
        if claim.figure is not None:
            figure = results / "report" / "figures" / f"{claim.figure}.png"
            if not figure.is_file():
                raise DataError(
                    f"{figure} must be a figure of the report, as claim {claim.name} shows it, but it is not there"
                )
            figures[claim.name] = figure
    return JudgedPaper(folder, paper, judged, keys, figures)


def save_board(judged: Sequence[JudgedPaper], folder: Path) -> str:
    """Write the board into a folder, and return its table as text."""
    record = {"schema": SCHEMA, "papers": [_record(paper) for paper in judged]}
    write_json(folder / RECORD, record)
    for paper in judged:
        for name, figure in paper.figures.items():
            shutil.copyfile(figure, folder / f"{paper.folder}-{name}.png")
    text = _table(record)
    (folder / TABLE).write_text(text, encoding="utf-8")
    return text


def read_board(folder: Path) -> dict[str, Any]:
    """The content of `claims.json`.
    Raises: DataError: it is missing, damaged or of another program.
    """
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise DataError(
            f"{folder / RECORD} must be a board of claims ({SCHEMA}); make it with fewstep claims."
        )
    return record


def _record(paper: JudgedPaper) -> dict[str, Any]:
    return {
        "folder": paper.folder,
        "title": paper.paper.title,
        "cite": paper.paper.cite,
        "link": paper.paper.link,
        "runs": dict(paper.keys),
        "claims": [
            one.claim.model_dump(mode="json", exclude_none=True)
            | {
                "verdict": one.verdict,
                "measurements": [
                    {name: _finite(value) for name, value in measured._asdict().items()}
                    | {"verdict": verdict}
                    for measured, verdict in zip(one.measurements, one.verdicts, strict=True)
                ],
            }
            for one in paper.claims
        ],
    }


def _finite(value: Any) -> Any:
    """None for what is no number, or a bound that is none, for which JSON has no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(record: Mapping[str, Any]) -> str:
    """A line for each claim, its measurements below it."""
    lines = []
    for paper in record["papers"]:
        lines.append(f"{paper['title']} ({paper['cite']})")
        for claim in paper["claims"]:
            lines.append(f"  {claim['verdict']:<14}  {claim['says']}")
            lines.append(f"  {'':<14}  paper: {claim['number']}")
            lines += [
                f"  {'':<14}  here: {spelled(one, claim.get('unit', ''))}, {one['what']}"
                for one in claim["measurements"]
            ]
    return "\n".join(lines) + "\n"


def spelled(one: Mapping[str, Any], unit: str = "") -> str:
    """`0.61 [0.52, 0.70]`, with its unit; `open` where nothing could be measured."""
    if one["value"] is None:
        return "open"
    value, low, high = ("∞" if one[name] is None else number(one[name]) for name in ("value", "low", "high"))
    return f"{value if low == high else f'{value} [{low}, {high}]'} {unit}".strip()
