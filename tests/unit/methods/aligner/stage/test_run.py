"""The alignment of a plan: what is fitted, what is chosen by which measure, and what the plan then says of it."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from unit.methods.aligner.clocks import VP, clock, mixture
from unit.methods.ddsm.stage.slimming import SHAPE, STD, ddim, pixels, reference, silent

from fewstep.checks import ConfigError
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.methods.aligner.stage.run import Aligning, alignment_seeds
from fewstep.methods.aligner.stage.settings import AlignSettings
from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Statistics
from fewstep.pipeline.measure import features_of
from fewstep.pipeline.seeds import require_unseen
from fewstep.rng import generator
from fewstep.sampling.document import save_plan
from fewstep.sampling.plan import load_plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task, distances

SETTINGS = AlignSettings(noises=64, gate_noises=64, choice_images=256, refine_iterations=0)
TEST = range(500)


def biased(bias=0.15):
    """Noise prediction of images N(0, STD^2) by a network whose clock goes wrong."""
    data = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 4).double(), torch.tensor([STD]).double())

    def fn(x, t):
        return data.eps(x.flatten(1), clock(t.double(), bias), VP).reshape(x.shape)

    return Model(fn, schedule=VP, shape=SHAPE, fingerprint="f" * 64, name="gaussian")


def vectors(kind="wide"):
    exact = mixture(kind)
    return Model(lambda x, t: exact.eps(x, t.double(), VP), schedule=VP, shape=(8,), fingerprint="f" * 64)


def images(n=128):
    return STD * torch.randn(n, *SHAPE, generator=generator(1))


def aligning(model=None, plan=None, **changes):
    arguments = {"images": images(), "track": silent} | changes
    settings = arguments.pop("settings", SETTINGS)
    return Aligning(Task(model or biased(), batch_size=256), plan or ddim(5), settings, **arguments)


def with_reference(**changes):
    return aligning(reference=reference(), extractor=pixels(), **changes)


def fd(plan):
    made = features_of(Task(biased(), batch_size=256), plan, TEST, pixels())
    return frechet(Statistics.from_features(made), reference().statistics).value


# What is chosen


def test_the_plan_nearest_to_the_reference_is_chosen(tmp_path):
    parent = replace(ddim(5), name="ddim5", provenance={"preset": "ddim", "seeds": {"trials": [7, 9]}})
    aligned = with_reference(plan=parent).run()
    plan, record = aligned.plan, aligned.record
    assert fd(plan) < 0.7 * fd(parent)
    assert record["measure"] == "fd" and record["after"] < record["before"] and record["why"] == ""
    names = [row["name"] for row in record["candidates"]]
    assert names == ["trajectory", "trajectory+scale", "paper", "paper+scale"]
    best = min(record["candidates"], key=lambda row: row["value"])
    assert record["chosen"] == best["name"] and best["hash"] == replace(plan, provenance={}).hash
    value, low, high = best["difference"]
    assert low < value < high < 0 and value == pytest.approx(record["after"] - record["before"])
    assert [node["node"] for node in record["nodes"]] == [0, 1, 2, 3, 4]
    assert (plan.name, plan.fingerprint, plan.guidance) == ("ddim5.aligned", "f" * 64, 1.0)
    assert plan.nfe == parent.nfe and plan.steps == parent.steps
    assert plan.provenance["parents"] == [parent.hash] and plan.provenance["align"] == record
    assert plan.provenance["preset"] == "ddim" and plan.sampler == "ddim+aligned"
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


def test_without_a_reference_the_plan_nearest_to_fine_solutions_is_chosen():
    one = aligning()
    aligned = one.run()
    fine = one.task.solve(PRESETS["unipc-3"](VP, 100), TEST)
    before, after = (distances(one.task.solve(plan, TEST), fine).mean() for plan in (ddim(5), aligned.plan))
    assert after < 0.7 * before
    # the biased network's own fine solutions are what it is judged by, so images do not help
    assert aligned.record["measure"] == "error" and aligned.record["chosen"].startswith("trajectory")
    assert aligned.record["network_calls"] > 0


def test_scales_need_to_be_wanted():
    record = aligning(settings=replace_settings(magnitude=False)).run().record
    assert [row["name"] for row in record["candidates"]] == ["trajectory", "paper"]
    assert all(node["eps_scale"] == 1 for node in record["nodes"])


def replace_settings(**changes):
    return AlignSettings.model_validate({**SETTINGS.model_dump(), **changes})


def test_a_plan_that_gets_worse_stays():
    """The published objective harms an exact network on short steps, though each step passes its gate."""
    plan = PRESETS["ddim"](VP, 10, grid="uniform-t")
    settings = replace_settings(objectives=["paper"], magnitude=False)
    made = aligning(
        vectors(), plan, images=mixture("wide").sample(128, rng=generator(1)), settings=settings
    ).run()
    assert made.plan.hash == plan.hash and made.plan.name == plan.name
    assert made.record["chosen"] is None and made.record["after"] is None
    (row,) = made.record["candidates"]
    assert row["moved"] > 3 and row["difference"][0] > 0
    assert made.record["why"] == "no fit was significantly better on images that none had seen"
    assert made.plan.provenance["align"] == made.record and "parents" not in made.plan.provenance


def test_a_plan_without_a_gain_stays():
    plan = PRESETS["unipc-3"](VP, 1)
    settings = replace_settings(objectives=["paper"])  # which leaves the last step, here the only one
    made = aligning(plan=plan, settings=settings).run()
    assert made.plan.hash == plan.hash and made.record["before"] is None
    assert made.record["why"] == "no fit was better on noises that it had not seen"


@pytest.mark.parametrize("measured", [aligning, with_reference])
def test_refinement_is_a_further_candidate(measured):
    made = measured(settings=replace_settings(objectives=["trajectory"], refine_iterations=10))
    record = made.run().record
    rows = {row["name"]: row for row in record["candidates"]}
    assert list(rows) == ["trajectory", "trajectory+scale", "refined"]
    assert rows["refined"]["value"] < rows["trajectory"]["value"]
    assert rows["refined"]["error"]["before"] == pytest.approx(rows["trajectory"]["error"]["before"])
    assert ("align-refine" in made.seeds.as_json()) and record["nodes"]


def test_refinement_starts_from_the_plan_itself_where_the_fits_are_worse():
    plan = PRESETS["ddim"](VP, 10, grid="uniform-t")
    settings = replace_settings(objectives=["paper"], magnitude=False, refine_iterations=10)
    images = mixture("wide").sample(128, rng=generator(1))
    made = aligning(vectors(), plan, images=images, settings=settings).run()
    rows = {row["name"]: row for row in made.record["candidates"]}
    assert rows["paper"]["difference"][0] > 0 and made.record["chosen"] == "refined"
    assert rows["refined"]["error"]["after"] < rows["refined"]["error"]["before"]


def test_the_same_settings_give_the_same_plan():
    first, second = (aligning().run() for _ in range(2))
    assert first.plan.hash == second.plan.hash
    other = aligning(settings=replace_settings(seed=5)).run()
    assert other.plan.hash != first.plan.hash


# Plans with noise


def test_plans_with_noise_are_chosen_by_a_reference():
    plan = PRESETS["ddpm"](VP, 5)
    made = with_reference(plan=plan, settings=replace_settings(objectives=["trajectory", "denoise"]))
    assert list(made.left_out) == ["trajectory"] and "deterministic path" in made.left_out["trajectory"]
    record = made.run().record
    assert [row["name"] for row in record["candidates"]] == ["denoise", "denoise+scale"]
    assert all(row["error"] is None for row in record["candidates"])
    with pytest.raises(ConfigError, match=r"no fine solutions to choose by .* pass a reference"):
        aligning(plan=plan)


# Images


def test_objectives_without_their_images_are_left_out():
    made = aligning(images=None)
    assert made.objectives == ["trajectory"] and "needs images (N, 1, 2, 2)" in made.left_out["paper"]
    with pytest.raises(ConfigError, match="No objective can be used: The objective paper needs images"):
        aligning(images=None, settings=replace_settings(objectives=["paper"]))


# Seeds


def test_all_images_are_refused_for_evaluation():
    aligned = aligning(settings=replace_settings(refine_iterations=1))
    blocks = aligned.seeds.as_json()
    assert list(blocks) == ["align-fit", "align-gate", "align-choice", "align-refine", "align-validation"]
    ends = sorted(blocks.values())
    assert all(a[1] < b[0] for a, b in zip(ends[:-1], ends[1:], strict=True))
    plan = aligned.run().plan
    assert plan.provenance["seeds"] == blocks
    for first, last in blocks.values():
        for seed in (first, last):
            with pytest.raises(ConfigError, match="choose other seeds"):
                require_unseen(plan, [seed])
    with pytest.raises(ConfigError, match="choose other seeds"):
        require_unseen(plan, aligned.seeds)
    require_unseen(plan, range(10_000))


def test_earlier_seeds_stay_refused():
    parent = replace(ddim(5), provenance={"seeds": {"trials": [7, 9]}})
    assert aligning(plan=parent).run().plan.provenance["seeds"]["trials"] == [7, 9]
    assert alignment_seeds(SETTINGS)["fit"] == range(1_500_000_000, 1_500_000_064)


# Settings


def test_settings_are_checked():
    assert AlignSettings().objectives == ["trajectory", "paper"] and AlignSettings().nfe == []
    for changes in ({"nfe": [4, 4]}, {"objectives": ["paper", "paper"]}, {"objectives": []}):
        with pytest.raises(ValidationError):
            AlignSettings(**changes)
