"""The search over widths: the evolution, whole searches on models whose error is known, and what comes of them."""

import itertools
import json
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner
from unit.pipeline.slimming import (
    SETTINGS,
    N,
    best_front,
    ddim,
    influences,
    pixels,
    reference,
    searched,
    silent,
    slimmable,
    table,
)
from unit.sampling.toys import small_mixture

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.ddsm.widths import uniform, with_widths
from fewstep.pareto import hypervolume
from fewstep.sampling.plan import widths_of
from fewstep.nets.folder import save_model
from fewstep.nets.unet import UNet
from fewstep.pipeline import trials as studies
from fewstep.app.cli import app
from fewstep.pipeline.config import StepAwareSettings
from fewstep.methods.ddsm.stage.narrowing import cost_table
from fewstep.methods.ddsm.stage.run import pick, run_stepaware
from fewstep.rng import generator, initial_weights
from fewstep.sampling.plan import load_plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task

GENES, LEVELS = 6, 3
RNG = np.random.default_rng(0)
S = np.concatenate([np.zeros((GENES, 1)), RNG.uniform(0.1, 2, (GENES, LEVELS - 1)).cumsum(1)], axis=1)


@pytest.fixture(scope="module", autouse=True)
def unsynced():
    """Without waiting for the disk at each of thousands of entries: no machine loses its power here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def separable(genome):
    return float(np.mean([[9, 4, 1][k] for k in genome])), float(sum(S[i, k] for i, k in enumerate(genome)))


def evolved(storage, *, measure=separable, known=None, levels=LEVELS, seed=0, population=8, generations=6):
    study = studies.open_front(str(storage), "front", {"of": "test"})
    known = [(f"uniform-{k}", g) for k, g in enumerate(uniform(GENES, LEVELS))] if known is None else known
    studies.run_front(
        study,
        measure,
        genes=GENES,
        levels=levels,
        known=known,
        population=population,
        generations=generations,
        seed=seed,
    )
    return studies.front_frame(study)


def genomes(frame):
    return [tuple(row) for row in frame[[f"w{i:03d}" for i in range(GENES)]].to_numpy().tolist()]


# The evolution


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
    points = list(zip(frame["first"], frame["second"], strict=True))
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
def test_an_evolution_that_was_broken_off_ends_as_it_would_have(tmp_path, monkeypatch, at):
    whole = evolved(tmp_path / "whole.log", generations=3)
    calls = itertools.count()

    def interrupted(genome):
        if next(calls) == at:
            raise KeyboardInterrupt
        return separable(genome)

    with monkeypatch.context() as patch:
        host = studies._worker().rpartition(":")[0]
        patch.setattr(studies, "_worker", lambda: f"{host}:999999999")  # a process that is dead
        with pytest.raises(KeyboardInterrupt):
            evolved(tmp_path / "broken.log", measure=interrupted, generations=3)
    seen = []
    resumed = evolved(
        tmp_path / "broken.log", measure=lambda g: (seen.append(g), separable(g))[1], generations=3
    )
    assert resumed.equals(whole)
    assert len(seen) == 24 - at  # nothing that had been told was measured again


def test_genomes_that_fail_are_counted_and_have_no_children(tmp_path):
    def measure(genome):
        if genome[0] == 2:
            raise DataError("The state must stay finite.")
        return separable(genome)

    frame = evolved(tmp_path / "j.log", measure=measure)
    failed = frame["state"] == "fail"
    assert 0 < failed.sum() < len(frame) == 48
    assert all(genome[0] == 2 for genome in genomes(frame[failed]))
    assert frame.loc[failed, ["first", "second"]].isna().all(axis=None)


@pytest.mark.parametrize("change", [{"generations": 1}, {"population": 2}])
def test_an_evolution_needs_two_populations_that_hold_the_known(tmp_path, change):
    with pytest.raises(ConfigError, match="An evolution needs 2 generations"):
        evolved(tmp_path / "j.log", **change)
    with pytest.raises(ValidationError):
        StepAwareSettings(generations=1)


def test_a_study_of_another_search_is_refused(tmp_path):
    evolved(tmp_path / "j.log", generations=2)
    with pytest.raises(ConfigError, match="must be of this search"):
        studies.open_front(str(tmp_path / "j.log"), "front", {"of": "another"})


# Whole searches


def run(search, work):
    return run_stepaware(search, storage=str(work / "journal.log"), track=silent)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A search over two widths, and what it found."""
    work = tmp_path_factory.mktemp("plain")
    search = searched(work, plan=replace(ddim(), provenance={"preset": "ddim", "seeds": {"trials": [5, 9]}}))
    return search, run(search, work)


