"""Known samplers against naive transcriptions, published numbers and theory."""

import math
from functools import partial

import oracles
import pytest
import torch
from toys import (
    mean_error,
    plain_taylor,
    predictors,
    reference_mixture,
    reference_noise,
    small_mixture,
    times,
)

from fewstep.checks import ConfigError
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.grids import GRIDS, PUBLISHED, uniform_lambda
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import EDM, Cosine, DDPMTable, Flow, VPLinear
from fewstep.rng import generator
from fewstep.sampling.presets import PRESETS, analytical, unipc
from fewstep.sampling.sample import solve
from fewstep.sampling.solver import Values

VP = VPLinear()


def unipc_oracle(order, variant="bh2", pred="x0"):
    def run(eps_of, x0_of, schedule, x, ts, nfe):
        return oracles.unipc(x0_of if pred == "x0" else eps_of, schedule, x, ts, order, variant, pred)

    return run


def single_step_oracle(order):
    def run(eps_of, x0_of, schedule, x, ts, nfe):
        orders = oracles.dpm_solver_fast_orders(order, nfe)
        return oracles.dpm_solver_single_step(eps_of, schedule, x, ts, orders)

    return run


def dpmpp_oracle(order, taylor=False):
    def run(eps_of, x0_of, schedule, x, ts, nfe):
        return oracles.dpmpp_multistep(x0_of, schedule, x, ts, order, nfe < 10, taylor)

    return run


ORACLES = {
    "ddim": lambda eps_of, x0_of, schedule, x, ts, nfe: oracles.ddim(x0_of, schedule, x, ts),
    "dpm-solver-2s": single_step_oracle(2),
    "dpm-solver-3s": single_step_oracle(3),
    "dpmpp-2m": dpmpp_oracle(2),
    "dpmpp-2m-taylor": dpmpp_oracle(2, taylor=True),
    "dpmpp-3m": dpmpp_oracle(3),
    "deis-2": lambda eps_of, x0_of, schedule, x, ts, nfe: oracles.deis(eps_of, schedule, x, ts, 2),
    "deis-3": lambda eps_of, x0_of, schedule, x, ts, nfe: oracles.deis(eps_of, schedule, x, ts, 3),
    "ipndm-2": lambda eps_of, x0_of, schedule, x, ts, nfe: oracles.ipndm(eps_of, schedule, x, ts, 2),
    "ipndm-3": lambda eps_of, x0_of, schedule, x, ts, nfe: oracles.ipndm(eps_of, schedule, x, ts, 3),
    "ipndm-4": lambda eps_of, x0_of, schedule, x, ts, nfe: oracles.ipndm(eps_of, schedule, x, ts, 4),
    "heun": lambda eps_of, x0_of, schedule, x, ts, nfe: oracles.heun(x0_of, schedule, x, ts),
} | {
    f"unipc-{order}{bh}{noise}": unipc_oracle(order, bh[1:] or "bh2", "eps" if noise else "x0")
    for order in (1, 2, 3)
    for bh in ("", "-bh1")
    for noise in ("", "-noise")
}


def test_every_preset_has_an_oracle():
    stochastic, ours = {"ddpm", "ddim-eta"}, {"dpmpp-3m-exact"}
    assert set(ORACLES) | stochastic | ours == set(PRESETS)


