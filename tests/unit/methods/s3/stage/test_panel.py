"""What a report says about searched plans: how they compare, how they were found, what they do."""

import hashlib
import io
import json
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from unit.app.report.study import MODEL, STUDY, Page, certificate, certificate_of, write_all
from unit.methods.s3.stage.finished_search import (
    PRESET,
    SEEDS,
    found_plan,
    preset_plan,
    record,
    write_search,
)

from fewstep.app.report.build import Shown, build_report
from fewstep.app.report.terminal import print_leaderboard
from fewstep.checks import ConfigError, DataError
from fewstep.files import write_json
from fewstep.methods.s3.stage.panel import best_preset_plan, decision, search_figure
from fewstep.methods.s3.stage.record import read_searches
from fewstep.pipeline.report.results import (
    best_lines,
    flat_metrics,
    read_results,
    shown_lines,
)
from fewstep.sampling.document import save_plan

SHOWN = partial(Shown, "search", "fewstep.methods.s3.stage.panel")


def searched(nfe: int, fd: float, **options: Any) -> dict[str, Any]:
    """The certificate of the searched plan."""
    return certificate_of(found_plan(nfe, MODEL), fd, **options)


def of_preset(nfe: int, fd: float, **options: Any) -> dict[str, Any]:
    """The certificate of the preset that can be drawn beside it."""
    return certificate_of(preset_plan(nfe), fd, **options)


