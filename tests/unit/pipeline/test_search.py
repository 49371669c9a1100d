"""What a search starts from."""

import pytest
from unit.pipeline.searching import mixture

from fewstep.methods.s3.space import Space
from fewstep.methods.s3.teacher import make_teacher
from fewstep.pipeline.config import SearchSettings
from fewstep.methods.s3.stage.run import Search, Seeds
from fewstep.sampling.presets import ANALYTIC, PRESETS, analytical
from fewstep.sampling.task import Task


def search_of(nfe, *, analytic):
    settings = SearchSettings(noises=16, trial_noises=16, finalist_images=16)
    task, seeds = Task(mixture(), batch_size=64), Seeds.of(settings)
    teacher = make_teacher(task, seeds.trials, seeds.validation, nfe=20, to_zero=True)
    return Search(task, teacher, Space(task.model.schedule, nfe, analytic=analytic), settings)


@pytest.mark.parametrize("nfe", [4, 5])
def test_every_deterministic_preset_is_known_on_every_grid_with_and_without_an_analytic_step(nfe):
    known = search_of(nfe, analytic=True).known()
    assert len({c.plan.hash for c in known}) == len(known)
    assert all(c.plan.nfe == nfe and not c.plan.stochastic for c in known)
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
    found = [c.name for c in search_of(4, analytic=False).known()]
    assert found and not any(name.endswith(ANALYTIC) for name in found)
