"""Searches that were killed, at any append to their journal and at any batch, end as they would have: to the bit."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from unit.methods import interrupted
from unit.methods.interrupted import KNOWN, RANKED, SEARCHES, run, shrink
from unit.pipeline.killing import MOMENTS, Killed, killed_and_resumed, process

from fewstep.methods.s3.stage import decisions, known

KINDS = list(SEARCHES)
STRIDE = 23  # of the kills that are tried, but for those in slow tests
SHIFTS = [0, *(pytest.param(shift, marks=pytest.mark.slow) for shift in range(1, STRIDE + 1))]


@pytest.fixture(scope="module", autouse=True)
def tiny():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other take most of the time of such small networks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)  # no machine loses its power here
        shrink(known, KNOWN, patch.setattr)
        shrink(decisions, RANKED, patch.setattr)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    """A search that is not disturbed: kind, appends, batches, and what it finds."""
    with process() as appends:
        task, *found = run(request.param, tmp_path_factory.mktemp("whole") / request.param)
    return request.param, appends[0], task.solved, found


def same(found, whole):
    (text, table), (text_of_whole, whole_table) = found, whole
    assert text == text_of_whole
    pd.testing.assert_frame_equal(table, whole_table, check_exact=True)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_search_that_was_killed_at_an_append(tmp_path, whole, shift):
    kind, appends, _, found = whole
    stride = STRIDE if shift or kind != "search-ranked" else 4 * STRIDE  # its kills take half of these tests
    for i, at in enumerate(range(shift, appends, stride)):
        folder = tmp_path / str(at)
        same(killed_and_resumed(lambda f=folder: run(kind, f)[1:], at, MOMENTS[i % 3]), found)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_search_that_was_killed_at_a_batch(tmp_path, whole, shift):
    kind, _, batches, found = whole
    for at in range(shift, batches, STRIDE):
        folder = tmp_path / str(at)
        with process(), pytest.raises(Killed):
            run(kind, folder, at, Killed())
        same(run(kind, folder)[1:], found)


def started(kind, folder):
    return subprocess.Popen(
        [sys.executable, interrupted.__file__, kind, str(folder)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3])
def test_a_process_that_was_killed(tmp_path, kills, whole):
    """By the kernel, wherever it happens to be."""
    kind = whole[0]
    journal = tmp_path / "journal.log"
    for _ in range(kills):
        search, before = started(kind, tmp_path), _size(journal)
        while search.poll() is None and _size(journal) < before + 4000:
            time.sleep(0.002)
        search.kill()
        search.wait()
    assert started(kind, tmp_path).wait() == 0
    whole_folder = tmp_path / "whole"
    assert started(kind, whole_folder).wait() == 0
    for place in (tmp_path, whole_folder):
        assert sorted(path.name for path in place.iterdir() if path.suffix in (".json", ".parquet"))
    assert (tmp_path / "found.json").read_text() == (whole_folder / "found.json").read_text()
    tables = [pd.read_parquet(Path(place, "table.parquet")) for place in (tmp_path, whole_folder)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def _size(path):
    return path.stat().st_size if path.exists() else 0
