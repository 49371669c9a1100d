"""Workers take part in a search, end with the process that leads it, and say in one line what is wrong."""

import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from unit.methods.s3.stage import leading
from unit.methods.s3.stage.leading import prepare, setup, working
from unit.methods.s3.stage.test_known import untracked

from fewstep.methods.s3.stage.run import run_trials
from fewstep.methods.s3.stage.solutions import FILE, read_teacher
from fewstep.pipeline import trials as studies

PATIENCE = 120  # seconds for two starts of Python on a loaded machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    prepare(folder)
    return folder


def search(folder, **options):
    tiny = setup(folder, **options)
    task = tiny.task()
    return tiny.search(3, task, read_teacher(folder / FILE, task), None, None)


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def runs(pid):
    """Whether a process runs; one that has ended may wait to be collected by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_runs_trials_of_the_leaders_study_and_ends_with_the_body(folder, tmp_path):
    for path in (folder / "model", folder / FILE):
        (tmp_path / path.name).symlink_to(path)
    with working(tmp_path, 1):
        (worker,) = multiprocessing.active_children()
        until(lambda: worker.exitcode is not None)
        assert worker.exitcode == 0  # it has run all trials there are to run
    assert not multiprocessing.active_children()
    tried = run_trials(search(tmp_path), storage=str(tmp_path / "journal.log"), track=untracked)
    frame = studies.trials_frame(tried.study)
    assert len(frame) == 10 and (frame["network_calls"] > 0).all()
    signed = {trial.user_attrs["worker"] for trial in tried.study.get_trials()}
    assert {int(name.rpartition(":")[2]) for name in signed} == {worker.pid}


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_workers_end_with_a_leader_that_is_killed(folder, tmp_path, how):
    for path in (folder / "model", folder / FILE):
        (tmp_path / path.name).symlink_to(path)
    command = [sys.executable, leading.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as leader:
        pids = [int(pid) for pid in leader.stdout.readline().split()]
        try:
            assert len(pids) == 2 and all(map(runs, pids))
            until((tmp_path / "journal.log").exists)  # at least one of them is at work
            leader.send_signal(how)
            assert leader.wait(PATIENCE) != 0
        finally:
            leader.kill()
    until(lambda: not any(map(runs, pids)))


def test_what_goes_wrong_in_a_worker_is_one_line_and_the_leader_goes_on(folder, capfd):
    with working(folder, 1, model="none"):
        (worker,) = multiprocessing.active_children()
        until(lambda: worker.exitcode is not None)
    assert worker.exitcode == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("A worker of the search for 3 calls has failed, the others continue: ")
    assert "none" in line and "Traceback" not in line


def test_a_worker_that_was_killed_is_told_of(folder, caplog):
    with working(folder, 1, trials=100_000):
        (worker,) = multiprocessing.active_children()
        worker.kill()
        until(lambda: worker.exitcode is not None)
    assert "killed by signal 9" in caplog.text
