"""Regions: what is given comes back, and the rest is drawn given it, as closed forms say."""

from dataclasses import replace

import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.data.pixels import to_u8, to_unit
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import DDPMTable, VPLinear
from fewstep.nets.folder import as_model
from fewstep.nets.unet import UNet
from fewstep.rng import ImageNoise, generator, initial_weights
from fewstep.sampling.linear import in_linear_form
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.region import Region
from fewstep.sampling.sample import sample, solve
from fewstep.sampling.solver import Values

TABLE = DDPMTable.linear()
RHO = 0.8


def gaussian_pair(schedule=TABLE, prediction="eps"):
    """The exact network of two correlated unit normal pixels, (1, 1, 2), each of which has a time of its own."""
    cov = torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)

    def fn(x, t):
        times = (
            t.double().expand(len(x), 1, 1, 2)
            if t.ndim == 4
            else t.double()[:, None, None, None].expand_as(x)
        )
        alpha, sigma = (values.reshape(-1, 2) for values in (schedule.alpha(times), schedule.sigma(times)))
        of_x = alpha[:, :, None] * cov * alpha[:, None, :] + torch.diag_embed(sigma**2)
        flat = x.double().reshape(-1, 2)
        x0 = torch.linalg.solve(of_x, flat[:, :, None])[..., 0] * alpha @ cov
        eps = torch.where(sigma > 0, (flat - alpha * x0) / sigma.clamp(min=1e-12), 0.0)
        return (eps if prediction == "eps" else x0).reshape(x.shape).to(x)

    return Model(fn, schedule=schedule, prediction=prediction, shape=(1, 1, 2), pixel_times=True)


def half(n, value=0.7):
    """The left pixel is known."""
    mask = torch.tensor([False, True]).expand(n, 1, 1, 2)
    return Region(mask, torch.full((n, 1, 1, 2), value, dtype=torch.float64))


def network():
    with initial_weights(0):
        net = UNet(8, 1, 8, (1, 2), attention=(4,))
    for parameter in net.parameters():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator(1))
    return as_model(net, schedule=TABLE, prediction="eps", shape=(1, 8, 8), pixel_times=True)


def noises(n, seed=0):
    """Unit normal noise at each call, from one stream for all states."""
    rng = generator(seed)
    return lambda: torch.randn(n, 1, 1, 2, generator=rng, dtype=torch.float64)


def images(n=6):
    return torch.randint(0, 256, (n, 1, 8, 8), generator=generator(2), dtype=torch.uint8)


def masks(n=6):
    return torch.rand(n, 1, 8, 8, generator=generator(3)) < 0.5


PLANS = [("ddpm", 10), ("ddim", 4), ("dpmpp-2m", 6), ("unipc-3", 5), ("dpm-solver-3s", 7), ("heun", 7)]


@pytest.mark.parametrize("preset, nfe", PLANS)
@pytest.mark.parametrize("to_zero", [True, False])
def test_what_is_known_comes_back_to_the_bit(preset, nfe, to_zero):
    model = network()
    plan = PRESETS[preset](TABLE, nfe, grid="uniform-t", to_zero=to_zero)
    for noised in (False, True):
        region = Region(masks(), to_unit(images()), noised)
        made = sample(model, plan, seeds=range(6), batch_size=4, region=region)
        assert torch.equal(made.where(~masks(), images()), images())
        assert not torch.equal(made, images())


def test_a_full_hole_is_plain_ancestral_sampling():
    model, plan = network(), PRESETS["ddpm"](TABLE, 20, grid="uniform-t", to_zero=True)
    shape = (6, *model.shape)
    region = Region(torch.ones(6, 1, 8, 8, dtype=torch.bool), torch.zeros(shape))
    both = [ImageNoise(range(6), model.shape) for _ in range(2)]
    filled, plain = (
        solve(model, plan, noise().double(), noise=noise, region=given)
        for noise, given in zip(both, (region, None), strict=True)
    )
    assert torch.allclose(filled, plain, atol=1e-5)  # a map of equal times is embedded pixel by pixel


