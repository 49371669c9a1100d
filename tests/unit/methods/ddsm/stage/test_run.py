"""Whole searches over widths, on models whose error is known, and what comes of them."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from unit.methods.ddsm.stage.slimming import (
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
)

from fewstep.checks import ConfigError, DataError
from fewstep.methods.ddsm.stage.run import pick, run_width_search
from fewstep.pareto import hypervolume
from fewstep.pipeline import trials as studies
from fewstep.pipeline.lost_trials import this_worker
from fewstep.sampling.document import save_plan
from fewstep.sampling.plan import load_plan, widths_of
from fewstep.sampling.task import Task


@pytest.fixture(scope="module", autouse=True)
def unsynced():
    """Without waiting for the disk at each of thousands of entries: no machine loses its power here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def run(search, work):
    return run_width_search(search, storage=str(work / "journal.log"), track=silent)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A search over two widths, and what it found."""
    work = tmp_path_factory.mktemp("plain")
    search = searched(work, plan=replace(ddim(), provenance={"preset": "ddim", "seeds": {"trials": [5, 9]}}))
    return search, run(search, work)


def test_the_search_saves_where_errors_weigh_least(plain):
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
    found = [(search.share(w), search.evaluated[w].error) for w in search.front()]
    corner = (1.0, errors[:, -1].sum())
    # of 256 plans it tries a part, so it need not have every one of the front
    assert len(search.evaluated) < 200
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
    assert len(task.solved) == len(set(task.solved)) == len(search.evaluated) == len(found.frame)
    assert found.frame["widths"].is_unique
    assert set(found.frame["origin"]) <= {"uniform", "greedy", "additive", "nsga2", "random"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a search over three widths finds."""
    work = tmp_path_factory.mktemp("whole")
    return run(searched(work, model=slimmable((0.0, 0.1, 0.3))), work)


@pytest.mark.parametrize("origin", ["uniform", "greedy", "additive", "nsga2", "random"])
def test_a_search_that_was_interrupted_ends_as_it_would_have(tmp_path, monkeypatch, whole, origin):
    model = slimmable((0.0, 0.1, 0.3))
    stop = int(np.flatnonzero(whole.frame["origin"] == origin)[-1])  # the last of its kind is lost
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        host = this_worker().rpartition(":")[0]
        patch.setattr(studies, "this_worker", lambda: f"{host}:999999999")
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
        assert found["fd"] is None and found["error"] == search.evaluated[widths_of(plan)].error
        assert plan.provenance["parents"] == [parent.hash] and plan.provenance["preset"] == "ddim"
        assert plan.provenance["seeds"] == {
            "trials": [5, 9],
            "stepaware-search": [SETTINGS.seed, SETTINGS.seed + 15],
            "stepaware-choice": [SETTINGS.seed + 1_000_000, SETTINGS.seed + 1_000_063],
        }
        json.dumps(plan.to_json(), allow_nan=False)
        save_plan(plan, tmp_path / "plan.json")
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


def broken_in(step, delta=0.1):
    """A model whose narrow network is infinite in one step."""
    t = ddim().nodes[step].t

    def h(time):
        return torch.where((time - t).abs() < 1e-6, torch.inf, 1.0)

    return slimmable((0.0, delta), h=h)


def test_plans_that_fail_are_counted_and_left_out(tmp_path):
    search = searched(tmp_path, model=broken_in(2))
    found = run(search, tmp_path)
    failed = [w for w, one in search.evaluated.items() if one.error == np.inf]
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


def test_only_plans_with_searched_widths_of_one_parent_are_picked_from(plain, whole):
    for wrong in ([], [ddim()], [*plain[1].plans, replace(whole.plans[0], provenance={"parents": ["0"]})]):
        with pytest.raises(ConfigError, match="must have searched widths and one parent"):
            pick(wrong, 1.0)
