"""Studies: whose they are, the one loop, what of an interruption is mended, and the evolution."""

import itertools
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from unit.pipeline.killing import MOMENTS, Killed, killed_again_and_again, killed_and_resumed, process

from fewstep.checks import ConfigError
from fewstep.locks import started
from fewstep.pareto import hypervolume
from fewstep.pipeline import lost_trials, storage
from fewstep.pipeline import trials as studies
from fewstep.pipeline.lost_trials import this_worker
from fewstep.pipeline.storage import open_storage
from fewstep.pipeline.trials import Answers, Disqualified, Integers, Interval, Options, tpe
from fewstep.rng import generator

GENES, LEVELS = 6, 3
RNG = np.random.default_rng(0)
S = np.concatenate([np.zeros((GENES, 1)), RNG.uniform(0.1, 2, (GENES, LEVELS - 1)).cumsum(1)], axis=1)
UNIFORM = [(f"uniform-{k}", (k,) * GENES) for k in range(LEVELS)]


@pytest.fixture(scope="module", autouse=True)
def unsynced():
    """Without waiting for the disk at each of thousands of entries: no machine loses its power here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def dead(monkeypatch):
    """Trials that are asked for in the context are those of a process that has ended."""
    host = this_worker().rpartition(":")[0]
    monkeypatch.setattr(studies, "this_worker", lambda: f"{host}:999999999")
    return monkeypatch


# Studies


def opened(place, **identity):
    return studies.open_study(str(place), "parabola", {"of": "test", **identity}, parts=4)


def test_searches_of_other_settings_share_a_storage(tmp_path):
    first, again = (opened(tmp_path / "journal.log") for _ in range(2))
    other = opened(tmp_path / "journal.log", noises=3)
    assert first.study_name == again.study_name != other.study_name
    run(first, trials=3)
    assert len(studies.trials_frame(again)) == 3 and len(studies.trials_frame(other)) == 0


def test_workers_that_propose_at_once_propose_from_their_own_numbers(tmp_path):
    """Each asks before any other has told: the numbers are those of the trials, which no two have."""
    workers = [opened(f"sqlite:///{tmp_path / 'study.db'}") for _ in range(3)]
    proposals = [Proposals() for _ in workers]

    def nested(depth):
        def evaluate(trial):
            score = parabola(trial)
            if depth < len(workers):
                run_one(depth)
            return score

        return evaluate

    def run_one(depth):
        study, limit = workers[depth], iter([0, 1])
        with pytest.MonkeyPatch.context() as patch:  # one trial, however many others there are
            patch.setattr(studies, "finished", lambda study: [None] * next(limit))
            studies.run_trials(
                study, nested(depth + 1), sampler=proposals[depth], trials=1, network_calls=lambda: 0
            )

    run_one(0)
    assert [one.numbers for one in proposals] == [[0], [1], [2]]


def test_a_trial_without_a_sign_of_life_is_proposed_again_from_its_number(tmp_path, monkeypatch):
    """Of a worker on another machine, of which nothing else is known."""
    place = f"sqlite:///{tmp_path / 'study.db'}"
    monkeypatch.setattr(studies, "this_worker", lambda: "elsewhere:1:1")
    gone = opened(place)
    studies.enqueue(gone, [("known", {"x": 0.5, "kind": "plain", "n": 2})])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = [gone.ask() for _ in range(2)]
    for trial in asked:
        trial.set_user_attr("worker", "elsewhere:1:1")
        lost_trials._heart(gone).record_heartbeat(trial._trial_id)
    monkeypatch.undo()
    study = opened(place)
    lost_trials.release_stale(study)
    assert studies.counts(study)["lost"] == 0, "it may still be alive"
    monkeypatch.setattr(storage, "GRACE", 1)
    time.sleep(2.1)  # the clock of SQLite counts seconds
    study, proposals = opened(place), Proposals()
    frame = run(study, trials=3, sampler=proposals)
    assert studies.counts(study)["lost"] == 1
    assert list(frame["seed"]) == ["known", "", ""] and frame["x"][0] == 0.5
    assert proposals.numbers == [0, 1, 2] and frame["x"][1] == np.random.default_rng(1).uniform(-3, 3)


def test_known_decisions_are_enqueued_by_one_worker(tmp_path, monkeypatch):
    """Also where the one that began died: on this machine at once, elsewhere after a while."""
    known = [("first", {"x": 0.5, "kind": "plain", "n": 2})]
    for worker in (None, f"{this_worker().rpartition(':')[0]}:999999999", "elsewhere:1:1"):
        place = tmp_path / f"{worker}.log"
        study = opened(place)
        if worker is not None:
            claim = study._storage.create_new_study(
                study.directions, f"{study.study_name}.{studies.ENQUEUED}"
            )
            study._storage.set_study_user_attr(claim, "worker", worker)
        monkeypatch.setattr(studies, "ENQUEUING", 0.3)
        for _ in range(2):
            studies.enqueue(opened(place), known)
        assert len(study.get_trials()) == 1


@pytest.mark.parametrize("place", ["nonsense://x", "{tmp}/folder"])
def test_a_storage_that_cannot_be_used_is_named(tmp_path, place):
    (tmp_path / "folder").mkdir()
    for use in (opened, storage.require_storage):
        with pytest.raises(ConfigError, match="storage .* must be a journal file or a database"):
            use(place.format(tmp=tmp_path))


# The loop


def parabola(trial):
    """A score that depends on a decision of each kind; decisions below -2 diverge, large ones end early."""
    x = trial.decide("x", Interval(-3.0, 3.0))
    kind = trial.decide("kind", Options(("plain", "shifted")))
    n = trial.decide("n", Integers(0, 4))
    trial.note("plan", f"{kind}-{n}")
    if x < -2:
        raise Disqualified("The state must stay finite.")
    error = (x - (kind == "shifted")) ** 2 + n
    if any(trial.report(error + part) for part in range(4)):
        return None
    return error + 1.5


class Proposals:
    """Draws of trial k from (0, k), and what was asked for."""

    def __init__(self, kind="answers"):
        self.kind, self.numbers = kind, []

    def __call__(self, number):
        self.numbers.append(number)
        rng = generator(0, "trial", number)
        if self.kind == "tpe":
            return tpe(rng)
        draws = np.random.default_rng(number)
        known = {"x": float(draws.uniform(-3, 3)), "kind": ("plain", "shifted")[number % 2]}
        return Answers(lambda: known, lambda domain: draws.integers(domain.low, domain.high + 1).item())


def run(study, *, trials, evaluate=parabola, sampler=None, calls=lambda: 0):
    studies.run_trials(study, evaluate, sampler=sampler or Proposals(), trials=trials, network_calls=calls)
    return studies.trials_frame(study)


def unclocked(frame):
    """What does not depend on the clock."""
    return frame.drop(columns=list(studies.CLOCKED))


def test_trials_are_what_their_samplers_propose_and_their_evaluation_says(tmp_path):
    proposals, calls = Proposals(), itertools.count(step=3)
    frame = run(opened(tmp_path / "j.log"), trials=30, sampler=proposals, calls=lambda: next(calls))
    assert proposals.numbers == list(range(30)) == list(frame["number"])
    assert list(frame["x"]) == [np.random.default_rng(k).uniform(-3, 3) for k in range(30)]
    assert list(frame["kind"]) == ["plain", "shifted"] * 15
    assert set(frame["n"]) <= set(range(5))  # left open, so drawn within bounds
    assert (frame["network_calls"] == 3).all()
    failed = frame["x"] < -2
    assert (frame["disqualified"][failed] == "The state must stay finite.").all() and failed.any()
    assert set(frame["state"][failed]) == {"fail"} and set(frame["state"][~failed]) <= {"complete", "pruned"}
    done = frame[frame["state"] == "complete"]
    expected = (done["x"] - (done["kind"] == "shifted")) ** 2 + done["n"] + 1.5
    assert (done["value"] == expected).all()
    assert list(frame["plan"][~failed]) == [f"{row.kind}-{row.n}" for row in frame[~failed].itertuples()]


def test_enqueued_decisions_come_first_and_once(tmp_path):
    study = opened(tmp_path / "j.log")
    known = [
        ("first", {"x": 0.5, "kind": "plain", "n": 2}),
        ("second", {"x": 0.0, "kind": "shifted", "n": 0}),
    ]
    for _ in range(2):
        studies.enqueue(study, known)
    frame = run(study, trials=5)
    assert list(frame["seed"]) == ["first", "second", "", "", ""]
    assert list(frame["x"][:2]) == [0.5, 0.0]


def test_a_decision_out_of_bounds_is_drawn_instead(tmp_path):
    drawn = []

    def draw(domain):
        drawn.append(domain)
        return 1

    sampler = Answers(lambda: {"x": 0.25, "kind": "plain", "n": 9}, draw)
    frame = run(opened(tmp_path / "j.log"), trials=1, sampler=lambda number: sampler)
    assert drawn == [Integers(0, 4)]
    assert (frame["x"][0], frame["kind"][0], frame["n"][0]) == (0.25, "plain", 1)


@pytest.mark.parametrize("kind", ["answers", "tpe"])
def test_trials_that_were_interrupted_end_as_they_would_have(tmp_path, dead, kind):
    whole = unclocked(run(opened(tmp_path / "whole.log"), trials=16, sampler=Proposals(kind)))
    count = itertools.count()

    def interrupted(trial):
        score = parabola(trial)
        if next(count) == 9:
            raise KeyboardInterrupt
        return score

    with pytest.raises(KeyboardInterrupt):
        run(opened(tmp_path / "broken.log"), trials=16, evaluate=interrupted, sampler=Proposals(kind))
    dead.undo()
    study = opened(tmp_path / "broken.log")
    assert studies.counts(study)["lost"] == 1
    assert unclocked(run(study, trials=16, sampler=Proposals(kind))).equals(whole)
    reopened = studies.completed(opened(tmp_path / "whole.log"))
    assert studies.completed(study) == reopened  # whose numbers do not count lost trials


def test_the_storage_may_be_a_database(tmp_path):
    place = f"sqlite:///{tmp_path / 'study.db'}"
    run(opened(place), trials=4)
    assert len(run(opened(place), trials=6)) == 6


def test_progress_counts_the_trials_that_are_there(tmp_path):
    run(opened(tmp_path / "j.log"), trials=3)
    seen = []

    def progress(items):
        for item in items:
            seen.append(item)
            yield item

    studies.run_trials(
        opened(tmp_path / "j.log"), parabola, sampler=Proposals(), trials=5, network_calls=lambda: 0,
        progress=progress,
    )  # fmt: skip
    assert seen == list(range(5))


# The evolution


def separable(genome):
    return float(np.mean([[9, 4, 1][k] for k in genome])), float(sum(S[i, k] for i, k in enumerate(genome)))


def evolved(place, *, measure=separable, known=UNIFORM, levels=LEVELS, seed=0, population=8, generations=6):
    study = studies.open_study(str(place), "front", {"of": "test"}, objectives=2)
    studies.evolve(
        study,
        measure,
        genes=GENES,
        levels=levels,
        known=known,
        population=population,
        generations=generations,
        seed=seed,
        network_calls=lambda: 0,
    )
    return unclocked(studies.trials_frame(study))


def genomes(frame):
    return [tuple(row) for row in frame[[f"w{i:03d}" for i in range(GENES)]].to_numpy().tolist()]


def test_known_genomes_are_the_first_population_and_have_children(tmp_path):
    """Of 50 levels the known ones use the first two: whoever descends from them has genes of at most one level more."""
    known = [(str(i), tuple(int(b) for b in f"{i:06b}")) for i in range(8)]
    frame = evolved(tmp_path / "j.log", known=known, levels=50, measure=lambda g: (sum(g), -sum(g)))
    assert genomes(frame)[:8] == [genome for _, genome in known]
    assert list(frame["generation"]) == [g for g in range(6) for _ in range(8)]
    children = genomes(frame[frame["generation"] == 1])
    assert max(map(max, children)) <= 2


def test_the_evolution_does_not_lose_what_it_started_from(tmp_path):
    """What later generations find dominates more than the three known plans of the first do."""
    frame = evolved(tmp_path / "j.log")
    points = list(zip(frame["value_0"], frame["value_1"], strict=True))
    worst = (9.0, separable((LEVELS - 1,) * GENES)[1])
    first, rest = points[:3], points[8:]
    assert hypervolume(rest, worst) > hypervolume(first, worst)


def test_the_same_seed_makes_the_same_table(tmp_path):
    frames = [evolved(tmp_path / f"{i}.log", seed=seed) for i, seed in enumerate((1, 1, 2))]
    assert frames[0].equals(frames[1])
    assert not frames[0].equals(frames[2])


@pytest.mark.parametrize(
    "at", [1, 8, 13, 16], ids=["known", "first of a generation", "child", "next generation"]
)
def test_an_evolution_that_was_interrupted_ends_as_it_would_have(tmp_path, dead, at):
    whole = evolved(tmp_path / "whole.log", generations=3)
    calls = itertools.count()

    def interrupted(genome):
        if next(calls) == at:
            raise KeyboardInterrupt
        return separable(genome)

    with pytest.raises(KeyboardInterrupt):
        evolved(tmp_path / "broken.log", measure=interrupted, generations=3)
    dead.undo()
    measured = []
    resumed = evolved(
        tmp_path / "broken.log", measure=lambda g: (measured.append(g), separable(g))[1], generations=3
    )
    assert resumed.equals(whole)
    assert len(measured) == 24 - at  # no finished genome was measured again


def test_genomes_that_fail_are_counted_and_have_no_children(tmp_path):
    def measure(genome):
        if genome[0] == 2:
            raise Disqualified("The state must stay finite.")
        return separable(genome)

    frame = evolved(tmp_path / "j.log", measure=measure)
    failed = frame["state"] == "fail"
    assert 0 < failed.sum() < len(frame) == 48
    assert all(genome[0] == 2 for genome in genomes(frame[failed]))
    assert frame.loc[failed, ["value_0", "value_1"]].isna().all(axis=None)


@pytest.mark.parametrize("change", [{"generations": 1}, {"population": 2}])
def test_an_evolution_needs_two_populations_that_hold_the_known(tmp_path, change):
    with pytest.raises(ConfigError, match="An evolution needs 2 generations"):
        evolved(tmp_path / "j.log", **change)


def test_completed_trials_of_two_objectives_have_both(tmp_path):
    evolved(tmp_path / "j.log", generations=2)
    study = studies.open_study(str(tmp_path / "j.log"), "front", {"of": "test"}, objectives=2)
    first, *others = studies.completed(study)
    assert first == replace(first, number=0, scores=separable((0,) * GENES)) and len(others) == 15


# Killed at any append


def appends_of(start):
    with process() as made:
        start()
    return made[0]


SHIFTS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
"""Of the moment of each append: together all three of all appends."""


@pytest.mark.parametrize("kind", ["answers", "tpe"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_trials_that_were_killed_at_any_append_end_as_they_would_have(tmp_path, kind, shift):
    """Parts of it: the table, but for its times, counts but for lost trials, network calls, and the curve."""
    known = [("first", {"x": 0.5, "kind": "plain", "n": 2}), ("second", {"x": -2.5, "kind": "plain", "n": 0})]

    def start(place):
        study, calls = opened(place), itertools.count(step=3)
        studies.enqueue(study, known)
        frame = run(study, trials=9, sampler=Proposals(kind), calls=lambda: next(calls))
        counts = {name: n for name, n in studies.counts(study).items() if name != "lost"}
        facts = [counts, studies.network_calls(study), studies.history(study), studies.completed(study)]
        return unclocked(frame), facts

    appends = appends_of(lambda: start(tmp_path / "whole.log"))
    whole = start(tmp_path / "whole.log")
    assert set(whole[0]["state"]) == {"complete", "pruned", "fail"} and whole[0]["seed"][1] == "second"
    for at in range(appends):
        place = tmp_path / f"{at}.log"
        moment = MOMENTS[(at + shift) % 3]
        frame, facts = killed_and_resumed(lambda place=place: start(place), at, moment)
        assert frame.equals(whole[0]) and list(frame.dtypes) == list(whole[0].dtypes), (at, frame, whole[0])
        assert facts == whole[1], at


@pytest.mark.parametrize("shift", SHIFTS)
def test_an_evolution_that_was_killed_at_any_append_ends_as_it_would_have(tmp_path, shift):
    def start(place):
        return evolved(place, population=4, generations=3, measure=failing)

    def failing(genome):
        if genome == (1, 1, 1, 1, 1, 1):
            raise Disqualified("The state must stay finite.")
        return separable(genome)

    appends = appends_of(lambda: start(tmp_path / "whole.log"))
    whole = start(tmp_path / "whole.log")
    assert "fail" in set(whole["state"])
    for at in range(appends):
        place = tmp_path / f"{at}.log"
        frame = killed_and_resumed(lambda place=place: start(place), at, MOMENTS[(at + shift) % 3])
        assert frame.equals(whole) and list(frame.dtypes) == list(whole.dtypes), (at, frame, whole)


@pytest.mark.parametrize("every", [40, 23])
def test_trials_whose_processes_are_all_killed_end_as_they_would_have(tmp_path, every):
    def start(place):
        return unclocked(run(opened(place), trials=12))

    frame, processes = killed_again_and_again(lambda: start(tmp_path / "broken.log"), every)
    assert processes > 3 and frame.equals(start(tmp_path / "whole.log"))


def test_a_trial_that_is_repeated_ends_at_the_part_at_which_it_would_have(tmp_path):
    """It was killed after its last report, which would have pruned it: the first one must not prune it now."""

    def start(place, die=False):
        study = opened(place)
        studies.enqueue(study, [("good", {"n": 0}), ("bad", {"n": 4})])

        def evaluate(trial):
            n = trial.decide("n", Integers(0, 4))
            for part in range(4):
                parts.append(part)
                if trial.report(n + 0.1 * part):
                    return None
                if die and n == 4 and part == 1:
                    trial._trial.report(n + 0.2, 2)
                    trial._trial.report(n + 0.3, 3)
                    raise Killed
            return n

        return unclocked(run(study, trials=2, evaluate=evaluate))

    parts = []
    whole = start(tmp_path / "whole.log")
    undisturbed, parts = parts, []
    with process(), pytest.raises(Killed):
        start(tmp_path / "broken.log", die=True)
    parts = []
    frame = start(tmp_path / "broken.log")
    assert frame.equals(whole) and parts == undisturbed[4:] and whole["state"][1] == "pruned"


# Whose trials are lost


def signed(place, worker):
    study = opened(place)
    trial = study.ask()
    if worker is not None:
        trial.set_user_attr("worker", worker)
    return lambda: studies.counts(opened(place))["lost"]


def test_a_trial_belongs_to_a_process_not_to_its_number(tmp_path):
    """In containers each start has the same few numbers."""
    host, start, own = this_worker().split(":")
    for i, (worker, lost) in enumerate(
        [
            (f"{host}:{start}:{own}", 0),
            (f"{host}:{own}", 0),  # as earlier versions signed
            (f"{host}:{int(start) - 1}:{own}", 1),  # whose number this process has now
            (f"{host}:{start}:999999999", 1),
            (f"elsewhere:{start}:999999999", 0),
        ]
    ):
        assert signed(tmp_path / f"{i}.log", worker)() == lost, worker


def test_a_process_that_ended_and_was_not_collected_has_ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 60
    while started(process.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.returncode is None and Path("/proc", str(process.pid)).exists()
    assert started(process.pid) is None
    process.wait()


def test_an_unsigned_trial_is_lost_where_no_worker_is_alive(tmp_path):
    with process():
        count_lost = signed(tmp_path / "dead.log", None)
    assert count_lost() == 1  # at once
    assert signed(tmp_path / "alive.log", None)() == 0  # this process may be about to sign it


def test_two_workers_that_start_at_once_give_up_a_trial_once(tmp_path):
    """The second one has read the trials before the first one gave them up."""
    place = tmp_path / "journal.log"
    with process():
        first = opened(place)
        first.ask()
    study = optuna.load_study(study_name=first.study_name, storage=open_storage(str(place)))
    running = study.get_trials()
    assert [trial.state.name for trial in opened(place).get_trials()] == ["FAIL", "WAITING"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "get_trials", lambda **_: running)
        lost_trials._give_up(study, running)
    assert [trial.state.name for trial in study.get_trials()] == ["FAIL", "WAITING"], "once more, not twice"