def test_a_map_of_equal_times_is_one_time():
    net, x = network().net, torch.randn(3, 1, 8, 8, generator=generator(4))
    times = torch.tensor([3.0, 400.0, 998.0])
    assert torch.allclose(net(x, times), net(x, times[:, None, None, None].expand(3, 1, 8, 8)), atol=1e-5)


@pytest.mark.parametrize(
    "preset, nfe, error", [("ddim", 100, 0.02), ("dpmpp-2m", 40, 0.01), ("unipc-2", 40, 0.01)]
)
def test_holes_are_drawn_given_what_is_known(preset, nfe, error):
    """Left pixel 0.7: the right one is N(0.7 rho, 1 - rho^2), whatever deterministic plan draws it."""
    n, plan = 2000, PRESETS[preset](TABLE, nfe, grid="uniform-lambda", to_zero=True)
    x_T = torch.randn(n, 1, 1, 2, generator=generator(5), dtype=torch.float64)
    right = solve(gaussian_pair(), plan, x_T, region=half(n))[:, 0, 0, 1]
    expected = 0.7 * RHO + (1 - RHO**2) ** 0.5 * x_T[:, 0, 0, 1]
    assert float((right - expected).abs().mean()) < error + 0.01  # alpha_T is 0.006, not 0
    raw = in_linear_form(plan, TABLE)  # as searched plans are
    assert torch.allclose(solve(gaussian_pair(), raw, x_T, region=half(n))[:, 0, 0, 1], right, atol=1e-6)


def test_stochastic_plans_draw_the_same_distribution():
    n, plan = 4000, PRESETS["ddpm"](TABLE, 100, grid="uniform-lambda", to_zero=True)
    noise = noises(n)
    right = solve(gaussian_pair(), plan, noise(), noise=noise, region=half(n))[:, 0, 0, 1]
    std = (1 - RHO**2) ** 0.5
    assert abs(float(right.mean()) - 0.7 * RHO) < 4 * std / n**0.5 + 0.01
    assert abs(float(right.std()) / std - 1) < 0.06  # 100 steps are a little too narrow, as without regions


def test_an_ancestral_step_has_the_mean_and_variance_of_the_posterior():
    """With x0 known exactly, x_s given x_t and x0 is normal with these two [ho2020ddpm, Eq. 7], in the hole alone."""
    plan = PRESETS["ddpm"](TABLE, 4, grid="uniform-t", to_zero=True)
    t, s = plan.nodes[1].t, plan.nodes[2].t
    a_t, a_s = float(TABLE.alpha(t)) ** 2, float(TABLE.alpha(s)) ** 2
    beta = 1 - a_t / a_s
    n, x0, x_t = 20_000, 0.3, -0.4
    model = Model(
        lambda x, _: torch.full_like(x, x0),
        schedule=TABLE,
        prediction="x0",
        shape=(1, 1, 2),
        pixel_times=True,
    )
    seen = {}

    def observe(node, x, output):
        seen[node.t] = x

    steps = tuple(replace(step, start=step.start - 1, end=step.end - 1) for step in plan.steps[1:3])
    part = replace(plan, nodes=(*plan.nodes[1:3], replace(plan.nodes[3], eval="none")), steps=steps)
    start = torch.full((n, 1, 1, 2), x_t, dtype=torch.float64)
    solve(model, part, start, noise=noises(n), region=half(n, 0.9), observe=observe)
    after = seen[s]
    mean = (a_s**0.5 * beta * x0 + (a_t / a_s) ** 0.5 * (1 - a_s) * x_t) / (1 - a_t)
    variance = (1 - a_s) / (1 - a_t) * beta
    assert float(after[..., 1].mean()) == pytest.approx(mean, abs=4 * (variance / n) ** 0.5)
    assert float(after[..., 1].var()) == pytest.approx(variance, rel=4 * (2 / n) ** 0.5)
    assert bool((after[..., 0] == 0.9).all())


