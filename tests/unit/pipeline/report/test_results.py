"""What a set of certificates says: who wins, by how much, and whether that is significant."""

import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest
from unit.app.report.study import METRIC, STUDY, certificate, write_all

from fewstep.checks import ConfigError, DataError
from fewstep.files import sha256_text
from fewstep.pipeline.report.results import (
    as_good,
    best_lines,
    calls_to_match,
    difference,
    distinguishable,
    read_results,
    reference_row,
    winners,
)


def test_order_of_files_does_not_matter(tmp_path: Path) -> None:
    forward, backward = write_all(tmp_path / "a"), write_all(tmp_path / "b", STUDY[::-1])
    a, b = (read_results([folder]).frame.drop(columns="certificate") for folder in (forward, backward))
    pd.testing.assert_frame_equal(a, b)


def test_images_of_another_program_are_not_ranked(tmp_path: Path) -> None:
    other = certificate("ddim", "karras", 5, 3.0)
    other["subject"]["plan"] = None
    with pytest.raises(ConfigError, match="fewstep compare"):
        read_results([write_all(tmp_path, [other])])


def test_another_distance_is_refused(tmp_path: Path) -> None:
    other = certificate("ddim", "karras", 5, 3.0)
    other["results"]["FD-other#1k"] = other["results"].pop(METRIC)
    with pytest.raises(ConfigError, match="has no FD-classifier#1k"):
        read_results([write_all(tmp_path, [STUDY[0], other])])


def test_a_certificate_without_distance_is_refused(tmp_path: Path) -> None:
    other = certificate("ddim", "karras", 5, 3.0)
    del other["results"][METRIC]
    with pytest.raises(DataError, match="Fréchet"):
        read_results([write_all(tmp_path, [other])])


def _of_generator(fd: float, name: str = "gan") -> dict[str, Any]:
    made = certificate(name, "one call", 1, fd, provenance={"preset": "ddim", "generator": name})
    made["subject"]["model"] = {"fingerprint": sha256_text(name), "name": name}
    return made


def test_a_generator_stands_beside_the_plans_of_the_model(tmp_path: Path) -> None:
    """Whatever the order of the files, the model of the report is that of the plans."""
    results = read_results([write_all(tmp_path, [_of_generator(5.0), *STUDY, _of_generator(6.0, "other")])])
    assert results.model["name"] == "tiny"
    assert results.generators == {sha256_text(name): name for name in ("gan", "other")}
    assert results.models == {*results.generators, results.model["fingerprint"]}
    assert list(results.at(1)["sampler"]) == ["gan", "other"]
    assert not results.at(1)["own"].any()  # no plan that was made for the model


def test_plans_of_two_models_are_not_ranked(tmp_path: Path) -> None:
    other = certificate("ddim", "karras", 5, 3.0)
    other["subject"]["model"] = {"fingerprint": sha256_text("other"), "name": "other"}
    with pytest.raises(ConfigError, match="share one protocol to be ranked, but model is"):
        read_results([write_all(tmp_path, [STUDY[0], other])])


def test_a_generator_of_other_data_is_not_ranked(tmp_path: Path) -> None:
    other = _of_generator(5.0)
    other["subject"]["data"] = {"name": "other", "fingerprint": sha256_text("other")}
    with pytest.raises(ConfigError, match="data is"):
        read_results([write_all(tmp_path, [*STUDY, other])])


def test_nothing_to_report_is_an_error() -> None:
    with pytest.raises(DataError, match="got none"):
        read_results([])


def test_nfe_with_one_sampler_has_no_runner_up(tmp_path: Path) -> None:
    results = read_results([write_all(tmp_path, [*STUDY, certificate("heun", "karras", 7, 5.0)])])
    entry = next(entry for entry in winners(results) if entry["nfe"] == 7)
    assert entry["runner_up"] is entry["lead"] is entry["ddim"] is entry["ratio"] is None
    assert entry["ties"] == 0


