"""Claims: what a list must say, and what verdict follows from what was measured."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fewstep.app.stages import STAGES
from fewstep.checks import ConfigError
from fewstep.pipeline.claims import (
    Criterion,
    Measurement,
    judge,
    level_of_each,
    papers,
    parse_paper,
    read_paper,
    require_metrics,
)

JUDGED = {
    "name": "one",
    "says": "It is faster.",
    "number": "2 times",
    "where": "table 1",
    "run": "digits",
    "stage": "evaluate",
    "metric": "fd_ratio",
    "setting": {"of": {"sampler": "a"}, "to": {"sampler": "b"}, "nfe": [4]},
    "criterion": {"below": 1},
}
HEAD = {"title": "T", "cite": "C", "link": "https://example.org"}


def text(*claims: dict[str, Any]) -> str:
    return yaml.safe_dump(HEAD | {"claims": list(claims)})


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in JUDGED.items() if key != name}


@pytest.mark.parametrize(
    ("criterion", "low", "value", "high", "verdict"),
    [
        ({"below": 1}, 0.5, 0.7, 0.99, "holds"),
        ({"below": 1}, 0.5, 0.7, 1.0, "undecided"),
        ({"below": 1}, 0.9, 1.0, 1.2, "undecided"),
        ({"below": 1}, 1.0, 1.0, 1.0, "does not hold"),
        ({"below": 1}, 0.5, 0.5, 0.5, "holds"),
        ({"below": 1}, 1.01, 1.2, 1.4, "does not hold"),
        ({"above": 0.9}, 0.91, 0.95, 0.99, "holds"),
        ({"above": 0.9}, 0.85, 0.95, 0.99, "undecided"),
        ({"above": 0.9}, 0.5, 0.6, 0.9, "does not hold"),
        ({"below": 1}, 0.5, 0.7, float("inf"), "undecided"),
        ({"below": 1}, float("nan"), float("nan"), float("nan"), "undecided"),
    ],
)
def test_a_claim_holds_where_the_whole_interval_lies_on_its_side(
    criterion: dict[str, float], low: float, value: float, high: float, verdict: str
) -> None:
    assert Criterion.model_validate(criterion).verdict(Measurement("x", value, low, high)) == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.5, 0.6], "holds"),
        ([0.5, 1.5], "does not hold"),
        ([], "undecided"),
    ],
)
def test_a_claim_holds_where_all_measurements_do(
    values: list[float], verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fewstep.pipeline.report import measures

    def made(run: Path, **setting: Any) -> list[Measurement]:
        assert run == tmp_path and set(setting) == {"of", "to", "nfe"}
        return [Measurement("x", value, value - 0.1, value + 0.1) for value in values]

    made.__module__ = measures.__name__
    monkeypatch.setattr(measures, "fd_ratio", made)
    judged = judge(parse_paper(text(JUDGED), name="f").claims[0], tmp_path, STAGES)
    assert judged.verdict == verdict
    assert len(judged.verdicts) == len(values)


def test_the_intervals_of_a_claim_hold_together() -> None:
    assert level_of_each(1) == pytest.approx(0.95)
    assert level_of_each(5) == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        (
            [without("criterion")],
            "must have run, stage, metric and criterion, or out_of_scale with a command; criterion is missing",
        ),
        ([without("run")], "run is missing"),
        ([JUDGED | {"criterion": {}}], "must be one bound, below or above"),
        ([JUDGED | {"criterion": {"below": 1, "above": 2}}], "must be one bound, below or above"),
        (
            [JUDGED | {"out_of_scale": "too large", "command": "x"}],
            "that is out of scale must have the command",
        ),
        ([JUDGED | {"bound": 1}], "Extra inputs are not permitted"),
        ([JUDGED, JUDGED], "two are called one"),
        ([without("says")], "claims.0.says: Field required"),
        ([], "claims"),
    ],
)
def test_a_list_that_is_not_whole_is_one_sentence(claims: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_paper(text(*claims), name="methods/x/claims.yaml")
    said = str(caught.value)
    assert said.startswith("methods/x/claims.yaml: ") and sentence in said and "\n" not in said


def test_what_is_not_yaml_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"f must be YAML; .*"):
        parse_paper("claims: [", name="f")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"stage": "prepare"}, "one: stage must be one with measures, "),
        ({"metric": "speed"}, "metric must be a function of fewstep.pipeline.report.measures, got speed"),
        ({"metric": "_best"}, "got _best"),
        ({"metric": "read_results"}, "got read_results"),
        ({"setting": {"nfe": [4]}}, "setting must fit fd_ratio; missing a required"),
    ],
)
def test_a_metric_that_is_none_is_one_sentence(changed: dict[str, Any], sentence: str) -> None:
    paper = parse_paper(text(JUDGED | changed), name="f")
    with pytest.raises(ConfigError) as caught:
        require_metrics(paper, STAGES, name="f")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("folder", papers())
def test_the_claims_of_each_paper_can_be_judged(folder: str) -> None:
    require_metrics(read_paper(folder), STAGES, name=folder)
