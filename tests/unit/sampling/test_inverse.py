"""Plans run backwards, on networks that are known exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from unit.sampling.test_region import TABLE
from unit.sampling.toys import small_mixture

from fewstep.checks import ConfigError
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import VPLinear
from fewstep.rng import generator
from fewstep.sampling.inverse import inverse, stretch
from fewstep.sampling.plan import plan_from_json
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import sample, solve


def gaussian(mean=1.5, std=0.3):
    return GaussianMixture(
        torch.ones(1, dtype=torch.float64),
        torch.full((1, 1), mean, dtype=torch.float64),
        torch.full((1,), std, dtype=torch.float64),
    ).model(TABLE)


def data(n=2000):
    return 1.5 + 0.3 * torch.randn(n, 1, generator=generator(0), dtype=torch.float64)


def plan_of(calls, t=0.5, **options):
    return PRESETS["ddim"](TABLE, calls, grid="uniform-t", t_start=t, to_zero=True, **options)


def test_a_stretch_is_a_plan_between_two_nodes():
    plan = PRESETS["ddpm"](TABLE, 6, grid="uniform-t", to_zero=True)
    part = stretch(plan, 2, 5)
    assert [node.t for node in part.nodes] == [node.t for node in plan.nodes[2:6]] and part.nfe == 3
    assert not part.to_zero and stretch(plan, 5, 6).to_zero


def test_an_inverse_goes_through_the_same_times_and_starts_at_the_first_row():
    plan = plan_of(6)
    back = inverse(plan, TABLE)
    assert [node.t for node in back.nodes] == [node.t for node in reversed(plan.nodes[:-1])]
    assert back.nodes[0].t == TABLE.t_min and back.nfe == 5 and back.inverse
    above = PRESETS["ddim"](TABLE, 4, grid=[0.5, 0.4, 0.3, 0.2], to_zero=True)
    assert [node.t for node in inverse(above, TABLE).nodes] == pytest.approx([0.001, 0.2, 0.3, 0.4, 0.5])


def test_the_error_of_going_there_and_back_halves_with_the_steps():
    """On N(1.5, 0.3^2), whose network is exact; to the middle of the table."""
    model, x0, errors = gaussian(), data(), []
    for calls in (10, 20, 40, 80, 160):
        plan = plan_of(calls)
        state = solve(model, inverse(plan, TABLE), x0)
        errors.append(float((solve(model, plan, state) - x0).square().mean().sqrt()))
    # in float64 with a seed; the numbers of an independent transcription, to their digits
    assert errors == pytest.approx([0.115, 0.061, 0.031, 0.016, 0.008], abs=6e-4)
    ratios = np.array(errors[:-1]) / errors[1:]
    assert ((ratios > 1.8) & (ratios < 2.05)).all(), ratios


def test_coarse_inversions_shorten_states():
    """Of unit normal noise at the end; the deficit falls with the steps, so it is their error."""
    model, x0 = gaussian(), data()
    stds = []
    for calls in (10, 40, 160):
        plan = plan_of(calls, t=TABLE.t_start)
        stds.append(float(solve(model, inverse(plan, TABLE), x0).std()))
    assert stds[0] < stds[1] < stds[2] < 1.02 and stds[0] < 0.7 and stds[2] > 0.93


def test_an_edit_pass_with_noise_has_the_moments_of_the_data():
    """Ancestral steps from the mixing step on; those of the literature's closed form."""
    model, plan = gaussian(), plan_of(200, t=0.5)
    noisy = replace(plan, steps=tuple(replace(step, eta=1.0) for step in plan.steps))
    rng = generator(3)
    alpha, sigma = float(TABLE.alpha(0.5)), float(TABLE.sigma(0.5))
    state = alpha * data(6000) + sigma * torch.randn(6000, 1, generator=rng, dtype=torch.float64)

    def noise():
        return torch.randn(6000, 1, generator=rng, dtype=torch.float64)

    made = solve(model, noisy, state, noise=noise)
    # standard errors of 6000 draws are 0.004 and 0.003, the bias of 200 steps is below them
    assert float(made.mean()) == pytest.approx(1.5, abs=0.02) and float(made.std()) == pytest.approx(
        0.3, abs=0.02
    )
    again = solve(model, plan, state)
    assert torch.equal(again, solve(model, plan, state)), "without noise there is no chance"


def test_norms_of_sampled_states_fall_from_that_of_noise():
    plan = PRESETS["ddim"](TABLE, 50, grid="uniform-t", to_zero=True)
    mixture = GaussianMixture(
        torch.ones(1, dtype=torch.float64), torch.zeros(1, 16).double(), torch.full((1,), 0.3).double()
    )
    norms = []
    solve(
        mixture.model(TABLE),
        plan,
        torch.randn(500, 16, generator=generator(0), dtype=torch.float64),
        observe=lambda node, x, _: norms.append(float(x.norm(dim=1).mean())),
    )
    assert norms[0] == pytest.approx(4.0, rel=0.03)
    assert all(later < earlier for earlier, later in zip(norms[:-1], norms[1:], strict=True))


def test_what_cannot_be_run_backwards_is_refused():
    schedule = VPLinear()
    for name in ("dpmpp-2m", "unipc-2", "heun"):
        plan = PRESETS[name](schedule, 5, to_zero=True)
        with pytest.raises(ConfigError, match="steps of order 1 between neighbours, as ddim and ddpm"):
            inverse(plan, schedule)
    back = inverse(plan_of(4), TABLE)
    with pytest.raises(ConfigError, match="is an inverse"):
        inverse(back, TABLE)
    with pytest.raises(ConfigError, match="drawn by plans from noise to data"):
        sample(gaussian(), back, seeds=range(2))
    with pytest.raises(ConfigError, match="must be 0.001 or more below that of"):
        replace(back, nodes=tuple(reversed(back.nodes[:-1])) + back.nodes[-1:])
    with pytest.raises(ConfigError, match="inverse"):
        plan_from_json(back.to_json())


def test_a_mixture_comes_back():
    mixture = small_mixture().model(VPLinear())
    plan = PRESETS["ddim"](VPLinear(), 200, grid="uniform-t", t_start=0.6, to_zero=True)
    x0 = 0.4 * torch.randn(100, 3, generator=generator(1), dtype=torch.float64)
    again = solve(mixture, plan, solve(mixture, inverse(plan, VPLinear()), x0))
    assert float((again - x0).square().mean().sqrt()) < 0.03
