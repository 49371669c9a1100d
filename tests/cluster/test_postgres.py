"""A search that several workers share on PostgreSQL: a joint start, a worker of another host that dies, a restart."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from cluster.engines import Postgres
from cluster.searcher import KNOWN
from unit.methods.s3.stage.searching import opened

from fewstep.checks import ConfigError
from fewstep.pipeline import lost_trials, storage
from fewstep.pipeline import trials as studies

pytestmark = pytest.mark.timeout(1200)
TESTS = Path(__file__).parents[1]


def worker(url: str, trials: int, seconds: float, *host: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "cluster.searcher", url, str(trials), str(seconds), *host]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended_well(process: "subprocess.Popen[str]") -> str:
    said, wrong = process.communicate(timeout=600)
    assert process.returncode == 0, wrong
    return said + wrong


def test_four_workers_that_start_together_on_an_empty_database_try_no_plan_twice(server: Postgres) -> None:
    url = server.database("joint")
    workers = [worker(url, 40, 0.05) for _ in range(4)]
    for one in workers:
        ended_well(one)
    study = opened(url)
    frame = studies.trials_frame(study)
    assert 40 <= len(frame) <= 43, "each worker may finish one that it had begun"
    seeded = Counter(frame["seed"][frame["seed"] != ""])
    assert seeded == {name: 1 for name, decisions in KNOWN if decisions is not None}
    numbers = [trial.number for trial in study.get_trials()]
    assert numbers == list(range(len(numbers)))
    proposed = frame["plan"][(frame["seed"] == "") & (frame["plan"] != "")]
    assert len(proposed) - len(set(proposed)) <= 2, "from seeds of their own; chance may meet itself"
    assert len({trial.user_attrs["worker"] for trial in study.get_trials()}) == 4, "all had a share"


def test_a_trial_of_a_worker_that_died_on_another_host_is_run_again(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.database("dead")
    gone = worker(url, 8, 3600.0, "elsewhere")
    assert gone.stdout is not None and gone.stdout.readline() == "ready\n"
    study = opened(url)
    deadline = time.monotonic() + 60
    while not [t for t in study.get_trials() if t.user_attrs.get("worker", "").startswith("elsewhere")]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1.0)  # a sign of life
    gone.send_signal(signal.SIGKILL)
    gone.communicate()
    monkeypatch.setattr(storage, "GRACE", 2)
    time.sleep(3.0)
    study = opened(url)
    lost_trials.release_stale(study)
    ended_well(worker(url, 8, 0.0))
    assert {t.state for t in study.get_trials()} <= {
        optuna.trial.TrialState.COMPLETE,
        optuna.trial.TrialState.PRUNED,
        optuna.trial.TrialState.FAIL,
    }
    assert len(studies.trials_frame(opened(url))) == 8


def test_a_server_that_is_restarted_is_waited_for(server: Postgres) -> None:
    url = server.database("restarted")
    process = worker(url, 30, 0.1)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(1.5)
    server.stop()
    time.sleep(6.0)
    server.start()
    said = ended_well(process)
    assert "does not answer; the search waits for it" in said
    assert "pass:w" not in said and "pass%3Aw" not in said
    assert len(studies.trials_frame(opened(url))) == 30


def test_searches_of_one_number_of_calls_share_a_database(server: Postgres) -> None:
    url = server.database("shared")
    names = {opened(url, noises=noises).study_name for noises in (16, 32)}
    assert len(names) == 2 and all(name.startswith("nfe4.") for name in names)


def test_a_wrong_password_is_one_sentence_without_it(server: Postgres) -> None:
    url = server.database("refused").replace("pass%3A", "wrong%3A")
    with pytest.raises(ConfigError, match="password authentication failed") as refusal:
        opened(url)
    assert "wrong" not in str(refusal.value) and "\n" not in str(refusal.value)
