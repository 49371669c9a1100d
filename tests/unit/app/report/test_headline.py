"""The answer in words: what it claims of many steps, and what it leaves unsaid."""

from pathlib import Path

import numpy as np
import pytest
from unit.app.report.study import STUDY, certificate, write_all

from fewstep.app.report.headline import headline
from fewstep.pipeline.report.results import read_results

RNG = np.random.default_rng(2)
SHARED = RNG.normal(0, 0.5, 100)


def said(tmp_path: Path, fd: float, deviation: float) -> str:
    """Of heun in 10 calls beside DDIM in 50, whose FD is 3, and whose replicates share most of their noise."""
    many = certificate("ddim", "uniform-t", 50, 3.0, pair=(3.0 + SHARED).tolist())
    few = certificate("heun", "karras", 10, fd, pair=(fd + SHARED + RNG.normal(0, deviation, 100)).tolist())
    return " ".join(headline(read_results([write_all(tmp_path, [many, few])])))


def test_as_good_is_said_with_margin_and_interval(tmp_path: Path) -> None:
    sentences = said(tmp_path, 2.9, 0.05)
    assert (
        "At 10 evaluations it is as good as ddim at 50 (FD 3.00 [2.80, 3.20]), within a margin of 10 %: difference "
        "-0.100 [-0." in sentences
    )
    assert "corrected for the number of plans." in sentences


@pytest.mark.parametrize(("fd", "deviation"), [(2.9, 1.0), (3.29, 0.05), (3.5, 0.01)])
def test_otherwise_both_numbers_stand_with_their_intervals_and_no_more(
    tmp_path: Path, fd: float, deviation: float
) -> None:
    """A lower FD whose difference varies too much, one within the margin whose interval is not, one beyond it."""
    sentences = said(tmp_path, fd, deviation)
    assert f"At 10 evaluations there is one sampler, heun on karras: FD {fd:.2f} [" in sentences
    assert "FD of ddim at 50 is 3.00 [2.80, 3.20]." in sentences
    for claim in ("as good", "match", "reach"):
        assert claim not in sentences


def test_without_replicates_nothing_is_claimed(tmp_path: Path) -> None:
    better = certificate("heun", "karras", 10, 0.5)
    assert "as good" not in " ".join(headline(read_results([write_all(tmp_path, [*STUDY, better])])))
