"""What the report shows of a finished comparison."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from unit.app.report.study import STUDY, Page, certificate_of, write_all

from fewstep.app.report.build import Shown, build_report
from fewstep.app.stages.compose.panel import front_figure, panel
from fewstep.app.stages.compose.record import COMPOSITION, PLANS, read_composition
from fewstep.app.stages.compose.run import facts
from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import VPLinear
from fewstep.pipeline.report.results import read_results
from fewstep.sampling.plan import Plan
from fewstep.sampling.presets import PRESETS

SHOWN = partial(Shown, "compose", "fewstep.app.stages.compose.panel")

TARGET = PRESETS["ddim"](VPLinear(), 50, grid="uniform-t", to_zero=True)
FOUND = replace(
    PRESETS["unipc-2"](VPLinear(), 5, grid="uniform-t"),
    name="found",
    provenance={"sampler": "found", "grid": "free"},
)
NARROW = replace(
    FOUND.with_node(1, width=1).with_node(2, t_cond=0.5),
    name="narrow",
    provenance={"sampler": "found+widths", "grid": "free w050", "parents": [FOUND.hash]},
)


def write_composition(folder: Path, plans: list[Plan], winner: Plan) -> Path:
    """What `fewstep compose` leaves; plans are the better, and the faster, the later they come."""
    (folder / PLANS).mkdir(parents=True)
    for plan in plans:
        plan.save(folder / PLANS / f"{plan.name}.json")
    rows = [
        {**facts(plan), "fd": 4.0 - i, "ms": 8.0 / (i + 1), "winner": plan is winner}
        for i, plan in enumerate([TARGET, *plans])
    ]
    pd.DataFrame(rows).to_parquet(folder / COMPOSITION, index=False)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_composition(tmp_path / "composed", [FOUND, NARROW], NARROW)


OWN = [certificate_of(TARGET, 3.0), certificate_of(FOUND, 2.9), certificate_of(NARROW, 2.95)]
OTHERS = [c for c in STUDY if c["subject"]["plan"]["nfe"] != 50]


def test_the_page_compares_the_winner_with_the_target_and_the_presets(folder: Path, tmp_path: Path) -> None:
    certificates = write_all(tmp_path / "c", [*OTHERS, *OWN])
    build_report(
        [certificates],
        [],
        tmp_path / "out",
        run="r",
        panels=[SHOWN([folder])],
    )
    page = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert "Quality and time" in page.words
    assert (
        "The fastest plan that is as good as ddim in 50 calls is narrow (found+widths): 2.67 ms" in page.words
    )
    assert (
        "On the seeds of this report its FD is 2.95 [2.75, 3.15], and 3.00 [2.80, 3.20] of ddim in 50"
        in page.words
    )
    assert (
        "The fastest preset that reaches the larger of the two is ddim on uniform-t in 50 calls" in page.words
    )
    narrow, found, target = page.tables["plain"][1:]
    assert narrow == ["narrow", "found+widths", "5", "01000", "1", "2.67", "2.00", "2.95 [2.75, 3.15]", "yes"]
    assert found[3:5] == ["full", "0"]
    assert target[0] == TARGET.name
    assert len(page.ids) == len(set(page.ids))
    for name in ("front.png", "plan.svg"):
        assert (tmp_path / "out" / "figures" / "compose" / name).stat().st_size > 1000
    picture = (tmp_path / "out" / "figures" / "compose" / "plan.svg").read_text(encoding="utf-8")
    assert "narrow" in picture and "found" in picture


def test_a_winner_without_certificate_is_compared_by_the_table_alone(folder: Path, tmp_path: Path) -> None:
    html = panel([folder], read_results([write_all(tmp_path / "c")])).html
    assert "3.0 times as fast." in html
    assert "On the seeds of this report" not in html


def test_where_no_plan_is_good_the_best_is_named(tmp_path: Path) -> None:
    folder = write_composition(tmp_path / "composed", [FOUND], FOUND)
    table = pd.read_parquet(folder / COMPOSITION)
    table["fd"] = [4.0, 5.0]
    table.to_parquet(folder / COMPOSITION, index=False)
    html = panel([folder], read_results([write_all(tmp_path / "c")])).html
    assert "No plan is as good as ddim in 50 calls; the best is found" in html


def test_the_front_marks_the_chosen_plan_and_every_group_by_ancestors(tmp_path: Path) -> None:
    """The name comes last in the alphabet, but the plans stand first as they start from no other."""
    first = replace(FOUND, provenance={"sampler": "zzz", "grid": "free"})
    results = read_results([write_all(tmp_path, [*OTHERS, certificate_of(first, 2.9), OWN[2]])])
    axes = front_figure(results, NARROW.hash).axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["presets", "zzz", "found+widths", "chosen"]


def test_names_are_escaped(tmp_path: Path) -> None:
    odd = replace(FOUND, name="<b>&")
    html = panel(
        [write_composition(tmp_path / "f", [odd], odd)], read_results([write_all(tmp_path / "c")])
    ).html
    assert "&lt;b&gt;&amp;" in html
    assert "<b>&" not in html


def test_a_damaged_composition_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"composition.parquet must exist"):
        read_composition(tmp_path)
    (folder / PLANS / "found.json").unlink()
    with pytest.raises(DataError, match="must hold every plan of its table"):
        read_composition(folder)


def test_two_comparisons_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one comparison of plans"):
        panel([folder, folder], read_results([write_all(tmp_path / "c")]))