WON = [*STUDY, searched(5, 4.0)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    certificates = [c for c in STUDY if c["subject"]["plan"]["sampler"] != "dpmpp-2m"]
    certificates += [of_preset(5, 8.0), of_preset(10, 3.05), searched(5, 4.0), searched(10, 3.0)]
    for nfe in (5, 10):
        write_search(folder / f"nfe{nfe}", nfe, model=MODEL)
    build_report(
        [write_all(folder / "c", certificates)], [], folder / "out", run="r",
        panels=[SHOWN([folder / "nfe5", folder / "nfe10"])],
    )  # fmt: skip
    return folder / "out"


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page((report / "index.html").read_text(encoding="utf-8"))


def headline(tmp_path: Path, certificates: list[dict[str, Any]]) -> str:
    build_report([write_all(tmp_path / "c", certificates)], [], tmp_path / "out", run="r")
    return Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8")).words


def test_a_searched_plan_that_wins_is_the_headline(tmp_path: Path) -> None:
    words = headline(tmp_path, WON)
    assert "At 5 evaluations a plan made for this model is best: FD 4.00 [3.80, 4.20]." in words
    assert (
        "Its FD is 0.50 of the best preset's (dpmpp-2m on uniform-t, 8.00), a significant difference."
        in words
    )
    assert "FD of ddim at 50 is 3.00 [2.80, 3.20]." in words


def test_a_searched_plan_that_loses_is_compared(tmp_path: Path) -> None:
    words = headline(tmp_path, [*STUDY, searched(10, 6.1)])
    assert "At 10 evaluations the best known sampler is dpmpp-2m on uniform-t: FD 3.05" in words
    assert "The best such plan's FD, 6.10 [5.90, 6.30], is 2.00 of the best preset's" in words


def test_a_lead_within_its_interval_is_not_significant(tmp_path: Path) -> None:
    words = headline(tmp_path, [*STUDY, searched(5, 7.9)])
    assert (
        "0.99 of the best preset's (dpmpp-2m on uniform-t, 8.00), a difference that is not significant."
        in words
    )


def test_pairs_make_a_small_lead_significant(tmp_path: Path) -> None:
    wiggle = [0.1 * math.sin(i) for i in range(100)]
    pair = [
        certificate("ddim", "uniform-t", 5, 8.0, half=1.0, pair=[8 + w for w in wiggle]),
        searched(5, 7.6, half=1.0, pair=[7.6 + w for w in wiggle]),
    ]
    results = read_results([write_all(tmp_path, pair)])
    assert results.at(5).iloc[0]["significant"]
    assert results.at(5).iloc[0]["of_preset"] == pytest.approx(0.95)
    assert results.at(5).iloc[1]["significant"] is None


def test_metrics_and_table_have_the_ratio(report: Path, tmp_path: Path) -> None:
    metrics = json.loads((report / "metrics.json").read_text())
    assert (metrics["nfe005.searched"], metrics["nfe005.ratio"]) == (4.0, 0.5)
    assert metrics["nfe005.best"] == "searched"
    table = pd.read_csv(report / "leaderboard.csv").set_index(["nfe", "sampler", "grid"])
    assert table.loc[(5, "searched", "free"), "of_preset"] == 0.5
    assert table["of_preset"].notna().sum() == 2
    assert "nfe005.searched" not in flat_metrics(read_results([write_all(tmp_path)]))


def test_without_a_preset_there_is_no_ratio(tmp_path: Path) -> None:
    results = read_results([write_all(tmp_path, [searched(5, 4.0)])])
    assert math.isnan(results.frame["of_preset"][0])
    assert "nfe005.ratio" not in flat_metrics(results)
    assert "best preset" not in headline(tmp_path / "page", [searched(5, 4.0)]).split("Winners")[0]


def test_few_numbers_of_calls_neither_hide_searched_plans_nor_move_others(tmp_path: Path) -> None:
    many = [certificate(name, "karras", n, 15.0) for name in "abcdefghij" for n in (5, 10, 50)]
    results = read_results([write_all(tmp_path / "with", [*STUDY, *many, searched(5, 4.0)])])
    alone = read_results([write_all(tmp_path / "without", [*STUDY, *many])])
    assert results.headline_nfe == 5
    assert alone.headline_nfe == 10
    shown = shown_lines(results.frame, "family", 4)
    assert shown["family"].tolist()[0] == "searched"
    assert shown["family"].tolist()[1:] == best_lines(alone.frame, "family")["family"].tolist()[:3]


def test_terminal_has_the_ratio_where_there_is_one(tmp_path: Path) -> None:
    stream = io.StringIO()
    print_leaderboard(read_results([write_all(tmp_path / "with", WON)]), nfe=5, stream=stream)
    head, first, second, *_ = stream.getvalue().splitlines()
    assert "of preset" in head
    assert first.split()[:8] == ["5", "1", "searched", "free", "4.00", "[3.80,", "4.20]", "0.50"]
    assert "significant" in first
    assert "significant" not in second
    stream = io.StringIO()
    print_leaderboard(read_results([write_all(tmp_path / "without")]), stream=stream)
    assert "of preset" not in stream.getvalue()


def test_each_search_has_its_figures_and_tab(report: Path, page: Page) -> None:
    figures = {path.name for path in (report / "figures" / "search").iterdir()}
    for nfe in ("005", "010"):
        for name in (f"curves_nfe{nfe}", f"plan_nfe{nfe}"):
            assert {f"{name}.png", f"{name}.svg"} <= figures
    assert {"search-tab-5", "search-panel-5", "search-tab-10", "search-panel-10"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert all(address.startswith(("#", "data:")) for address in page.addresses)


def test_the_search_is_told_in_words_and_numbers(page: Page) -> None:
    assert (
        "The winner is polished.frechet: FD 3.00 on seeds of the search, against 9.00 of " + PRESET
        in page.words
    )
    assert "On the seeds of this report its FD is 4.00 [3.80, 4.20], 0.50 of the best preset's" in page.words
    first = page.tables["plain"][1:4]
    assert first == [
        ["polished.frechet", "0.500", "3.00", "yes"],
        ["trial-1", "1.00", "8.00", ""],
        [PRESET, "2.00", "9.00", ""],
    ]
    for fact in (
        "2 complete, 1 pruned, 1 disqualified, 0 lost",
        "1\u202f040 in 2.00 s",
        f"{SEEDS['trials'][0]} to",
    ):
        assert fact in page.words
    assert "None of these seeds is reported on" in page.words


def test_the_plan_is_drawn_beside_the_best_preset(report: Path) -> None:
    picture = (report / "figures" / "search" / "plan_nfe005.svg").read_text(encoding="utf-8")
    for words in ("searched", "dpmpp-2m, uniform-t", "order 2 of x₀", "clean", "half log-SNR"):
        assert words in picture


@pytest.mark.parametrize("calls", [(100, 120), (100, 800), (100, 90_000)])
def test_numbers_of_an_axis_of_trials_do_not_overlap(tmp_path: Path, calls: tuple[int, int]) -> None:
    write_search(tmp_path, 5, model=MODEL)
    trials = pd.DataFrame({"number": [0, 1], "state": "complete", "value": [2.0, 1.0], "seed": ["", ""]})
    trials["network_calls"] = [calls[0], calls[1] - calls[0]]
    trials.to_parquet(tmp_path / "trials.nfe5.parquet", index=False)
    content = record(5, MODEL) | {"history": [[calls[0], 2.0], [calls[1], 1.0]]}
    write_json(tmp_path / "search.nfe5.json", content)
    axis = search_figure(read_searches([tmp_path])[0]).axes[0].xaxis
    low, high = sorted(axis.get_view_interval())
    ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
    boxes = [label.get_window_extent() for at, label in ticks if low <= at <= high]
    assert len(boxes) >= 2
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert not any(label.get_text() for label in axis.get_minorticklabels())


def test_the_best_preset_is_the_certified_one_else_that_of_the_search_else_none(tmp_path: Path) -> None:
    write_search(tmp_path / "s", 5, model=MODEL)
    certified = read_results([write_all(tmp_path / "a", [certificate("ddim", "karras", 5, 8.0)])])
    unknown = read_results([write_all(tmp_path / "b", [searched(5, 4.0)])])
    (older,) = read_searches([tmp_path / "s"])
    assert best_preset_plan(older, unknown) == {}
    write_json(
        tmp_path / "s" / "search.nfe5.json",
        record(5, MODEL) | {"best_preset_plan": preset_plan(5).to_json()},
    )
    (search,) = read_searches([tmp_path / "s"])
    assert best_preset_plan(search, unknown) == {PRESET: preset_plan(5)}
    drawn = best_preset_plan(search, certified)
    assert list(drawn) == ["ddim, karras"]
    assert list(drawn.values()) == list(certified.plans.values())


def test_a_search_without_reference_or_curves_has_a_page(tmp_path: Path) -> None:
    write_search(tmp_path / "s", 5, model=MODEL, by="error")
    content = record(5, MODEL, by="error") | {"importance": {}, "history": [], "polish": {}}
    write_json(tmp_path / "s" / "search.nfe5.json", content)
    build_report(
        [write_all(tmp_path / "c", STUDY)],
        [],
        tmp_path / "out",
        run="r",
        panels=[SHOWN([tmp_path / "s"])],
    )
    page = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert "The winner is polished.frechet: distance to the fine solutions 0.500" in page.words
    assert "No certificate of this report is about it." in page.words
    assert page.tables["plain"][0] == ["plan", "error", "chosen"]
    assert "nan" not in page.words.lower()


def test_seeds_that_are_reported_on_are_pointed_out(tmp_path: Path) -> None:
    write_search(tmp_path / "s", 5, model=MODEL)
    write_json(tmp_path / "s" / "search.nfe5.json", record(5, MODEL) | {"seeds": {"trials": [999, 1030]}})
    build_report(
        [write_all(tmp_path / "c", STUDY)],
        [],
        tmp_path / "out",
        run="r",
        panels=[SHOWN([tmp_path / "s"])],
    )
    assert "Some of these seeds are reported on" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_same_search_same_bytes(tmp_path: Path) -> None:
    write_search(tmp_path / "s", 5, model=MODEL)
    certificates = write_all(tmp_path / "c", WON)

    def digests(out: Path) -> list[str]:
        build_report(
            [certificates],
            [],
            out,
            run="r",
            panels=[SHOWN([tmp_path / "s"])],
        )
        files = [out / "index.html", *sorted((out / "figures" / "search").glob("*nfe005*"))]
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


def changed(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = record(5, MODEL) | fields
        write_json(folder / "search.nfe5.json", {k: v for k, v in content.items() if v is not ...})

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "search.nfe5.json").unlink(), "must hold a record"),
        (cut("search.nfe5.json"), "search.nfe5.json must be JSON"),
        (changed(schema="other/1"), "schema"),
        (changed(seeds=...), "seeds: Field required"),
        (changed(finalists=[{"name": "x"}]), r"finalists.0.hash"),
        (changed(winner="nobody"), "winner"),
        (changed(best_preset_plan={"schema": "fewstep.plan/1"}), "must hold a plan as best_preset_plan"),
        (lambda folder: (folder / "searched.nfe5.json").unlink(), "searched.nfe5.json must exist"),
        (cut("searched.nfe5.json"), "searched.nfe5.json must be JSON"),
        (lambda folder: save_plan(found_plan(6, MODEL), folder / "searched.nfe5.json"), "but it makes 6"),
        (lambda folder: save_plan(found_plan(5, "f" * 64), folder / "searched.nfe5.json"), "of f"),
        (lambda folder: (folder / "trials.nfe5.parquet").unlink(), "trials.nfe5.parquet must exist"),
        (cut("trials.nfe5.parquet"), "trials.nfe5.parquet must be a table"),
        (lambda folder: pd.DataFrame({"a": [1]}).to_parquet(folder / "trials.nfe5.parquet"), "lacks number"),
    ],
)  # fmt: skip
def test_a_damaged_search_is_one_sentence(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    write_search(tmp_path / "s", 5, model=MODEL)
    damage(tmp_path / "s")
    with pytest.raises(DataError, match=words) as raised:
        build_report(
            [write_all(tmp_path / "c", WON)],
            [],
            tmp_path / "out",
            run="r",
            panels=[SHOWN([tmp_path / "s"])],
        )
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_searches_of_other_models_or_twice_are_refused(tmp_path: Path) -> None:
    write_search(tmp_path / "a", 5, model="0" * 64)
    certificates = write_all(tmp_path / "c", WON)
    with pytest.raises(DataError, match="certified model"):
        build_report(
            [certificates],
            [],
            tmp_path / "out",
            run="r",
            panels=[SHOWN([tmp_path / "a"])],
        )
    with pytest.raises(ConfigError, match="both for 5"):
        read_searches([tmp_path / "a", tmp_path / "a"])


def test_one_folder_may_hold_several_searches(tmp_path: Path) -> None:
    for nfe in (8, 10, 5):
        write_search(tmp_path, nfe, model=MODEL)
    assert [search.nfe for search in read_searches([tmp_path])] == [5, 8, 10]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gap_2", "length, step 3"), ("corr_0", "corrector, step 1"), ("corr_scale_0", "corrector, step 1"),
        ("scale_1_2", "scales, step 2"), ("first_step", "first step"), ("end", "time of the last call"),
        ("points_3", "order, step 4"), ("new_thing", "new_thing"),
    ],
)  # fmt: skip
def test_decisions_in_words(name: str, words: str) -> None:
    assert decision(name) == words