def test_paired_replicates_tell_apart_what_intervals_cannot(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.5, 100)
    close = [
        certificate("ddim", "uniform-t", 5, 3.1, half=1.0, pair=(noise + 0.1).tolist()),
        certificate("heun", "uniform-t", 5, 3.0, half=1.0, pair=(noise + 0.001 * noise**2).tolist()),
        certificate("ddpm", "uniform-t", 5, 3.1, half=1.0),
    ]
    heun, ddpm, ddim = (
        read_results([write_all(tmp_path, close)])
        .frame.sort_values("sampler", ascending=False)
        .to_dict("records")
    )
    assert distinguishable(ddim, heun)
    assert not distinguishable(ddpm, heun)  # no replicates: independent, +-1 each
    low, high = difference(ddpm, heun).interval
    assert (low + high) / 2 == pytest.approx(0.1)
    assert high - low == pytest.approx(2 * math.sqrt(2))


def test_reference_is_the_baseline_at_its_largest_nfe(tmp_path: Path) -> None:
    results = read_results([write_all(tmp_path)])
    reference = reference_row(results)
    assert (reference["sampler"], reference["nfe"]) == ("ddim", 50)
    best = results.at(10).iloc[0].to_dict()
    assert calls_to_match(results, best, reference, 0.1) is None  # no replicates: nothing is claimed


def close_to_many_steps(deviation: float) -> list[dict[str, Any]]:
    """DDIM at 50 and another sampler that is a little better at 10 and 20, but not at 5; their differences vary."""
    shared, rest = np.random.default_rng(1).normal(0, 1, (2, 5, 100))
    values = [("ddim", 50, 3.0), ("heun", 5, 8.0), ("heun", 10, 2.9), ("heun", 20, 2.8), ("ddim", 10, 9.0)]
    return [
        certificate(name, "uniform-t", nfe, fd, pair=(fd + 0.5 * shared[0] + deviation * rest[i]).tolist())
        for i, (name, nfe, fd) in enumerate(values)
    ]


def test_calls_to_match_are_the_fewest_that_are_shown_to_be_as_good(tmp_path: Path) -> None:
    results = read_results([write_all(tmp_path / "sure", close_to_many_steps(0.05))])
    best, reference = results.at(10).iloc[0].to_dict(), reference_row(results)
    found = calls_to_match(results, best, reference, 0.1)
    assert found is not None
    calls, verdict = found
    assert calls == 10
    assert verdict.difference.value == pytest.approx(-0.1) and verdict.margin == pytest.approx(0.3)
    alone = as_good(best, reference, 0.1)
    assert alone is not None
    widths = [one.difference.interval.high + 0.1 for one in (verdict, alone)]
    assert widths[0] / widths[1] == pytest.approx(
        NormalDist().inv_cdf(1 - 0.025 / 4) / NormalDist().inv_cdf(0.975)
    )  # any of the four other plans could have been claimed
    strict = calls_to_match(results, best, reference, 1e-9)  # 0.1 better is not shown to be better, 0.2 is
    assert strict is not None and strict[0] == 20


def test_a_lower_distance_alone_matches_nothing(tmp_path: Path) -> None:
    """The very same distances, but the difference varies by more than the margin."""
    results = read_results([write_all(tmp_path, close_to_many_steps(1.0))])
    best, reference = results.at(10).iloc[0].to_dict(), reference_row(results)
    assert best["fd"] < reference["fd"]
    assert calls_to_match(results, best, reference, 0.1) is None


def test_a_line_does_not_win_by_being_measured_where_it_is_easy(tmp_path: Path) -> None:
    study = [*STUDY, certificate("dpmpp-3m", "karras", 50, 2.5)]
    lines = best_lines(read_results([write_all(tmp_path, study)]).frame, "family").set_index("family")
    assert lines.loc["dpmpp", "sampler"] == "dpmpp-2m"
    assert lines.index[0] == "dpmpp"
