"""What plans ask of a network, counted by hand."""

from fewstep.diffusion.schedule import VPLinear
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.work import evaluations_of, full_calls


def test_calls_at_reduced_width_count_the_square_of_their_share():
    plan = PRESETS["ddim"](VPLinear(), 4, grid="uniform-t").with_node(1, width=1).with_node(2, width=2)
    assert evaluations_of(plan) == [1, 1, 1, 1]
    assert full_calls(plan, (1.0, 0.5, 0.25)) == 2 + 0.25 + 0.0625


def test_every_evaluation_counts():
    plans = [PRESETS[name](VPLinear(), 9, grid="uniform-t") for name in ("ddim", "heun", "unipc-2")]
    assert [full_calls(plan, (1.0,)) for plan in plans] == [plan.nfe for plan in plans]
