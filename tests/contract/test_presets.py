"""What every entry of PRESETS must do."""

import json
import math
from functools import partial

import oracles
import pytest
import torch

from fewstep.checks import ConfigError
from fewstep.diffusion.grids import GRIDS
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import EDM, Cosine, DDPMTable, Flow, VPLinear
from fewstep.rng import generator
from fewstep.sampling.plan import plan_from_json
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import Costs, solve

SCHEDULES = {
    "vp-linear": VPLinear(),
    "ddpm": DDPMTable.linear(),
    "cosine": Cosine(),
    "edm": EDM(),
    "flow": Flow(),
}
MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]).double(),
    torch.tensor([[0.5, 0.1], [-0.4, 0.3]]).double(),
    torch.tensor([0.2, 0.4]).double(),
)


def make(name, schedule, nfe, **options):
    try:
        return PRESETS[name](schedule, nfe, **options)
    except ConfigError as error:
        assert "nfe" in str(error), "only the number of evaluations may be refused here"
        return None


@pytest.mark.parametrize("name", PRESETS)
def test_a_known_sampler_says_which_and_on_which_grid(name):
    plan = next(filter(None, (make(name, VPLinear(), nfe, grid="uniform-t") for nfe in (4, 5))))
    assert plan.provenance == {"preset": name, "grid": "uniform-t"} and plan.sampler == name


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", PRESETS)
def test_plans_are_what_was_asked_for(name, schedule):
    schedule = SCHEDULES[schedule]
    made = 0
    for grid in GRIDS:
        for nfe in (1, 2, 3, 10):
            for to_zero in (False, True):
                plan = make(name, schedule, nfe, grid=grid, to_zero=to_zero)
                if plan is None:
                    continue
                made += 1
                assert plan.nfe == nfe and plan.to_zero == to_zero
                assert plan.name == f"{name}.{grid}{'.to-zero' if to_zero else ''}.nfe{nfe}"
                # steps on eps would multiply the rounding of x_T by 1 / alpha nearer to t_max
                on_eps = any(step.pred == "eps" for step in plan.steps)
                shifted = grid == "shifted" and not on_eps
                assert plan.nodes[0].t == (schedule.t_max if shifted else schedule.t_start)
                assert plan.nodes[-1].t == (0 if to_zero else schedule.t_min)
                assert plan_from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False))) == plan
    assert made >= 16


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", PRESETS)
def test_plans_run_at_the_cost_they_state(name, schedule):
    schedule = SCHEDULES[schedule]
    rng = generator(0)

    def noise():
        return torch.randn(4, 2, generator=rng, dtype=torch.float64)

    for grid, nfe, to_zero in (("uniform-lambda", 5, False), ("quadratic-t", 7, True)):
        costs = Costs()
        plan = PRESETS[name](schedule, nfe, grid=grid, to_zero=to_zero)
        x0 = solve(MIXTURE.model(schedule), plan, schedule.prior_std * noise(), noise=noise, costs=costs)
        assert costs.nfe == costs.network_calls == plan.nfe == nfe
        assert bool(x0.isfinite().all())


@pytest.mark.parametrize("name", PRESETS)
def test_ends_of_the_grid_can_be_moved(name):
    plan = PRESETS[name](VPLinear(), 5, t_start=0.8, t_end=0.01)
    assert (plan.nodes[0].t, plan.nodes[-1].t) == (0.8, 0.01)
    with pytest.raises(ConfigError, match="A grid must fall from t_start to t_end"):
        PRESETS[name](VPLinear(), 5, t_end=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_what_they_are(name):
    preset = PRESETS[name]
    sampler = preset.sampler.func if isinstance(preset.sampler, partial) else preset.sampler
    assert preset.name == name
    assert "[" in sampler.__doc__, "cite the paper"
    assert (preset.order is None) == preset(VPLinear(), 3).stochastic
    assert math.isfinite(PRESETS[name](VPLinear(), 3).nodes[-1].lambda_)


ON_A_LINE = GaussianMixture(
    torch.tensor([0.4, 0.6]).double(),
    torch.tensor([[-0.8], [0.7]]).double(),
    torch.tensor([0.5, 0.4]).double(),
)
RANGES = {"uniform-lambda": (1000.0, 0.5), "uniform-t": (12.0, 0.8)}
"""edm_sigma at both ends. A multistep method's first steps are of lower order: the range starts where x0_hat hardly
changes, so that they are exact. It ends where the distribution is still smooth, so that 240 steps are many."""


def solution_error(preset, nfe):
    """The largest of 16 points' distances to the exact flow, in steps equal in log-SNR or, for t = sigma, in sigma."""
    grid = "uniform-lambda" if preset.grid == "uniform-lambda" else "uniform-t"
    start, end = RANGES[grid]
    schedule = EDM(end, start)
    x = start * torch.linspace(-1.5, 1.5, 16, dtype=torch.float64)
    weights, means, stds = ON_A_LINE.weights, ON_A_LINE.means[:, 0], ON_A_LINE.stds
    options = {"lower_final": False} if preset.name.startswith(("dpmpp", "unipc")) else {}
    solution = solve(ON_A_LINE.model(schedule), preset(schedule, nfe, grid=grid, **options), x[:, None])
    return float((solution[:, 0] - oracles.mixture_flow(weights, means, stds, x, start, end)).abs().max())


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.order is not None])
def test_observed_order_is_the_claimed_one(name):
    preset = PRESETS[name]
    # heun has odd counts, and with 3 k + 2 calls DPM-Solver-fast's last step of order 2 costs no order
    more = {"heun": 1, "dpm-solver-3s": 2}.get(name, 0)
    coarse, fine = (solution_error(preset, n + more) for n in (240, 480))
    # observed with these counts: within 0.12 of the order; orders are integers, which 0.25 cannot confuse
    assert math.log2(coarse / fine) == pytest.approx(preset.order, abs=0.25)
    assert fine > 1e-8  # far above rounding, of 1000 in float64
