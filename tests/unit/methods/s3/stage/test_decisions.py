"""Trials of plans: shared, interrupted, resumed, and what they say."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
from unit.methods.s3.stage import searching
from unit.methods.s3.stage.searching import SCHEDULE, SPACE, opened, run

from fewstep.checks import ConfigError
from fewstep.methods.s3.space import Choice, Real, plan_of
from fewstep.methods.s3.stage.decisions import SAMPLERS, _domain, _range, best_decisions, best_note, scored
from fewstep.pipeline import trials as studies
from fewstep.pipeline.trials import Interval, Options
from fewstep.sampling.presets import PRESETS


def known():
    plans = {name: PRESETS[name](SCHEDULE, 4, to_zero=True) for name in ("ddim", "dpmpp-2m", "unipc-2")}
    return [(name, SPACE.decisions(plan)) for name, plan in plans.items()]


def test_known_solvers_are_tried_first_and_once(tmp_path):
    study = opened(tmp_path / "journal.log")
    for _ in range(2):  # as after an interruption
        studies.enqueue(study, known())
    run(study, trials=6)
    frame = studies.trials_frame(study)
    assert list(frame["seed"][:3]) == ["ddim", "dpmpp-2m", "unipc-2"]
    assert (frame["seed"][3:] == "").all()
    assert frame["plan"][0] == plan_of(SPACE, dict(known()[0][1])).hash
    assert (frame["network_calls"] > 0).all()


@pytest.mark.parametrize("sampler", ["s3", "tpe", "random"])
def test_a_search_that_was_interrupted_ends_as_it_would_have(tmp_path, sampler):
    whole = opened(tmp_path / "whole.log")
    studies.enqueue(whole, known())
    run(whole, trials=20, sampler=sampler)

    broken = opened(tmp_path / "broken.log")
    studies.enqueue(broken, known())
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
    assert studies.completed(resumed) == studies.completed(whole)


def test_the_ranker_proposes_once_there_is_enough_to_learn_from(tmp_path, monkeypatch):
    from fewstep.methods.s3.stage import decisions

    monkeypatch.setattr(decisions, "RANKED_FROM", 12)
    monkeypatch.setattr(decisions, "RANKED_EVERY", 3)
    fitted, fit = [], decisions.fit_ranker
    monkeypatch.setattr(
        decisions,
        "fit_ranker",
        lambda space, seen, *, seed: fitted.append(len(seen)) or fit(space, seen, seed=seed),
    )
    run(opened(tmp_path / "journal.log"), trials=24, sampler="s3-ranked")
    assert len(fitted) >= 2 and fitted[0] >= 12 and fitted == sorted(fitted)


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
    studies.enqueue(study, known())
    command = [sys.executable, searching.__file__, str(journal), "16", "0.02"]
    workers = [subprocess.Popen(command) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    frame = studies.trials_frame(opened(journal))
    assert 16 <= len(frame) <= 17  # both may have started the last one
    assert frame["number"].is_unique
    assert sorted(frame["seed"][frame["seed"] != ""]) == ["ddim", "dpmpp-2m", "unipc-2"]
    assert len({t.user_attrs["worker"] for t in opened(journal).get_trials()}) == 2


def test_plans_that_diverge_are_disqualified_and_counted(tmp_path):
    study = opened(tmp_path / "journal.log")
    calls = itertools.count()
    run(study, trials=12, fails=lambda: next(calls) % 3 == 0)
    counts = studies.counts(study)
    assert counts["disqualified"] == 4 and counts["lost"] == 0
    assert counts["complete"] + counts["pruned"] == 8
    frame = studies.trials_frame(study)
    assert set(frame.loc[frame["state"] == "fail", "disqualified"]) == {"The state must stay finite."}


def test_what_a_study_says_of_itself(tmp_path):
    study = opened(tmp_path / "journal.log")
    studies.enqueue(study, known())
    run(study, trials=25)
    curve = studies.history(study)
    spent, best = zip(*curve, strict=True)
    assert list(spent) == sorted(spent) and list(best) == sorted(best, reverse=True)
    (name, decisions), *others = best_decisions(study, 3)
    assert best[-1] == study.best_value and len(others) == 2
    assert name == f"trial-{study.best_trial.number}" and decisions == study.best_trial.params
    assert (decisions, study.best_value) in scored(study)
    assert best_note(study) == f"best {study.best_value:.4g}"
    shares = studies.importance(study)
    assert abs(sum(shares.values()) - 1) < 1e-6  # normalised by Optuna


def test_an_unknown_sampler_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=f"sampler must be one of {', '.join(SAMPLERS)}"):
        run(opened(tmp_path / "journal.log"), trials=1, sampler="grid")


def test_ranges_keep_their_bounds_as_domains_of_a_trial():
    choice, number = Choice((1, 2, 3), (0.2, 0.5, 0.3)), Real(0.05, 20.0, default=1.0, spread=0.25, log=True)
    assert _domain(choice) == Options((1, 2, 3)) and _domain(number) == Interval(0.05, 20.0, log=True)
    assert _range(_domain(choice)) == Choice((1, 2, 3), (1.0, 1.0, 1.0))
    back = _range(_domain(number))
    assert (back.low, back.high, back.log) == (0.05, 20.0, True)
    assert back.default == pytest.approx(1.0)  # the middle of the logarithms
