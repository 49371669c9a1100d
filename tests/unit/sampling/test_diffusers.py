"""Presets against the schedulers of diffusers, on diffusers' own times."""

import pytest
import torch
from toys import moved, small_mixture

from fewstep.diffusion.schedule import DDPMTable
from fewstep.rng import generator
from fewstep.sampling.presets import NONE, PRESETS, _multistep, _plan
from fewstep.sampling.sample import solve

schedulers = pytest.importorskip("diffusers.schedulers", reason="needs diffusers")

# numpy 2 about diffusers' own arrays
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SCHEDULE = DDPMTable.linear()
MODEL = small_mixture().model(SCHEDULE)
TABLE = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
# diffusers keeps its sigmas in float32
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def noise():
    return torch.randn(4, 3, generator=generator(3), dtype=torch.float64)


def run(scheduler, n_steps, **step_options):
    """The sampling loop of diffusers' documentation: its result, and the times of all nodes but the last."""
    scheduler.set_timesteps(n_steps)
    x, ts = noise() * float(scheduler.init_noise_sigma), []
    for k in scheduler.timesteps:
        t = (float(k) + 1) / 1000
        x_in = scheduler.scale_model_input(x, k)
        eps_hat = MODEL.fn(x_in, torch.full((4,), t, dtype=torch.float64))
        x = scheduler.step(eps_hat, k, x, **step_options).prev_sample
        ts.append(t)
    return x, ts


def ours(plan, ts, x=None, **options):
    return solve(MODEL, moved(plan, SCHEDULE, ts), noise() if x is None else x, **options)


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("n_steps", [6, 12])
@pytest.mark.parametrize(
    "name, options",
    [
        ("dpmpp-2m", {"solver_order": 2, "solver_type": "midpoint"}),
        ("dpmpp-2m-taylor", {"solver_order": 2, "solver_type": "heun"}),
        ("dpmpp-3m", {"solver_order": 3, "solver_type": "midpoint"}),
    ],
)
def test_dpm_solver_multistep(name, options, n_steps, to_zero):
    scheduler = schedulers.DPMSolverMultistepScheduler(
        **TABLE, **options, final_sigmas_type="zero" if to_zero else "sigma_min"
    )
    expected, ts = run(scheduler, n_steps)
    plan = PRESETS[name](SCHEDULE, n_steps, to_zero=to_zero, lower_final=True)
    torch.testing.assert_close(ours(plan, [*ts, 0.0 if to_zero else 0.001]), expected, **TOLERANCE)


@pytest.mark.parametrize("n_steps", [6, 12])
@pytest.mark.parametrize(
    "name", ["unipc-1", "unipc-2", "unipc-3", "unipc-1-bh1", "unipc-2-bh1", "unipc-3-bh1"]
)
@pytest.mark.parametrize("pred", ["x0", "eps"])
def test_unipc(name, n_steps, pred):
    scheduler = schedulers.UniPCMultistepScheduler(
        **TABLE,
        solver_order=int(name[6]),
        solver_type="bh1" if "bh1" in name else "bh2",
        predict_x0=pred == "x0",
        final_sigmas_type="sigma_min",
    )
    expected, ts = run(scheduler, n_steps)
    plan = PRESETS[name + ("-noise" if pred == "eps" else "")](SCHEDULE, n_steps)
    # the noise form divides by alpha at the first step, and with it the rounding of diffusers' sigmas
    tolerance = TOLERANCE if pred == "x0" else {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(ours(plan, [*ts, 0.001]), expected, **tolerance)


def test_ddim():
    scheduler = schedulers.DDIMScheduler(**TABLE, clip_sample=False)
    expected, ts = run(scheduler, 10)
    torch.testing.assert_close(
        ours(PRESETS["ddim"](SCHEDULE, 10, to_zero=True), [*ts, 0.0]), expected, **TOLERANCE
    )


def test_ddim_with_noise():
    scheduler = schedulers.DDIMScheduler(**TABLE, clip_sample=False)
    expected, ts = run(scheduler, 10, eta=0.7, generator=generator(9))
    plan, rng = PRESETS["ddim-eta"](SCHEDULE, 10, to_zero=True, eta=0.7), generator(9)
    fresh = {"noise": lambda: torch.randn(4, 3, generator=rng, dtype=torch.float64)}
    torch.testing.assert_close(ours(plan, [*ts, 0.0], **fresh), expected, **TOLERANCE)


def test_ddpm():
    scheduler = schedulers.DDPMScheduler(**TABLE, clip_sample=False, variance_type="fixed_small")
    expected, ts = run(scheduler, 50, generator=generator(9))
    plan, rng = PRESETS["ddpm"](SCHEDULE, 50, to_zero=True), generator(9)
    fresh = {"noise": lambda: torch.randn(4, 3, generator=rng, dtype=torch.float64)}
    torch.testing.assert_close(ours(plan, [*ts, 0.0], **fresh), expected, **TOLERANCE)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_log_snr_is_plain_taylor_of_the_noise(order):
    scheduler = schedulers.DEISMultistepScheduler(**TABLE, solver_order=order)
    expected, ts = run(scheduler, 8)
    orders = [min(order, i + 1, 8 - i) for i in range(8)]
    plan = _plan(SCHEDULE, [*ts, 0.001], _multistep(orders, "eps", NONE))
    torch.testing.assert_close(solve(MODEL, plan, noise()), expected, **TOLERANCE)


def test_heun():
    """diffusers works in x / alpha, and scales its start by the largest sigma."""
    scheduler = schedulers.HeunDiscreteScheduler(**TABLE, timestep_spacing="trailing")
    expected, ts = run(scheduler, 6)
    nodes = [ts[0], *ts[1::2]]
    start = noise() * float(scheduler.init_noise_sigma) * SCHEDULE.alpha(nodes[0])
    actual = ours(PRESETS["heun"](SCHEDULE, 11, to_zero=True), [*nodes, 0.0], start)
    torch.testing.assert_close(actual, expected, **TOLERANCE)
