"""What the report shows of a finished comparison."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from unit.app.report.study import STUDY, Page, certificate, certificate_of, write_all

from fewstep.app.report.build import Shown, build_report
from fewstep.app.stages.compose.panel import front_figure, panel
from fewstep.app.stages.compose.record import (
    COMPOSITION,
    PLANS,
    PROTOCOL,
    Machine,
    Protocol,
    read_composition,
    records,
)
from fewstep.app.stages.compose.run import facts
from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import VPLinear
from fewstep.files import write_json
from fewstep.pipeline.report.results import read_results
from fewstep.sampling.document import save_plan
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


IDLE = Machine(cores=2, load_before=1.8, load_after=1.9, used=1.9)
SEEDS = (10_000, 10_999)


def write_composition(
    folder: Path,
    plans: list[Plan],
    winner: Plan | None,
    *,
    machine: Machine = IDLE,
    seeds: tuple[int, int] = SEEDS,
) -> Path:
    """What `fewstep compose` leaves; plans are the better, and the faster, the later they come."""
    (folder / PLANS).mkdir(parents=True)
    for plan in plans:
        save_plan(plan, folder / PLANS / f"{plan.name}.json")
    sign = 1 if winner is None else -1
    rows = [
        {
            **facts(plan),
            **{"full_calls": float(plan.nfe), "fd": 4.0 + sign * i, "fd_low": 3.5, "fd_high": 4.5},
            **{
                "difference": float(sign * i),
                "difference_low": sign * i - 0.5,
                "difference_high": sign * i + 0.5,
            },
            **{"margin": 0.4, "non_inferior": i == 0 or winner is not None},
            **{"ms": 8.0 / (i + 1), "speed": i + 1.0, "speed_low": i + 0.75, "speed_high": i + 1.25},
            **{"on_front": True, "winner": plan is winner},
        }
        for i, plan in enumerate([TARGET, *plans])
    ]
    pd.DataFrame(rows).to_parquet(folder / COMPOSITION, index=False)
    protocol = Protocol(
        margin=0.1, level=0.95, comparisons=len(plans), seeds=seeds, rounds=6, machine=machine
    )
    write_json(folder / PROTOCOL, protocol.model_dump())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_composition(tmp_path / "composed", [FOUND, NARROW], NARROW)


NOISE = np.random.default_rng(0).normal(0, 0.2, (4, 100))


def paired(i: int, fd: float) -> list[float]:
    """Replicates of a distance that share most of their noise with all others."""
    shared = np.repeat(NOISE[0, :50], 2) * np.tile([1, -1], 50)
    return (fd + shared + 0.1 * NOISE[i]).tolist()


def own(narrow: float = 2.95) -> list[dict[str, Any]]:
    plans = ((TARGET, 3.0), (FOUND, 2.9), (NARROW, narrow))
    return [certificate_of(plan, fd, pair=paired(i, fd)) for i, (plan, fd) in enumerate(plans)]


OTHERS = [c for c in STUDY if c["subject"]["plan"]["nfe"] != 50]


def words(folder: Path, tmp_path: Path, certificates: list[dict[str, Any]]) -> str:
    return str(panel([folder], read_results([write_all(tmp_path / "c", certificates)])).html)


def test_a_choice_that_the_seeds_of_the_report_confirm(folder: Path, tmp_path: Path) -> None:
    preset = certificate("unipc-2", "karras", 8, 2.5, pair=paired(3, 2.5))
    certificates = write_all(tmp_path / "c", [*OTHERS, *own(), preset])
    build_report(
        [certificates],
        [],
        tmp_path / "out",
        run="r",
        panels=[SHOWN([folder])],
    )
    page = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert "Quality and time" in page.words
    for sentence in (
        "Of 2 plans 2 were shown to be as good as ddim in 50 calls, within a margin of 10 %, on seeds of the "
        "comparison. Chosen is narrow (found+widths), than which none of these is faster in every round: difference "
        "-2.00 [-2.50, -1.50].",
        "It is as good as ddim in 50 calls (within a margin of 10 %), on seeds that chose nothing: difference "
        "-0.0500 [-0.",
        "On the seeds of this report its FD is 2.95 [2.75, 3.15], and 3.00 [2.80, 3.20] of ddim in 50 calls.",
        "It takes 2.67 ms an image against 8.00: 3.00 [2.75, 3.25] times as fast, the median and the "
        "range of 6 rounds.",
        "Of 8 presets of this report unipc-2 on karras in 8 calls is the one with the fewest that is shown to be as "
        "good, within a margin of 10 % and corrected for their number: FD 2.50 [2.30, 2.70], difference -0.500 [-0.",
    ):
        assert sentence in page.words
    assert "busy machine" not in page.words
    narrow, found, target = page.tables["plain"][1:]
    assert narrow == [
        "narrow", "found+widths", "5", "01000", "1", "2.67", "3.00 [2.75, 3.25]", "2.00", "-2.00 [-2.50, -1.50]",
        "shown", "2.95 [2.75, 3.15]", "yes",
    ]  # fmt: skip
    assert found[3:5] == ["full", "0"]
    assert [target[0], target[6], target[8], target[9]] == [TARGET.name, "target", "target", ""]
    assert len(page.ids) == len(set(page.ids))
    for name in ("front.png", "plan.svg"):
        assert (tmp_path / "out" / "figures" / "compose" / name).stat().st_size > 1000
    picture = (tmp_path / "out" / "figures" / "compose" / "plan.svg").read_text(encoding="utf-8")
    assert "narrow" in picture and "found" in picture


UNCONFIRMED = "That is not confirmed on seeds that chose nothing"


def test_a_choice_that_the_seeds_of_the_report_do_not_confirm(folder: Path, tmp_path: Path) -> None:
    said = words(folder, tmp_path, [*OTHERS, *own(narrow=3.3)])
    assert f"{UNCONFIRMED}: difference 0.300 [0." in said
    assert "whose interval does not end below the margin of 0.300." in said
    assert "It is as good as" not in said
    assert "Of 7 presets of this report none is shown to be as good, within a margin of 10 %" in said


@pytest.mark.parametrize(
    ("certificates", "why"),
    [
        (STUDY, "this report has no certificate of narrow."),
        ([*OTHERS, *own()[1:]], "this report has no certificate of ddim in 50 calls."),
        (
            [certificate_of(plan, fd) for plan, fd in ((TARGET, 3.0), (NARROW, 1.0))],
            "the certificates have no paired replicates.",
        ),
    ],
)
def test_without_paired_certificates_nothing_is_confirmed(
    folder: Path, tmp_path: Path, certificates: list[dict[str, Any]], why: str
) -> None:
    said = words(folder, tmp_path, certificates)
    assert f"{UNCONFIRMED}: {why}" in said
    assert "It is as good as" not in said


def test_seeds_that_chose_confirm_nothing(tmp_path: Path) -> None:
    folder = write_composition(tmp_path / "composed", [FOUND, NARROW], NARROW, seeds=(999, 1999))
    assert f"{UNCONFIRMED}: those of this report chose." in words(folder, tmp_path, [*OTHERS, *own()])


def test_where_nothing_was_shown_nothing_is_chosen_and_the_best_is_named(tmp_path: Path) -> None:
    folder = write_composition(tmp_path / "composed", [FOUND, NARROW], None)
    certificates = write_all(tmp_path / "c", [*OTHERS, *own()])
    html = panel([folder], read_results([certificates])).html
    assert (
        "No plan was shown to be as good as ddim in 50 calls, within a margin of 10 %, so none of the 2 is chosen. "
        "The best by FD is found (found): difference 1.00 [0.500, 1.50] on seeds of the comparison, where the "
        "margin is 0.400."
    ) in html
    assert (
        "On the seeds of this report its FD is 2.90 [2.70, 3.10], and 3.00 [2.80, 3.20] of ddim in 50 calls."
        in html
    )
    assert "The plan that is best by FD" in html and 'class="yes">yes' not in html
    assert "It is as good as" not in html and "times as fast, the median" not in html


def test_a_busy_machine_is_said(tmp_path: Path) -> None:
    busy = Machine(cores=2, load_before=3.6, load_after=3.1, used=1.2)
    folder = write_composition(tmp_path / "composed", [FOUND, NARROW], NARROW, machine=busy)
    assert (
        "While plans were timed the load of the machine&#39;s 2 cores was 3.6, of which the command itself used 1.2: "
        "these are times of a busy machine."
    ) in words(folder, tmp_path, STUDY)


def test_one_round_orders_nothing(folder: Path, tmp_path: Path) -> None:
    protocol = read_composition(folder).protocol
    write_json(folder / PROTOCOL, protocol.model_copy(update={"rounds": 1}).model_dump())
    said = words(folder, tmp_path, STUDY)
    assert (
        "Chosen is narrow (found+widths), the one of these with the fewest multiply-adds: difference" in said
    )
    assert "times as fast, once measured." in said


@pytest.mark.parametrize("winner", [NARROW, None])
def test_mlflow_is_told_what_was_chosen_or_that_nothing_was(tmp_path: Path, winner: Plan | None) -> None:
    folder = write_composition(tmp_path / "composed", [FOUND, NARROW], winner)
    (record,) = records(folder, {})
    numbers = {name: value for name, value, _ in record.points}
    if winner is None:
        assert (
            record.params["winner"] == "none was shown to be as good" and record.params["non_inferior"] == 0
        )
        assert numbers["fd.best"] == 5.0 and "fd.winner" not in numbers
    else:
        assert record.params["winner"] == "narrow" and record.params["non_inferior"] == 2
        assert (numbers["difference.winner"], numbers["speed.winner"], numbers["fd.target"]) == (
            -2.0,
            3.0,
            4.0,
        )
    assert record.params["margin"] == 0.1 and record.params["machine"]["cores"] == 2
    assert all(file.exists() for file in record.files)


def test_the_front_marks_the_chosen_plan_and_every_group_by_ancestors(tmp_path: Path) -> None:
    """The name comes last in the alphabet, but the plans stand first as they start from no other."""
    first = replace(FOUND, provenance={"sampler": "zzz", "grid": "free"})
    results = read_results([write_all(tmp_path, [*OTHERS, certificate_of(first, 2.9), own()[2]])])
    axes = front_figure(results, NARROW.hash, "chosen").axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["presets", "zzz", "found+widths", "chosen"]


def test_every_plan_is_in_the_front_however_many_ways_there_are_to_make_one(tmp_path: Path) -> None:
    made = [
        certificate(f"way {k}", "free", k + 3, 2 + k, provenance={"sampler": f"way {k}", "grid": "free"})
        for k in range(12)
    ]
    results = read_results([write_all(tmp_path, [*OTHERS, *made])])
    axes = front_figure(results, NARROW.hash, "chosen").axes[0]
    points = [line for line in axes.lines if str(line.get_gid()).startswith("point-")]
    assert len(points) == len(results.frame)
    ways = {
        line.get_label(): (line.get_color(), line.get_marker())
        for line in points
        if "way" in line.get_label()
    }
    assert len(ways) == len(set(ways.values())) == 12


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
    protocol = (folder / PROTOCOL).read_text()
    (folder / PROTOCOL).write_text(protocol.replace("margin", "limit"))
    with pytest.raises(
        DataError, match=r"comparison.json must say how plans were compared, but margin: .* compose"
    ):
        read_composition(folder)
    (folder / PROTOCOL).write_text(protocol)
    (folder / PLANS / "found.json").unlink()
    with pytest.raises(DataError, match="must hold every plan of its table"):
        read_composition(folder)


def test_a_composition_of_an_earlier_version_is_one_sentence(folder: Path) -> None:
    old = [
        "plan",
        "hash",
        "nfe",
        "sampler",
        "widths",
        "moved",
        "fd",
        "fd_low",
        "fd_high",
        "ms",
        "on_front",
        "winner",
    ]
    pd.read_parquet(folder / COMPOSITION)[old].to_parquet(folder / COMPOSITION, index=False)
    (folder / PROTOCOL).unlink()
    with pytest.raises(
        DataError, match="it lacks full_calls, difference, .* as those of earlier versions do; compose again"
    ):
        read_composition(folder)


def test_two_comparisons_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one comparison of plans"):
        panel([folder, folder], read_results([write_all(tmp_path / "c")]))
