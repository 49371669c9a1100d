"""Plans of another model as initial plans: the same sampler on the same schedule, and in the frame that all share."""

import math
from dataclasses import replace

import pytest
import torch
from unit.methods.s3.stage.searching import mixture

from fewstep.checks import ConfigError
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import EDM, VPLinear
from fewstep.methods.s3.transfer import require_calls, transferred
from fewstep.sampling.free import FreePlan
from fewstep.sampling.presets import PRESETS, analytical
from fewstep.sampling.sample import solve


def polished_plan(schedule, nfe=4, **options):
    """One with numbers of no known sampler."""
    free = FreePlan(PRESETS["dpmpp-2m"](schedule, nfe, grid="uniform-lambda", **options), schedule)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in free.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return free.plan()


@pytest.mark.parametrize("to_zero", [True, False])
def test_on_its_own_schedule_a_plan_is_the_same_sampler(to_zero):
    model = mixture()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for plan in (
        polished_plan(model.schedule, to_zero=to_zero),
        PRESETS["unipc-2"](model.schedule, 5, to_zero=to_zero),
        analytical(PRESETS["ipndm-3"], model.schedule, 4, grid="karras", to_zero=to_zero),
    ):
        guided = replace(plan, fingerprint="a" * 64, guidance=3.0)
        made = transferred(guided, model.schedule)
        assert (made.fingerprint, made.guidance, made.provenance) == (None, None, {"parents": [guided.hash]})
        torch.testing.assert_close(solve(model, made, x), solve(model, plan, x), rtol=1e-10, atol=1e-10)


def test_on_a_schedule_of_the_same_noise_levels_images_are_the_same():
    """x / alpha of a variance-preserving model, and x of a variance-exploding one between the same noise levels."""
    vp = VPLinear()
    ends = vp.edm_sigma(torch.tensor([vp.t_min, vp.t_start], dtype=torch.float64)).tolist()
    ve = EDM(sigma_min=ends[0], sigma_max=ends[1])
    one = mixture()
    rng = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(3, 4, generator=rng, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    stds = torch.tensor([0.1, 0.2, 0.15], dtype=torch.float64)
    other = GaussianMixture(weights, means, stds).model(ve)
    plan = polished_plan(one.schedule, to_zero=True)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha = float(vp.alpha(torch.tensor([vp.t_start], dtype=torch.float64)))
    moved = transferred(plan, ve)
    torch.testing.assert_close(solve(other, moved, x / alpha), solve(one, plan, x), rtol=1e-6, atol=1e-6)


def test_where_the_ends_differ_nodes_keep_their_share_of_the_range():
    plan = polished_plan(VPLinear(), to_zero=True)
    made = transferred(plan, EDM())
    assert made.nodes[0].t == EDM().t_start and math.isinf(made.nodes[-1].lambda_)
    shares = []
    for one, schedule in ((plan, VPLinear()), (made, EDM())):
        a, b = schedule.lambda_(
            torch.tensor([schedule.t_start, schedule.t_min], dtype=torch.float64)
        ).tolist()
        shares.append([(node.lambda_ - a) / (b - a) for node in one.nodes[:-1]])
    assert shares[0] == pytest.approx(shares[1], abs=1e-9)


def test_what_no_search_can_start_from_is_one_sentence():
    plan = polished_plan(VPLinear(), to_zero=True)
    narrow = replace(plan, nodes=(replace(plan.nodes[0], width=1), *plan.nodes[1:]))
    with pytest.raises(
        ConfigError, match="changes its width or bits; start at the plan that it was made from"
    ):
        transferred(narrow, VPLinear())
    with pytest.raises(ConfigError, match="numbers of calls of --nfe, 5, 6; .* makes 4"):
        require_calls([plan], [5, 6])