def test_errors_of_the_gaussian_are_those_of_the_closed_form(tmp_path):
    """DDIM on one Gaussian is affine, so that an error u in a step moves every image by its influence times u."""
    search, influence = searched(tmp_path), influences(ddim())
    for widths in [(1, 0, 0, 0, 0, 0), (0, 0, 1, 0, 1, 0), (1,) * N]:
        expected = 0.1 * sum(influence[i] for i in range(N) if widths[i])
        # noise and states are float32, with 24 bits, over six steps
        assert search.error(widths, "uniform") == pytest.approx(expected, rel=1e-4)


def test_the_search_narrows_where_errors_weigh_least(plain):
    """With two widths the front is known: the k steps of least influence are narrow, for every k."""
    search, found = plain
    order = np.argsort(influences(ddim()))
    assert list(order) not in (list(range(N)), list(range(N))[::-1])  # no rule of thumb would find it
    expected = [tuple(int(i in order[:k]) for i in range(N)) for k in range(N, -1, -1)]
    assert search.front() == expected
    assert {widths_of(plan) for plan in found.plans} <= set(expected)
    frame = found.frame
    assert set(frame.loc[frame["on_front"], "widths"]) == {",".join(map(str, w)) for w in expected}
    assert (frame.loc[frame["on_front"], "origin"] != "random").all()
    assert found.record["random"] > 1 and found.record["failed"] == 0


def test_with_four_widths_the_front_is_near_the_best_of_all_plans(tmp_path):
    plan, deltas = ddim(4), (0.0, 0.1, 0.25, 0.6)
    search = searched(tmp_path, model=slimmable(deltas), plan=plan)
    run(search, tmp_path)
    errors = np.outer(influences(plan), deltas)
    front = best_front(errors, np.tile([1, 0.5, 0.25, 0.125], (4, 1)) / 4)
    found = [(search.share(w), search.seen[w].error) for w in search.front()]
    corner = (1.0, errors[:, -1].sum())
    # of 256 plans it tries a part, so it need not have every one of the front
    assert len(search.seen) < 200
    assert 0.98 < hypervolume(found, corner) / hypervolume(front, corner) <= 1 + 1e-4


class Counting(Task):
    """Notes the widths of each plan that is solved, and may be interrupted."""

    def __init__(self, model, stop=10**9):
        super().__init__(model, batch_size=64)
        self.solved, self.stop = [], stop

    def solve(self, plan, seeds, *, values=None):
        if len(self.solved) == self.stop:
            raise KeyboardInterrupt
        self.solved.append((widths_of(plan), seeds[0]))
        return super().solve(plan, seeds, values=values)


