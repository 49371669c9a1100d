"""The tiers of a polish: where they start, what they leave, and from where they resume."""

import json
from dataclasses import replace

import pytest
import torch
from unit.methods.ddsm.stage.slimming import pixels, reference, slimmable
from unit.methods.s3.stage.searching import mixture
from unit.methods.s3.stage.test_known import search_of, untracked

from fewstep.methods.s3.space import Space
from fewstep.methods.s3.stage.known import best_known
from fewstep.methods.s3.stage.polish import _frechet_tier, _trajectory_tier, polished
from fewstep.methods.s3.stage.scoring import Candidate, Search
from fewstep.methods.s3.stage.seeds import search_seeds
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.methods.s3.stage.solutions import solve_teacher
from fewstep.metrics.loss import FrechetLoss
from fewstep.metrics.statistics import Statistics
from fewstep.sampling.descent import frechet_gradient
from fewstep.sampling.free import FreePlan
from fewstep.sampling.linear import linear_form
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.solver import Values
from fewstep.sampling.task import Task


def initial(search):
    schedule = search.space.schedule
    explicit = (
        c
        for c in best_known(search, untracked)
        if len(c.plan.nodes) - 1 == len(linear_form(c.plan, schedule))
    )
    return next(explicit)


@pytest.fixture(scope="module")
def search():
    return search_of(4)


def tier(search, work, **changes):
    made = replace(_trajectory_tier(search, work, untracked), iterations=6, lr=0.03, checks=3)
    return replace(made, **changes)


def test_a_tier_improves_on_the_plan_that_it_is_given_and_leaves_that_as_it_is(search, tmp_path):
    start = initial(search)
    free = FreePlan(start.plan, search.space.schedule)
    before = free.numbers_now()
    end = tier(search, tmp_path).run(free)
    assert (
        free.numbers_now() == before
        and free.plan().hash == FreePlan(start.plan, search.space.schedule).plan().hash
    )
    assert end.candidate.name == "polished.trajectory" and end.candidate.parents == (start.plan.hash,)
    assert end.candidate.plan.hash == end.free.plan().hash != free.plan().hash
    assert end.curve[0]["iteration"] == 0 and end.curve[0]["loss"] is None
    best = min(point["validation"] for point in end.curve)
    assert best < end.curve[0]["validation"]
    assert search.error(end.candidate.plan) == pytest.approx(best, rel=1e-12)


def test_a_next_tier_starts_where_the_first_one_ended(search, tmp_path):
    free = FreePlan(initial(search).plan, search.space.schedule)
    first = tier(search, tmp_path).run(free)
    second = tier(search, tmp_path, name="second", file=tmp_path / "second.json").run(first.free)
    assert second.curve[0]["validation"] == min(point["validation"] for point in first.curve)
    assert second.candidate.parents == first.candidate.parents


def refuse(*_):
    raise AssertionError("this tier has ended before")


def test_a_tier_resumes_from_its_file(search, tmp_path):
    free = FreePlan(initial(search).plan, search.space.schedule)
    first = tier(search, tmp_path).run(free)
    assert json.loads((tmp_path / "trajectory.json").read_text())["curve"] == first.curve
    again = tier(search, tmp_path, gradient=refuse, judge=refuse).run(free)
    assert again.candidate.plan == first.candidate.plan and again.curve == first.curve
    assert again.candidate.parents == first.candidate.parents
    assert again.free.numbers_now() == first.free.numbers_now()


@pytest.mark.parametrize("change", ["initial plan", "settings"])
def test_what_another_start_left_is_not_resumed_from(search, tmp_path, change):
    free = FreePlan(initial(search).plan, search.space.schedule)
    end = tier(search, tmp_path).run(free)
    changed = {"identity": ["other"]} if change == "settings" else {}
    start = end.free if change == "initial plan" else free
    with pytest.raises(AssertionError, match="this tier has ended before"):
        tier(search, tmp_path, judge=refuse, **changed).run(start)


def images_search(**settings):
    """A search that is judged by the distance between sets of images, of a Gaussian."""
    made = {"noises": 16, "trial_noises": 16, "teacher_nfe": 20, "finalist_images": 64, "polish_iterations": 4,
            "frechet_iterations": 3, "frechet_images": 64, **settings}  # fmt: skip
    task, valid = Task(slimmable(), batch_size=64), SearchSettings(**made)
    teacher = solve_teacher(task, valid, to_zero=True)
    return Search(task, teacher, Space(task.model.schedule, 3), valid, reference(), pixels())


def ddim_candidate(search):
    plan = PRESETS["ddim"](search.space.schedule, 3, grid="uniform-t", to_zero=True)
    return Candidate("ddim.uniform-t", plan, (plan.hash,))


def test_with_a_reference_the_plan_is_polished_on_sets_of_images_that_no_two_updates_share(tmp_path):
    search = images_search(frechet_iterations=20, frechet_images=16, frechet_memory=32)
    search.seeds = search_seeds(search.settings)
    start, before = ddim_candidate(search), search.task.calls
    candidates, curves = polished(search, start, tmp_path, untracked)
    assert [c.name for c in candidates] == ["polished.frechet"] and list(curves) == ["frechet"]
    assert candidates[0].parents == (start.plan.hash,)
    # the memory's images once, without a gradient; the plan is judged before and after by 64
    assert search.task.calls - before == 3 * (20 * 16 + 32 + 2 * 64)
    tier = _frechet_tier(search, tmp_path, untracked)
    drawn = [seed for i in range(20) for seed in tier.seeds(i)]
    assert len(drawn) == len(set(drawn)) and set(drawn) == set(search.seeds["polish"])
    plain = FreePlan(start.plan, search.space.schedule).plan()
    assert curves["frechet"][0]["validation"] == tier.judge(plain)


def test_tiers_without_iterations_are_left_out(tmp_path):
    without = search_of(4)
    without.settings = without.settings.model_copy(update={"polish_iterations": 0})
    for search in (without, images_search(frechet_iterations=0)):
        assert polished(search, initial_of(search), tmp_path, untracked) == ([], {})
    assert not list(tmp_path.iterdir())


def initial_of(search):
    return ddim_candidate(search) if search.reference is not None else initial(search)


def test_the_distance_of_an_update_is_that_of_the_latest_images_too():
    """By hand: 24 images before, then 8 of each update, the oldest forgotten; slopes go through the new ones alone."""
    task, schedule = Task(mixture(), batch_size=64), mixture().schedule
    plan = FreePlan(PRESETS["ddim"](schedule, 3, grid="uniform-t", to_zero=True), schedule).form
    values = Values.of(plan)
    target = Statistics.from_features(task.solve(plan, range(500, 600)).numpy() + 0.5)
    loss = FrechetLoss(target)
    gradient = frechet_gradient(task, loss, lambda x0: x0, before=range(24))
    images = task.solve(plan, range(40))
    for k in range(2):
        leaves = Values(*(v.detach().clone().requires_grad_(v.is_floating_point()) for v in values))
        found = gradient(plan, leaves, range(24 + 8 * k, 32 + 8 * k))
        kept, new = images[8 * k : 24 + 8 * k], range(24 + 8 * k, 32 + 8 * k)
        own = Values(*(v.detach().clone().requires_grad_(v.is_floating_point()) for v in values))
        expected = loss(torch.cat([kept, task.solve(plan, new, values=own)]))
        expected.backward()
        assert found == pytest.approx(float(expected.detach()), rel=1e-5)  # states are float32
        torch.testing.assert_close(leaves.raw.grad, own.raw.grad, rtol=1e-3, atol=1e-4)