@pytest.mark.parametrize("schedule", [VP, EDM(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("grid", sorted(GRIDS.keys() - PUBLISHED.keys()))
@pytest.mark.parametrize("name", ORACLES)
def test_preset_equals_its_transcription(name, grid, schedule):
    model = small_mixture().model(schedule)
    eps_of, x0_of = predictors(model)
    x = schedule.prior_std * torch.randn(4, 3, generator=generator(3), dtype=torch.float64)
    # where alpha is nearly 0 the noise form divides by it, and rounding alone exceeds the tolerance
    t_start = 0.97 if isinstance(schedule, Flow) else None
    for nfe in (5, 11):
        plan = PRESETS[name](schedule, nfe, grid=grid, t_start=t_start)
        expected = ORACLES[name](eps_of, x0_of, schedule, x, times(plan), nfe)
        # both are float64; a sampler may amplify rounding on grids that it is not made for
        torch.testing.assert_close(solve(model, plan, x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("nfe", range(1, 13))
@pytest.mark.parametrize("order", [2, 3])
def test_single_step_blocks_follow_the_official_rule(order, nfe):
    model = small_mixture().model(VP)
    eps_of, _ = predictors(model)
    x = torch.randn(4, 3, generator=generator(3), dtype=torch.float64)
    orders = oracles.dpm_solver_fast_orders(order, nfe)
    outer = GRIDS["uniform-lambda"](VP, len(orders))
    plan = PRESETS[f"dpm-solver-{order}s"](VP, nfe)
    ends = [sum(orders[:k]) for k in range(len(orders) + 1)]
    torch.testing.assert_close(
        torch.tensor([plan.nodes[i].t for i in ends], dtype=torch.float64), outer, rtol=1e-10, atol=0
    )
    expected = oracles.dpm_solver_single_step(eps_of, VP, x, times(plan), orders)
    torch.testing.assert_close(solve(model, plan, x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [VP, DDPMTable.linear()], ids=lambda s: type(s).__name__)
def test_stochastic_presets_equal_their_transcriptions(schedule):
    model = small_mixture().model(schedule)
    _, x0_of = predictors(model)
    x = torch.randn(4, 3, generator=generator(3), dtype=torch.float64)

    def noise_of(rng):
        return lambda: torch.randn(4, 3, generator=rng, dtype=torch.float64)

    for to_zero in (False, True):
        plan = PRESETS["ddpm"](schedule, 8, to_zero=to_zero)
        expected = oracles.ddpm(x0_of, schedule, x, times(plan), noise_of(generator(5)))
        torch.testing.assert_close(solve(model, plan, x, noise=noise_of(generator(5))), expected)
        for eta in (0.3, 1.0):
            plan = PRESETS["ddim-eta"](schedule, 8, to_zero=to_zero, eta=eta)
            expected = oracles.ddim_eta(x0_of, schedule, x, times(plan), eta, noise_of(generator(5)))
            torch.testing.assert_close(solve(model, plan, x, noise=noise_of(generator(5))), expected)


def test_eta_zero_is_ddim():
    model = small_mixture().model(VP)
    x = torch.randn(4, 3, generator=generator(3), dtype=torch.float64)
    assert torch.equal(
        solve(model, PRESETS["ddim-eta"](VP, 6, eta=0.0), x), solve(model, PRESETS["ddim"](VP, 6), x)
    )


def test_ancestral_sampling_reaches_the_variance_of_the_data():
    """A Gaussian stays Gaussian under affine steps: its variance obeys var' = A^2 var + std^2."""
    std = 0.5
    mixture = GaussianMixture(
        torch.ones(1).double(), torch.zeros(1, 2).double(), torch.tensor([std], dtype=torch.float64)
    )
    plan = PRESETS["ddpm"](VP, 300, grid="uniform-lambda")
    variance = 1.0
    for t, s in zip(times(plan)[:-1], times(plan)[1:], strict=True):
        bar_t, bar_s = float(VP.alpha(t)) ** 2, float(VP.alpha(s)) ** 2
        shrink = bar_t**0.5 * std**2 / (bar_t * std**2 + 1 - bar_t)  # x0_hat = shrink * x
        gain = (bar_s**0.5 * (1 - bar_t / bar_s) * shrink + (bar_t / bar_s) ** 0.5 * (1 - bar_s)) / (
            1 - bar_t
        )
        variance = gain**2 * variance + (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)
    rng = generator(0)
    n = 10_000

    def noise():
        return torch.randn(n, 2, generator=rng, dtype=torch.float64)

    x0 = solve(mixture.model(VP), plan, noise(), noise=noise)
    # 5 standard errors of a variance estimated from 2 n numbers
    assert abs(float(x0.square().mean()) / variance - 1) < 5 * (2 / (2 * n)) ** 0.5
    assert abs(variance / std**2 - 1) < 0.05  # discretisation error at 300 steps


# mean |x - x_ref| over 1024 noises; DDIM, DPM-Solver++ and UniPC rows were made with the authors' own code
TABLE_NFE = (5, 6, 8, 10, 15, 20)
TABLE = {
    ("uniform-lambda", "ddim"): (0.5177, 0.4178, 0.3179, 0.2545, 0.1717, 0.1257),
    ("uniform-lambda", "dpmpp-2m"): (0.4139, 0.2511, 0.1854, 0.1220, 0.0450, 0.0202),
    ("uniform-lambda", "dpmpp-3m"): (0.4077, 0.3234, 0.3162, 0.0902, 0.0352, 0.0198),
    ("uniform-lambda", "dpmpp-3m-exact"): (0.4084, 0.3465, 0.3496, 0.1329, 0.0514, 0.0248),
    ("uniform-lambda", "unipc-2"): (0.4109, 0.2429, 0.1579, 0.0726, 0.0203, 0.0156),
    ("uniform-lambda", "unipc-3"): (0.3982, 0.2952, 0.2599, 0.0979, 0.0455, 0.0168),
    ("uniform-t", "ddim"): (0.6452, 0.5163, 0.3783, 0.3101, 0.2369, 0.1887),
    ("uniform-t", "dpmpp-2m"): (0.6024, 0.4700, 0.3346, 0.8302, 0.2575, 0.1217),
    ("uniform-t", "dpmpp-3m"): (0.5988, 0.4649, 0.3293, 4.0345, 2.0880, 0.9519),
    ("uniform-t", "unipc-2"): (0.5883, 0.4584, 0.3280, 0.2713, 0.2111, 0.1668),
    ("uniform-t", "unipc-3"): (0.5870, 0.4561, 0.3254, 0.2711, 0.2139, 0.1678),
    ("quadratic-t", "ddim"): (0.3455, 0.2863, 0.2165, 0.1734, 0.1176, 0.0890),
    ("quadratic-t", "dpmpp-2m"): (0.2550, 0.2235, 0.1408, 0.0787, 0.0407, 0.0288),
    ("quadratic-t", "dpmpp-3m"): (0.2473, 0.2174, 0.1567, 0.3273, 0.0507, 0.0178),
    ("quadratic-t", "unipc-2"): (0.2453, 0.2086, 0.1141, 0.0559, 0.0182, 0.0124),
    ("quadratic-t", "unipc-3"): (0.2355, 0.2073, 0.1333, 0.0850, 0.0322, 0.0109),
    ("quadratic-t", "unipc-3-bh1-noise"): (0.2512, 0.1462, 0.0804, 0.0457, 0.0187, 0.0099),
}


@pytest.fixture(scope="module")
def exact_solution():
    """The mixture, 1024 noises, and where the exact flow takes them; 250 steps are within 1e-5 of 1000."""
    model = reference_mixture().model(VP)
    x = reference_noise(1024)
    return model, x, solve(model, PRESETS["unipc-3"](VP, 250, lower_final=False), x)


@pytest.mark.parametrize("grid, name", TABLE)
def test_errors_are_those_of_the_authors_code(grid, name, exact_solution):
    model, x, reference = exact_solution
    errors = [mean_error(model, PRESETS[name](VP, nfe, grid=grid), x, reference) for nfe in TABLE_NFE]
    assert errors == pytest.approx(TABLE[grid, name], abs=1e-3)


@pytest.fixture(scope="module")
def finest(exact_solution):
    """The exact solution of the first 256 noises, for errors near 1e-7."""
    model, x, _ = exact_solution
    return solve(model, PRESETS["unipc-3"](VP, 1200, lower_final=False), x[:256])


@pytest.mark.slow
def test_reference_solution_is_converged(exact_solution):
    model, x, reference = exact_solution
    fine = solve(model, PRESETS["unipc-3"](VP, 1000, lower_final=False), x)
    assert float((fine - reference).norm(dim=1).mean()) < 1e-5
    assert float(fine.norm(dim=1).mean()) == pytest.approx(2.067, abs=1e-3)


def test_plain_taylor_steps_of_order_four(exact_solution, finest):
    model, x, _ = exact_solution
    errors = [
        mean_error(
            model,
            plain_taylor(unipc(VP, uniform_lambda(VP, n).tolist(), order=4, lower_final=False)),
            x[:256],
            finest,
        )
        for n in (160, 320)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3.9, abs=0.2)


# Closed forms


@pytest.mark.parametrize("schedule", [VP, EDM(), Flow(), Cosine()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"ddpm", "ddim-eta"}))
def test_constant_data_is_reached_exactly(name, schedule):
    """Where x0_hat never changes, the path is straight in (alpha, sigma), which order 1 already follows."""
    target = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    model = Model(lambda x, t: target.expand_as(x), schedule=schedule, prediction="x0", shape=(2,))
    x = schedule.prior_std * torch.randn(3, 2, generator=generator(0), dtype=torch.float64)
    t_start = 0.97 if isinstance(schedule, Flow) else schedule.t_max  # at 0.999 rounding is amplified
    alpha, sigma = float(schedule.alpha(t_start)), float(schedule.sigma(t_start))
    for to_zero in (False, True):
        plan = PRESETS[name](schedule, 7, t_start=t_start, to_zero=to_zero)
        end = schedule.t_min
        straight = schedule.alpha(end) * target + schedule.sigma(end) * (x - alpha * target) / sigma
        straight = target.expand_as(x) if to_zero else straight
        torch.testing.assert_close(solve(model, plan, x), straight, rtol=1e-10, atol=1e-10)


def test_gaussian_flow_is_followed():
    """N(0, s^2 I): x_t = x_T sqrt(v_t / v_T) with v = alpha^2 s^2 + sigma^2."""
    mixture = GaussianMixture(
        torch.ones(1).double(), torch.zeros(1, 2).double(), torch.full((1,), 0.4).double()
    )
    x = torch.randn(5, 2, generator=generator(0), dtype=torch.float64)

    def variance(t):
        return float(VP.alpha(t)) ** 2 * 0.16 + float(VP.sigma(t)) ** 2

    exact = x * math.sqrt(variance(VP.t_min) / variance(VP.t_max))
    errors = [
        float((solve(mixture.model(VP), PRESETS["unipc-2"](VP, n, lower_final=False), x) - exact).abs().max())
        for n in (40, 80)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.1)


# Arguments


@pytest.mark.parametrize("name", PRESETS)
def test_impossible_settings_are_one_sentence(name):
    with pytest.raises(ConfigError, match="grid must be one of uniform-t"):
        PRESETS[name](VP, 5, grid="cosine")
    with pytest.raises(ConfigError, match="at least 1|odd nfe"):
        PRESETS[name](VP, 0)


def test_heun_names_the_evaluations_it_can_have():
    with pytest.raises(ConfigError, match=r"odd nfe \(1, 3, 5, ...\).*got 6"):
        PRESETS["heun"](VP, 6)


def test_other_wrong_settings():
    with pytest.raises(ConfigError, match="variant must be one of bh1, bh2"):
        unipc(VP, [1.0, 0.5], order=2, variant="bh3")
    with pytest.raises(ConfigError, match="order must be at least 1"):
        unipc(VP, [1.0, 0.5], order=0)
    with pytest.raises(ConfigError, match="order must be within 1 to 4"):
        PRESETS["ipndm-4"](VP, 5, order=5)
    with pytest.raises(ConfigError, match="points must be at least 1"):
        PRESETS["deis-2"](VP, 5, points=0)


def test_lower_final_is_the_documented_rule():
    assert [step.order for step in PRESETS["dpmpp-3m"](VP, 9).steps] == [1, 2, 3, 3, 3, 3, 3, 2, 1]
    assert [step.order for step in PRESETS["dpmpp-3m"](VP, 10).steps] == [1, 2] + [3] * 8
    assert [step.order for step in PRESETS["dpmpp-3m"](VP, 10, lower_final=True).steps][-2:] == [2, 1]
    assert [step.order for step in PRESETS["unipc-3"](VP, 20).steps][-2:] == [2, 1]
    assert [step.order for step in PRESETS["dpmpp-2m"](VP, 12, to_zero=True).steps][-2:] == [2, 1]


def test_values_go_out_and_back():
    for name in ("dpmpp-3m", "ipndm-3", "unipc-2"):
        plan = PRESETS[name](VP, 6)
        assert Values.of(plan).put_into(plan, VP) == plan


@pytest.mark.parametrize("preset", ["ddim", "dpmpp-2m", "unipc-2-bh1", "ipndm-3"])
def test_an_analytical_first_step_is_a_call_at_pure_noise_that_says_zero(preset):
    """Around a mean of 0, whose x0_hat at t_max is 0 but for alpha: the same images with one call less."""
    calls = []

    def eps(x_t, t):
        calls.append(float(t.reshape(-1)[0]))
        sigma, alpha = VP.sigma(t).reshape(-1, 1), VP.alpha(t).reshape(-1, 1)
        return sigma * x_t / (sigma**2 + (0.1 * alpha) ** 2)

    model = Model(eps, schedule=VP, prediction="eps", shape=(2,))
    x_T = torch.randn(8, 2, generator=generator(0), dtype=torch.float64)
    ends, make = [], partial(PRESETS[preset], grid="uniform-lambda")
    for made, nfe in ((analytical(make, VP, 5), 5), (make(VP, 6), 6)):
        calls.clear()
        ends.append(solve(model, made, x_T))
        assert len(calls) == made.nfe == nfe
    # alpha at t_max is 0.0066, and x0_hat there 7e-5 of the noise
    assert torch.allclose(*ends, atol=1e-3)
