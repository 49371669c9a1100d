"""A comparison that stops where it is sure: the same winners, for fewer images."""

import numpy as np
import pytest
from unit.methods.s3.stage.test_known import search_of, untracked
from unit.methods.s3.stage.test_polish import images_search

from fewstep.methods.s3.stage.known import SECOND_LOOK, known_samplers
from fewstep.methods.s3.stage.race import race
from fewstep.methods.s3.stage.scoring import Candidate
from fewstep.sampling.presets import PRESETS


def test_the_best_by_a_race_are_those_of_a_full_comparison_for_fewer_calls():
    search = search_of(5)
    known, seeds = known_samplers(search), search.teacher.validation
    full = sorted(known, key=lambda c: search.error(c.plan, seeds))
    search.task.calls = 0
    raced = race(
        search, known, seeds, by="error", places=SECOND_LOOK, rounds=3, progress=untracked("", unit="")
    )
    assert search.task.calls < 0.8 * len(known) * len(seeds) * 5
    best = {c.plan.hash for c in full[:5]}
    assert best == {c.plan.hash for c in raced[:5]}
    assert raced[0].error == pytest.approx(search.error(full[0].plan, seeds), rel=1e-9)
    images = [c.images for c in raced]
    assert images == sorted(images, reverse=True) and images[-1] < images[0] == len(seeds)
    assert len(raced) == len(known)  # nobody is lost


def test_what_is_protected_is_measured_to_the_end_however_bad():
    search = images_search(finalist_images=512)
    schedule = search.space.schedule
    plans = [
        PRESETS["ddim"](schedule, 3, grid=grid, to_zero=True)
        for grid in ("uniform-t", "karras", "quadratic-t")
    ]
    candidates = [Candidate(str(k), plan) for k, plan in enumerate(plans)]
    seeds = range(5_000_000, 5_000_512)
    raced = race(search, candidates, seeds, by="fd", places=1, rounds=3)
    assert [c.images for c in raced][0] == 512
    out = [c.name for c in raced if c.images < 512]
    assert out  # one of them is far behind
    kept = race(search, candidates, seeds, by="fd", places=1, rounds=3, protected=lambda c: c.name in out)
    by_name = {c.name: c for c in kept}
    assert all(by_name[name].images == 512 for name in out)
    assert by_name[out[0]].fd == pytest.approx(search.distance(by_name[out[0]].plan, seeds), rel=1e-9)
    assert kept[0].name == raced[0].name and np.isfinite([c.fd for c in kept]).all()
