"""Two feature spaces: rows are ranked in the one that nothing was fitted to; a gain in the other alone is marked."""

import io
from pathlib import Path
from typing import Any

import pytest
from unit.app.report.study import certificate, write_all

from fewstep.app.report.headline import headline
from fewstep.app.report.page import Background, Samples, render
from fewstep.app.report.terminal import print_leaderboard
from fewstep.pipeline.report.measures import fd_ratio
from fewstep.pipeline.report.results import Results, read_results

OWN: dict[str, Any] = {"grid": "free", "nfe": 10, "provenance": {"sampler": "searched"}}


def results_of(folder: Path, fd: float, fitted: float) -> Results:
    """A searched plan beside two presets, the better of which differs by space."""
    return read_results(
        [
            write_all(
                folder,
                [
                    certificate("searched", fd=fd, fitted=fitted, **OWN),
                    certificate("ddim", "uniform-t", 10, 9.0, fitted=20.0),
                    certificate("unipc-2", "uniform-t", 10, 8.0, fitted=25.0),
                ],
            )
        ]
    )


def shown(results: Results) -> tuple[str, str, str]:
    """Terminal, headline, page."""
    stream = io.StringIO()
    print_leaderboard(results, stream=stream)
    page = render(results, run="r", samples=Samples([], [], None), background=Background(), panels={})
    return stream.getvalue(), " ".join(headline(results)), page


def test_a_gain_in_the_fitted_features_alone_is_marked_everywhere(tmp_path: Path) -> None:
    results = results_of(tmp_path / "evaluate", fd=8.1, fitted=10.0)
    assert results.metric == "FD-classifier#1k" and results.fitted_metric == "FD-afit#1k"
    assert list(results.frame["sampler"]) == ["unipc-2", "searched", "ddim"]  # not 10, 20, 25
    row = results.frame.iloc[1]
    assert row["fitted_only"] and row["fitted_of_preset"] == pytest.approx(10 / 20)
    terminal, sentences, page = shown(results)
    assert "1.01 fitted only" in terminal and "fitted FD" in terminal
    assert "ahead only in the features that it was fitted in, at 0.50 of the best preset's" in sentences
    assert "fitted only" in page and "FD-afit#1k" in page
    (measured,) = fd_ratio_without_replicates(tmp_path)
    assert "ahead in the features that it was fitted in alone" in measured


def fd_ratio_without_replicates(run: Path) -> list[str]:
    """What a claim says of the plan; the certificates get replicates, which a claim needs."""
    pairs = {"searched": (8.1, 10.0), "ddim": (9.0, 20.0), "unipc-2": (8.0, 25.0)}
    write_all(
        run / "claimed" / "evaluate",
        [
            certificate(
                name, "free" if name == "searched" else "uniform-t", 10, fd, fitted=fitted,
                pair=[fd - 1, fd + 1] * 25, provenance=OWN["provenance"] if name == "searched" else None,
            )
            for name, (fd, fitted) in pairs.items()
        ],
    )  # fmt: skip
    found = fd_ratio(run / "claimed", of={"sampler": "searched"}, to={"own": False}, nfe=[10])
    return [one.what for one in found]


def test_a_gain_in_both_is_said_of_both(tmp_path: Path) -> None:
    results = results_of(tmp_path, fd=4.0, fitted=10.0)
    assert not results.frame["fitted_only"].any()
    terminal, sentences, page = shown(results)
    assert "0.50 significant" in terminal and "fitted only" not in terminal
    assert "0.50 of the best preset's (unipc-2" in sentences
    assert "In the features that it was fitted in it has 0.50 of the best preset's." in sentences


def test_one_space_looks_as_it_did(tmp_path: Path) -> None:
    results = read_results([write_all(tmp_path, [certificate("searched", fd=4.0, **OWN)])])
    assert results.fitted_metric is None
    terminal, sentences, page = shown(results)
    assert "fitted" not in terminal + sentences
    assert "fitted FD" not in page
