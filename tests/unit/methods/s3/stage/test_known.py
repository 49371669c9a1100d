"""What a search starts from."""

from dataclasses import replace

import pytest
from unit.methods.s3.stage.searching import mixture

from fewstep.diffusion.denoiser import Model
from fewstep.methods.s3.space import Space, plan_of
from fewstep.methods.s3.stage.known import (
    KNOWN,
    Neighbour,
    best_known,
    first_decisions,
    known_samplers,
    look,
)
from fewstep.methods.s3.stage.scoring import Candidate, Search
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.methods.s3.stage.solutions import solve_teacher
from fewstep.sampling.presets import ANALYTIC, PRESETS, analytical
from fewstep.sampling.task import Task


def search_of(nfe, *, analytic=True):
    settings = SearchSettings(noises=16, trial_noises=16, teacher_nfe=20, finalist_images=16)
    task = Task(mixture(), batch_size=64)
    teacher = solve_teacher(task, settings, to_zero=True)
    return Search(task, teacher, Space(task.model.schedule, nfe, analytic=analytic), settings)


def untracked(description, *, unit):
    return iter


@pytest.mark.parametrize("nfe", [4, 5])
def test_every_deterministic_preset_is_known_on_every_grid_with_and_without_an_analytic_step(nfe):
    known = known_samplers(search_of(nfe))
    assert len({c.plan.hash for c in known}) == len(known)
    assert all(c.plan.nfe == nfe and not c.plan.stochastic for c in known)
    assert all(c.parents == (c.plan.hash,) and c.plan.provenance["preset"] for c in known)
    hashes, schedule = {c.plan.hash for c in known}, mixture().schedule
    for preset in ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3-bh1", "ipndm-3"):
        for grid in ("uniform-t", "uniform-lambda", "quadratic-t", "karras"):
            options = {"grid": grid, "to_zero": True}
            assert PRESETS[preset](schedule, nfe, **options).hash in hashes
            assert analytical(PRESETS[preset], schedule, nfe, **options).hash in hashes
    assert {"ddim.gits", "ddim.gits" + ANALYTIC} <= {c.name for c in known}
    for c in known:
        starts = c.plan.nodes[0].eval
        assert starts == ("afs_zero" if c.name.endswith(ANALYTIC) else "net"), c.name
        assert c.name.split(".")[0] in PRESETS


def test_a_space_without_an_analytic_step_knows_none():
    names = [c.name for c in known_samplers(search_of(4, analytic=False))]
    assert names and not any(name.endswith(ANALYTIC) for name in names)


def test_the_best_known_are_ranked_by_their_error_on_validation_seeds():
    search = search_of(4)
    best = best_known(search, untracked)
    assert len(best) == KNOWN
    errors = [search.error(candidate.plan) for candidate in best]
    # measured in rounds, so that sums differ in the last bit
    assert [candidate.error for candidate in best] == pytest.approx(errors, rel=1e-12)
    assert errors == sorted(errors)


def test_candidates_whose_state_is_not_finite_are_left_out():
    search = search_of(4)
    candidates = known_samplers(search)[:3]
    broken = candidates[1].plan.nodes[2].t
    exact = search.task.model

    def fn(x, t, *labels):
        return exact.fn(x, t, *labels) * (float("inf") if abs(float(t.flatten()[0]) - broken) < 1e-6 else 1.0)

    search.task.model = Model(fn, schedule=exact.schedule, shape=exact.shape, prediction=exact.prediction)
    looked = look(search, candidates, untracked)
    with_that_time = [c.name for c in candidates if any(node.t == broken for node in c.plan.nodes)]
    assert candidates[1].name in with_that_time
    assert {c.name for c in looked} == {c.name for c in candidates} - set(with_that_time)


def test_neighbours_are_lengthened_and_shortened_at_each_step():
    search = search_of(4)
    known = [c for c in best_known(search, untracked) if search.space.decisions(c.plan)][:1]
    decisions = search.space.decisions(known[0].plan)
    neighbours = [Neighbour(f"nfe{nfe}.trial-1", nfe, decisions_of(nfe)) for nfe in (3, 5, 6)]
    first = first_decisions(search.space, known, neighbours)
    names = [name for name, _ in first]
    assert first[0] == (known[0].name, decisions)
    assert names[1:] == [
        *(f"nfe3.trial-1.with-step-{step}" for step in range(3)),
        *(f"nfe5.trial-1.without-step-{step}" for step in range(5)),
    ]
    assert all(plan_of(search.space, made).nfe == 4 for _, made in first)


def decisions_of(nfe):
    schedule = mixture().schedule
    return Space(schedule, nfe).decisions(PRESETS["ddim"](schedule, nfe, to_zero=True))


def test_a_candidate_that_is_no_point_of_the_space_is_no_trial():
    search = search_of(4)
    plan = PRESETS["ddim"](mixture().schedule, 4, to_zero=True)
    other = replace(plan, clip=1.0)
    assert first_decisions(search.space, [Candidate("clipped", other)], []) == []