def test_no_plan_is_solved_twice(tmp_path):
    task = Counting(slimmable((0.0, 0.1, 0.3)))
    search = searched(tmp_path, model=task.model, task=task)
    found = run(search, tmp_path)
    assert len(task.solved) == len(set(task.solved)) == len(search.seen) == len(found.frame)
    assert found.frame["widths"].is_unique
    assert set(found.frame["origin"]) <= {"uniform", "greedy", "additive", "nsga2", "random"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a search over three widths finds."""
    work = tmp_path_factory.mktemp("whole")
    return run(searched(work, model=slimmable((0.0, 0.1, 0.3))), work)


@pytest.mark.parametrize("origin", ["uniform", "greedy", "additive", "nsga2", "random"])
def test_a_search_that_was_broken_off_ends_as_it_would_have(tmp_path, monkeypatch, whole, origin):
    model = slimmable((0.0, 0.1, 0.3))
    stop = int(np.flatnonzero(whole.frame["origin"] == origin)[-1])  # the last of its kind is lost
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        host = studies._worker().rpartition(":")[0]
        patch.setattr(studies, "_worker", lambda: f"{host}:999999999")
        with pytest.raises(KeyboardInterrupt):
            run(searched(broken, model=model, task=Counting(model, stop)), broken)
    task = Counting(model)
    again = run(searched(broken, model=model, task=task), broken)
    assert again.frame.equals(whole.frame)
    assert [plan.to_json() for plan in again.plans] == [plan.to_json() for plan in whole.plans]
    # nothing is solved again but the full plan, whose images every start needs
    assert len(task.solved) == len(whole.frame) - stop + 1


def test_plans_say_what_they_are(tmp_path, plain):
    search, plans, parent = plain[0], plain[1].plans, plain[0].plan
    assert len({plan.name for plan in plans}) == len(plans)
    shares = [plan.provenance["stepaware"]["cost"]["share"] for plan in plans]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1 and shares[-1] == 0.5
    for plan, share in zip(plans, shares, strict=True):
        found = plan.provenance["stepaware"]
        assert plan.name == f"{parent.name}.w{round(100 * share):03d}"
        assert plan.fingerprint == search.task.model.fingerprint
        assert tuple(found["widths"]) == widths_of(plan)
        assert found["cost"]["kind"] == "macs" and found["cost"]["per_image"] == share * 8 * N
        assert found["fd"] is None and found["error"] == search.seen[widths_of(plan)].error
        assert plan.provenance["parents"] == [parent.hash] and plan.provenance["preset"] == "ddim"
        assert plan.provenance["seeds"] == {
            "trials": [5, 9],
            "stepaware-search": [SETTINGS.seed, SETTINGS.seed + 15],
            "stepaware-choice": [SETTINGS.seed + 1_000_000, SETTINGS.seed + 1_000_063],
        }
        json.dumps(plan.to_json(), allow_nan=False)
        plan.save(tmp_path / "plan.json")
        assert load_plan(tmp_path / "plan.json") == plan


def test_the_choice_is_by_the_reference_on_seeds_of_its_own(tmp_path):
    model = slimmable((0.0, 0.1, 0.6))
    task = Counting(model)
    found = run(
        searched(tmp_path, model=model, task=task, reference=reference(), extractor=pixels()), tmp_path
    )
    frame = found.frame
    measured = frame[frame["fd"].notna()]
    # four of the front and the three of one width
    assert 4 <= len(measured) <= 7
    assert {"0,0,0,0,0,0", "1,1,1,1,1,1", "2,2,2,2,2,2"} <= set(measured["widths"])
    chosen = frame[frame["name"] != ""].sort_values("cost_share")
    assert chosen["fd"].is_monotonic_decreasing and len(chosen) == len(found.plans)
    for row in measured.itertuples():  # whoever is not among the plans is bettered by one that is
        better = (chosen["cost_share"] <= row.cost_share) & (chosen["fd"] <= row.fd)
        assert better.any()
    late = [widths for widths, first in task.solved if first == SETTINGS.seed + 1_000_000]
    assert len(late) == len(measured)
    assert all(plan.provenance["stepaware"]["fd"] is not None for plan in found.plans)


def test_with_an_extractor_errors_are_distances_of_features(tmp_path):
    plain = searched(tmp_path / "a", model=slimmable((0.0, 0.01)))
    doubled = replace(pixels(), forward=lambda images: 2 * images.flatten(1) / 127.5 - 2)
    seen = searched(tmp_path / "b", model=slimmable((0.0, 0.01)), extractor=doubled)
    widths = (1,) * N
    # images beyond [-1, 1] are clamped before features are made of them, so theirs can only be nearer
    assert 0.5 < seen.error(widths, "uniform") / (2 * plain.error(widths, "uniform")) <= 1 + 1e-4


def broken_in(step, delta=0.1):
    """A model whose narrow network is infinite in one step."""
    t = ddim().nodes[step].t

    def h(time):
        return torch.where((time - t).abs() < 1e-6, torch.inf, 1.0)

    return slimmable((0.0, delta), h=h)


def test_plans_that_fail_are_counted_and_left_out(tmp_path):
    search = searched(tmp_path, model=broken_in(2))
    found = run(search, tmp_path)
    failed = [w for w, seen in search.seen.items() if seen.error == np.inf]
    assert found.record["failed"] == len(failed) > 0
    assert all(w[2] == 1 for w in failed)
    assert all(widths_of(plan)[2] == 0 for plan in found.plans) and len(found.plans) > 2
    assert found.frame["error"].isna().sum() == len(failed)


def test_a_full_plan_that_fails_is_an_error(tmp_path):
    model = slimmable()
    ruined = replace(model, fn=lambda x, t: x * torch.inf)
    with pytest.raises(DataError, match="must stay finite"):
        run(searched(tmp_path, model=ruined), tmp_path)


# Picking


def test_the_best_within_a_budget_is_picked(plain):
    plans = plain[1].plans
    for budget in (1.0, 0.8, 0.5):
        best = pick(plans, budget).provenance["stepaware"]
        within = [
            p.provenance["stepaware"] for p in plans if p.provenance["stepaware"]["cost"]["share"] <= budget
        ]
        assert best["cost"]["share"] <= budget and best["error"] == min(one["error"] for one in within)
    with pytest.raises(ConfigError, match=r"must be at least 0\.5, the share of the cheapest plan; got 0\.3"):
        pick(plans, 0.3)


def test_the_distance_to_the_reference_counts_more_than_the_error(plain):
    first, second, *_ = plain[1].plans

    def judged(plan, fd):
        found = {**plan.provenance["stepaware"], "fd": fd}
        return replace(plan, provenance={**plan.provenance, "stepaware": found})

    pair = [judged(first, 2.0), judged(second, 1.0)]
    assert pick(pair, 1.0) is pair[1]


def test_only_narrowed_plans_of_one_parent_are_picked_from(plain, whole):
    for wrong in ([], [ddim()], [*plain[1].plans, replace(whole.plans[0], provenance={"parents": ["0"]})]):
        with pytest.raises(ConfigError, match="must be narrowed ones of one parent"):
            pick(wrong, 1.0)


# Refusals, and tables of cost


def test_what_cannot_be_narrowed_is_refused(tmp_path):
    one_width = Task(small_mixture().model(VPLinear()))
    with pytest.raises(ConfigError, match="must have several widths"):
        searched(tmp_path, task=one_width)
    with pytest.raises(ConfigError, match="has widths already"):
        searched(tmp_path, plan=with_widths(ddim(), (1, 0, 0, 0, 0, 0)))
    silent_plan = PRESETS["ddim"](VPLinear(), 1).with_node(0, eval="afs_zero")
    with pytest.raises(ConfigError, match="does not ask it"):
        searched(tmp_path, plan=silent_plan)


def test_what_another_search_left_is_refused(tmp_path):
    searched(tmp_path).error((1,) * N, "uniform")
    assert searched(tmp_path).seen
    with pytest.raises(ConfigError, match="must be of this search"):
        searched(tmp_path, costs=replace(table(), widths=(5.0, 1.0)))


def test_times_are_measured_once(tmp_path):
    settings = SETTINGS.model_copy(update={"cost": "ms", "latency_batch": 4})
    task = Task(slimmable())
    first = cost_table(task, settings, tmp_path / "costs.json")
    assert first.kind == "ms" and min(first.widths) > 0
    assert cost_table(task, settings, tmp_path / "costs.json") == first


# The command


@pytest.fixture
def folder(tmp_path):
    """A model folder of a network with two widths, whose weights are drawn, and a plan."""
    with initial_weights(0):
        net = UNet(8, 1, 8, (1, 2))
    rng = generator(1)
    for parameter in net.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    facts = {"schedule": VPLinear(), "prediction": "eps", "shape": (1, 8, 8), "name": "drawn", "card": {}}
    save_model(tmp_path / "model", net, widths=(1.0, 0.5), **facts)
    PRESETS["ddim"](VPLinear(), 3).save(tmp_path / "ddim.json")
    return tmp_path


def command(folder, *words):
    """Run `fewstep stepaware` in a folder; what the user can mend is raised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(app, ["stepaware", *words], catch_exceptions=False)


SMALL = ("--noises", "16", "--population", "4", "--generations", "2")


def test_the_command_writes_a_front_to_pick_from(folder):
    done = command(folder, "--model", "model", "--plan", "ddim.json", "--out", "front", *SMALL)
    assert done.exit_code == 0 and "front: " in done.stdout
    plans = [load_plan(path) for path in (folder / "front").glob("*.json")]
    frame = pd.read_parquet(folder / "front" / "trials.parquet")
    assert {plan.name for plan in plans} == set(frame["name"]) - {""}
    command(folder, "--front", "front", "--budget", "0.8", "--out", "one.json")
    assert load_plan(folder / "one.json") == pick(plans, 0.8)
    command(folder, "--model", "model", "--plan", "ddim.json", "--budget", "0.8", "--out", "two.json", *SMALL)
    assert load_plan(folder / "two.json") == load_plan(folder / "one.json")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--plan", "ddim.json"), "--model and --plan must say what to narrow"),
        (("--model", "model"), "--model and --plan must say what to narrow"),
        (("--front", "front"), "--front needs --budget"),
        (("--front", "front", "--budget", "1.5"), r"--budget must lie in \(0, 1\]"),
        (("--model", "model", "--plan", "ddim.json", "--budget", "0.1"), "The budget must be at least 0.2"),
        (("--model", "model", "--plan", "ddim.json", "--plan", "ddim.json"), "must differ in name"),
        (("--model", "model", "--plan", "narrow.json"), "has widths already"),
        (("--model", "model", "--plan", "seen.json"), "must not have been searched on"),
    ],
)
def test_what_the_command_cannot_do_is_said_before_it_works(folder, words, sentence):
    plan = load_plan(folder / "ddim.json")
    with_widths(plan, (0, 1, 0)).save(folder / "narrow.json")
    seeds = {"trials": [1_601_000_500, 1_601_000_600]}
    replace(plan, provenance={"seeds": seeds}).save(folder / "seen.json")
    with pytest.raises(ConfigError, match=sentence):
        command(folder, *words, "--out", "out")
    assert not (folder / "out").exists()
