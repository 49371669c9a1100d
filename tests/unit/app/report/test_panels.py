"""Panels that stages bring: where they stand in the page, and what becomes of stages without one."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from markupsafe import Markup
from matplotlib.figure import Figure
from unit.app.report.study import Page, write_all

import fewstep.app.report
import fewstep.pipeline.report
from fewstep.app.report.build import Shown, build_report
from fewstep.app.stages import STAGES
from fewstep.app.stages.report import _panels
from fewstep.checks import ConfigError
from fewstep.pipeline.report.panel import Panel, beside
from fewstep.pipeline.report.results import Results

SECTIONS = ["winners", "distance", "samplers", "leaderboard", "protocol", "caveats"]


def brings(monkeypatch: pytest.MonkeyPatch, name: str, panel: Panel | None) -> str:
    """A module that makes that panel."""
    module = ModuleType(f"panel_of_{name}")

    def make(folders: Sequence[Path], results: Results) -> Panel | None:
        assert len(results.frame)
        return panel

    module.panel = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Two stages with a panel, and one with nothing to show."""
    panels = {
        "first": Panel("<First> & foremost", Markup("<p>one</p>"), {"curve": Figure()}),
        "empty": None,
        "second": Panel("Second", Markup("<p>two</p>"), {}),
    }
    return {name: brings(monkeypatch, name, panel) for name, panel in panels.items()}


def sections(page: str) -> list[str]:
    return [part.partition('"')[0] for part in page.split('<section id="')[1:]]


def test_panels_stand_between_distance_and_samplers_in_the_order_that_they_are_given_in(
    stages: dict[str, str], tmp_path: Path
) -> None:
    panels = [Shown(name, stages[name], [tmp_path]) for name in ("first", "second")]
    build_report([write_all(tmp_path / "c")], [], tmp_path / "out", run="r", panels=panels)
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert sections(text) == [*SECTIONS[:2], "first", "second", *SECTIONS[2:]]
    assert text.index("<p>one</p>") < text.index("<p>two</p>")
    assert {"#first", "#second"} <= set(Page(text).addresses)
    assert {path.name for path in (tmp_path / "out" / "figures" / "first").iterdir()} == {
        "curve.png",
        "curve.svg",
    }
    assert not (tmp_path / "out" / "figures" / "second").exists()


def test_titles_are_escaped(stages: dict[str, str], tmp_path: Path) -> None:
    build_report(
        [write_all(tmp_path / "c")],
        [],
        tmp_path / "out",
        run="r",
        panels=[Shown("first", stages["first"], [tmp_path])],
    )
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert '<h2 id="first-title">&lt;First&gt; &amp; foremost</h2>' in text
    assert '<a href="#first">&lt;First&gt; &amp; foremost</a>' in text


def test_stages_that_show_nothing_change_nothing(stages: dict[str, str], tmp_path: Path) -> None:
    certificates = write_all(tmp_path / "c")
    panels = [Shown("empty", stages["empty"], [tmp_path])]
    build_report([certificates], [], tmp_path / "with", run="r", panels=panels)
    build_report([certificates], [], tmp_path / "without", run="r")
    one, other = (tmp_path / name / "index.html" for name in ("with", "without"))
    assert sections(one.read_text(encoding="utf-8")) == SECTIONS
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("given", ["train=x", "unknown=x", "search", "search="])
def test_a_stage_without_panel_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="--panel must be STAGE=FOLDER, .* the report shows, search"):
        _panels([given])


def test_folders_of_a_stage_come_together_in_the_order_of_the_stages() -> None:
    shown = _panels(["detect=d", "search=a", "search=b"])
    assert [(one.stage, [str(folder) for folder in one.folders]) for one in shown] == [
        ("search", ["a", "b"]),
        ("detect", ["d"]),
    ]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.panel], ids=lambda stage: stage.name)
def test_every_panel_module_has_a_panel_and_a_template(stage) -> None:
    assert callable(import_module(stage.panel).panel)
    assert beside(stage.panel, "html.j2")


def test_the_report_names_no_stage_that_brings_a_panel() -> None:
    """What the page says of a stage, the stage says itself."""
    for package in (fewstep.app.report, fewstep.pipeline.report):
        for file in Path(package.__path__[0]).iterdir():
            if file.is_file():
                words = file.read_text(encoding="utf-8").replace('type="search"', "")
                named = {stage.name for stage in STAGES if stage.panel and f'"{stage.name}"' in words}
                assert not named, file
                assert "fewstep.methods" not in words, file
