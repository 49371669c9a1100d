"""Studies: shared, broken off, resumed, and whose they are."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from unit.pipeline import searching
from unit.pipeline.searching import SCHEDULE, SPACE, opened, run

from fewstep.checks import ConfigError
from fewstep.methods.s3.space import plan_of
from fewstep.pipeline import trials as studies
from fewstep.sampling.presets import PRESETS


def values(study):
    return [(t.number, t.value, t.params) for t in studies.completed(study)]


def seeds():
    plans = {name: PRESETS[name](SCHEDULE, 4, to_zero=True) for name in ("ddim", "dpmpp-2m", "unipc-2")}
    return [(name, SPACE.decisions(plan)) for name, plan in plans.items()]


def test_known_solvers_are_tried_first_and_once(tmp_path):
    study = opened(tmp_path / "journal.log")
    for _ in range(2):  # as after a break
        studies.enqueue(study, seeds())
    run(study, trials=6)
    frame = studies.trials_frame(study)
    assert list(frame["seed"][:3]) == ["ddim", "dpmpp-2m", "unipc-2"]
    assert (frame["seed"][3:] == "").all()
    assert frame["plan"][0] == plan_of(SPACE, dict(seeds()[0][1])).hash
    assert (frame["network_calls"] > 0).all()


@pytest.mark.parametrize("sampler", ["s3", "tpe", "random"])
def test_a_search_that_was_broken_off_ends_as_it_would_have(tmp_path, sampler):
    whole = opened(tmp_path / "whole.log")
    studies.enqueue(whole, seeds())
    run(whole, trials=20, sampler=sampler)

    broken = opened(tmp_path / "broken.log")
    studies.enqueue(broken, seeds())
    calls = itertools.count()

    def interrupt():
        if next(calls) == 13:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run(broken, trials=20, sampler=sampler, fails=interrupt)
    # the process that held trial 13 is this one, and alive: what a dead one leaves is told by its number
    lost = next(t for t in broken.get_trials() if t.state.name == "RUNNING")
    broken._storage.set_trial_user_attr(lost._trial_id, "worker", f"{os.uname().nodename}:999999999")
    resumed = opened(tmp_path / "broken.log")
    assert studies.counts(resumed)["lost"] == 1
    run(resumed, trials=20, sampler=sampler)
    assert [v[1:] for v in values(resumed)] == [v[1:] for v in values(whole)]


def test_a_killed_worker_loses_its_trial_alone(tmp_path):
    journal = tmp_path / "journal.log"
    worker = subprocess.Popen([sys.executable, searching.__file__, str(journal), "100", "0.1"])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (journal.exists() and _finished(journal) >= 3):
        time.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    before = _finished(journal)
    study = opened(journal)
    assert before >= 3
    assert studies.counts(study)["lost"] <= 1
    run(study, trials=before + 2)
    assert _finished(journal) == before + 2


def _finished(journal):
    try:
        study = opened(journal)
    except ConfigError:  # being written
        return 0
    counts = studies.counts(study)
    return counts["complete"] + counts["pruned"] + counts["disqualified"]


def test_two_workers_share_the_trials(tmp_path):
    journal = tmp_path / "journal.log"
    study = opened(journal)
    studies.enqueue(study, seeds())
    command = [sys.executable, searching.__file__, str(journal), "16", "0.02"]
    workers = [subprocess.Popen(command) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    frame = studies.trials_frame(opened(journal))
    assert 16 <= len(frame) <= 17  # both may have started the last one
    assert frame["number"].is_unique
    assert sorted(frame["seed"][frame["seed"] != ""]) == ["ddim", "dpmpp-2m", "unipc-2"]
    workers_seen = {t.user_attrs["worker"] for t in opened(journal).get_trials()}
    assert len(workers_seen) == 2


def test_the_storage_may_be_a_database(tmp_path):
    study = opened(f"sqlite:///{tmp_path / 'study.db'}")
    run(study, trials=4)
    assert len(values(opened(f"sqlite:///{tmp_path / 'study.db'}"))) == 4


def test_a_study_of_another_search_is_refused(tmp_path):
    opened(tmp_path / "journal.log")
    with pytest.raises(ConfigError, match="must be of this search"):
        opened(tmp_path / "journal.log", noises=3)


@pytest.mark.parametrize("place", ["postgresql://localhost:1/none", "nonsense://x", "{tmp}/folder"])
def test_a_storage_that_cannot_be_used_is_named(tmp_path, place):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="storage .* must be a journal file or a database"):
        opened(place.format(tmp=tmp_path))


def test_plans_that_diverge_are_disqualified_and_counted(tmp_path):
    study = opened(tmp_path / "journal.log")
    calls = itertools.count()
    run(study, trials=12, fails=lambda: next(calls) % 3 == 0)
    counts = studies.counts(study)
    assert counts["disqualified"] == 4 and counts["lost"] == 0
    assert counts["complete"] + counts["pruned"] == 8
    assert all(t.value is not None for t in studies.completed(study))


def test_what_a_study_says_of_itself(tmp_path):
    study = opened(tmp_path / "journal.log")
    studies.enqueue(study, seeds())
    run(study, trials=25)
    curve = studies.history(study)
    spent, best = zip(*curve, strict=True)
    assert list(spent) == sorted(spent) and list(best) == sorted(best, reverse=True)
    (name, decisions), *_ = studies.best_decisions(study, 3)
    assert best[-1] == study.best_value
    assert name == f"trial-{study.best_trial.number}" and decisions == study.best_trial.params
    shares = studies.importance(study)
    assert abs(sum(shares.values()) - 1) < 1e-6  # normalised by Optuna


def test_an_unknown_sampler_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="sampler must be one of s3"):
        run(opened(tmp_path / "journal.log"), trials=1, sampler="grid")


def test_the_script_is_where_the_tests_start_it():
    assert Path(searching.__file__).exists()