def test_given_pixels_are_noised_to_the_time_of_each_node():
    model, plan = gaussian_pair(), PRESETS["ddim"](TABLE, 5, grid="uniform-t", to_zero=True)
    n, states = 5000, {}

    def observe(node, x, output):
        states[node.t] = x[..., 0]

    noise = noises(n)
    region = Region(half(n).mask, half(n).x0, noised=True)
    solve(model, plan, noise(), noise=noise, region=region, observe=observe)
    for t, left in states.items():
        alpha, sigma = float(TABLE.alpha(t)), float(TABLE.sigma(t))
        assert float(left.mean()) == pytest.approx(alpha * 0.7, abs=4 * sigma / n**0.5)
        assert float(left.std()) == pytest.approx(sigma, rel=4 / (2 * n) ** 0.5)


def test_gradients_reach_the_numbers_of_a_plan_through_a_region():
    plan = PRESETS["ddim"](TABLE, 3, grid="uniform-lambda", to_zero=True)
    values = Values.of(plan)
    values.eps_scale.requires_grad_()
    right = solve(gaussian_pair(), plan, torch.ones(1, 1, 1, 2).double(), region=half(1), values=values)
    right[..., 1].sum().backward()
    assert bool((values.eps_scale.grad[:-1].abs() > 0).all())


def test_mistakes_are_one_sentence():
    model, x0 = network(), to_unit(images())
    plan = PRESETS["ddim"](TABLE, 3, grid="uniform-t")
    with pytest.raises(
        DataError, match=r"one mask for all channels of each.*got \(6, 1, 8, 8\) and \(6, 8, 8\)"
    ):
        Region(masks()[:, 0], x0)
    with pytest.raises(DataError, match=r"one mask for all channels.*got \(6, 3, 8, 8\) and \(6, 3, 8, 8\)"):
        Region(masks().expand(-1, 3, -1, -1), x0.expand(-1, 3, -1, -1))
    with pytest.raises(DataError, match=r"must be bool, true in the hole; got torch.float32"):
        Region(masks().float(), x0)
    with pytest.raises(DataError, match=r"must lie in \[-1, 1\]; got -1 to 255"):
        Region(masks(), images().float() - (images() == 0).float())
    region = Region(masks(), x0)
    with pytest.raises(ConfigError, match="takes one timestep per image; fine-tune it with the region-aware"):
        plain = as_model(model.net, schedule=TABLE, prediction="eps", shape=(1, 8, 8), name="m")
        sample(plain, plan, seeds=range(6), region=region)
    with pytest.raises(ConfigError, match="a region for each of the 5 seeds; got 6 images"):
        sample(model, plan, seeds=range(5), region=region)
    with pytest.raises(ConfigError, match=r"an image for each state, \(2, 1, 8, 8\); got \(6, 1, 8, 8\)"):
        solve(model, plan, torch.zeros(2, 1, 8, 8), region=region)
    with pytest.raises(ConfigError, match="given pixels are noised draws noise"):
        solve(model, plan, torch.zeros(6, 1, 8, 8), region=Region(masks(), x0, noised=True))
    assert torch.equal(to_u8(x0), images())


def test_continuous_schedules_have_regions_too():
    plan = PRESETS["dpmpp-2m"](VPLinear(), 40, grid="uniform-lambda", to_zero=True)
    x_T = torch.randn(200, 1, 1, 2, generator=generator(6), dtype=torch.float64)
    right = solve(gaussian_pair(VPLinear()), plan, x_T, region=half(200))[:, 0, 0, 1]
    assert float((right - 0.7 * RHO - (1 - RHO**2) ** 0.5 * x_T[:, 0, 0, 1]).abs().mean()) < 0.02
