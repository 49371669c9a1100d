"""A board: a run that makes nothing but verdicts on what other runs made."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from fewstep.app.keys import make_specs
from fewstep.app.params import Settings, parse_params
from fewstep.app.stages import STAGES
from fewstep.app.stages.claims.board import JudgedPaper, judged_papers, save_board
from fewstep.app.stages.claims.panel import panel
from fewstep.checks import ConfigError, DataError
from fewstep.pipeline import claims
from fewstep.pipeline.claims import Criterion, Judged, Measurement
from fewstep.pipeline.stage.settings import RunSettings

PAPERS = claims.papers()
NEEDED = sorted({c.run for p in PAPERS for c in claims.read_paper(p).claims if c.run is not None})


def runs(**train: Any) -> dict[str, RunSettings]:
    return {
        "digits": Settings.model_validate({"train": train}),
        "papers": Settings.model_validate({"claims": {"runs": ["digits"]}}),
    }


def test_a_board_makes_verdicts_and_shows_them() -> None:
    board = runs()["papers"]
    assert [result.place for result in STAGES.results(board)] == ["claims", "report", "track"]
    [judged, page, _] = STAGES.results(board)
    assert STAGES.words(judged, "papers", board) == [
        "claims",
        "results/digits",
        "--out",
        "results/papers/claims",
    ]
    assert STAGES.stamps(judged, "papers", board) == {"runs": ["results/digits/report/spec.json"]}
    assert "--panel" in STAGES.words(page, "papers", board)
    assert "claims" not in {stage.name for stage in STAGES.in_run(runs()["digits"])}


def test_a_verdict_depends_on_what_the_other_run_was_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_specs("papers", runs())
    assert set(first) == {"claims", "report", "track"}
    assert set(first["claims"].upstream) == {"../digits/report"}
    assert make_specs("papers", runs(steps=7))["report"].key != first["report"].key
    monkeypatch.setattr("fewstep.app.stages.claims.claims_hash", lambda: "other")
    assert make_specs("papers", runs())["claims"].key != first["claims"].key


def mistakes(content: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_params({"dvc_runs": [], "runs": content})
    return str(caught.value)


def test_runs_that_a_board_cannot_read_are_one_sentence() -> None:
    board = {"claims": {"runs": ["digit"]}}
    assert mistakes({"digits": {}, "papers": board}) == (
        "params.yaml: runs.papers.claims.runs: must be runs that make results, digits; got 'digit'"
    )
    assert "must be runs that make results, digits; got 'other'" in mistakes(
        {"digits": {}, "papers": {"claims": {"runs": ["other"]}}, "other": {"claims": {"runs": ["papers"]}}}
    )


def test_a_claim_about_what_no_run_makes_is_one_sentence() -> None:
    name = NEEDED[0]
    others = {other: {} for other in NEEDED}
    said = mistakes({**others, "papers": {"claims": {"runs": NEEDED}}})
    assert f"which run {name} does not make" in said or "does not make" in said
    assert len(said.splitlines()) <= len(PAPERS)
    said = mistakes({"digits": {}, "papers": {"claims": {"runs": ["digits"]}}})
    assert "claims must be about the runs that the board reads, digits; claim" in said


def test_all_twelve_papers_have_claims() -> None:
    assert len(set(PAPERS)) == 12


def test_what_is_no_finished_run_is_one_sentence(tmp_path: Path) -> None:
    given = {name: tmp_path / name for name in NEEDED}
    with pytest.raises(DataError, match=r"must be the folder of a finished run, with its results"):
        judged_papers(given, STAGES)
    with pytest.raises(ConfigError, match="claims must be about runs that are given, other; .* add results/"):
        (tmp_path / "other/evaluate").mkdir(parents=True)
        judged_papers({"other": tmp_path / "other"}, STAGES)


def judged(name: str, **changed: float) -> Judged:
    text = yaml.safe_dump({"title": "T", "cite": "C", "link": "https://x", "claims": [{
        "name": name, "says": f"It is {name}.", "number": "2", "where": "table 1", "run": "digits",
        "stage": "evaluate", "metric": "fd_ratio", "criterion": {"below": 1},
    }]})  # fmt: skip
    claim = claims.parse_paper(text, name="f").claims[0]
    one = Measurement(**{"what": "5 calls", "value": 0.5, "low": 0.4, "high": 0.6, "n": 1000} | changed)
    verdict = Criterion(below=1).verdict(one)
    return Judged(claim, [one], [verdict], verdict)


def test_the_board_shows_what_holds_what_is_open_and_what_is_out_of_scale(tmp_path: Path) -> None:
    nan = math.nan
    rows = [judged("fast"), judged("open", value=nan, low=nan, high=nan), judged("wide", high=math.inf)]
    away = rows[0].claim.model_copy(
        update={"name": "far", "criterion": None, "out_of_scale": "far", "command": "x"}
    )
    paper = claims.Paper(title="T", cite="C", link="https://x", claims=[row.claim for row in rows])
    board = [JudgedPaper("t", paper, [*rows, Judged(away, (), (), "out of scale")], {"digits": "k"}, {})]
    text = save_board(board, tmp_path)
    assert "here: 0.500 [0.400, 0.600], 5 calls" in text and "here: open, 5 calls" in text
    shown = panel([tmp_path], None)
    assert shown is not None and shown.figures.keys() == {"t-fast", "t-wide"}
    for part in ("Of 4 claims of 1 papers", "It is open.", "0.500 [0.400, ∞]"):
        assert part in shown.html
    assert shown.metrics["claims.holds"] == 1 and shown.metrics["t.open"] == "undecided"
    assert "t.open.0" not in shown.metrics
