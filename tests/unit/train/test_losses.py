import math

import pytest
import torch

from fewstep.checks import ConfigError
from fewstep.diffusion.prediction import PREDICTIONS, input_scale, target, weights
from fewstep.diffusion.schedule import EDM, Cosine, DDPMTable, Flow, VPLinear
from fewstep.rng import generator
from fewstep.train.losses import WEIGHTINGS, denoising_loss, draw_times, loss_weight, noised

SCHEDULES = [VPLinear(), DDPMTable.linear(), Cosine(), EDM(), Flow()]
STD = 0.7  # of the Gaussian data


def exact_network(schedule, prediction, t):
    """What a perfect network outputs at time t for data N(0, STD^2): linear in x_t."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0_of_x = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    eps_of_x = sigma / (alpha**2 * STD**2 + sigma**2)
    output = target(prediction, schedule, t, x0_of_x, eps_of_x)
    scale = input_scale(prediction, schedule, t)
    return output if scale is None else output / scale


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("weighting", list(WEIGHTINGS))
def test_the_exact_denoisers_loss_has_its_closed_form(schedule, prediction, weighting):
    """Data N(0, s^2): the posterior variance of x0 is v = s^2 sigma^2 / (alpha^2 s^2 + sigma^2).

    The error of the exact x0_hat has variance v; the weights on x0 errors follow from the definitions.
    """
    t = torch.full((4,), schedule.t_of_lambda(0.4).item(), dtype=torch.float64)
    shape = (4, 1, 200, 200)
    x0 = STD * torch.randn(shape, generator=generator(0), dtype=torch.float64)
    eps = torch.randn(shape, generator=generator(1), dtype=torch.float64)
    factor = exact_network(schedule, prediction, t).reshape(-1, 1, 1, 1)
    batch = noised(x0, eps, t, schedule=schedule, prediction=prediction, weighting=weighting)
    loss = denoising_loss(lambda x_t, time, condition: factor * x_t, batch)
    alpha, sigma, snr = (
        schedule.alpha(t[0]),
        schedule.sigma(t[0]),
        (schedule.alpha(t[0]) / schedule.sigma(t[0])) ** 2,
    )
    posterior = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)
    expected = (
        posterior
        * {
            "uniform": 1 / weights(prediction, schedule, t[0]).x0_of_output ** 2,
            "snr": snr,
            "min-snr-5": min(snr.item(), 5.0),
            "edm": (1 / snr + 0.25) / (0.25 / snr),
        }[weighting]
    )
    # a mean over 40,000 squares has a relative deviation of sqrt(2 / 40000) = 0.7 %
    assert loss == pytest.approx(expected.item(), rel=0.03)


def test_familiar_weights():
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    schedule = VPLinear()
    snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    assert torch.allclose(loss_weight(schedule, "eps", t, weighting="snr"), torch.ones_like(t))
    assert torch.allclose(loss_weight(schedule, "v", t, weighting="min-snr-5"), snr.clamp(max=5) / (snr + 1))
    sigma = torch.tensor([0.01, 3.0], dtype=torch.float64)
    assert torch.allclose(loss_weight(EDM(), "edm", sigma, weighting="edm"), torch.ones_like(t))
    with pytest.raises(ConfigError, match="uniform"):
        loss_weight(schedule, "eps", t, weighting="none")


def test_a_time_per_pixel_equals_the_time_per_image():
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    x0, eps = torch.randn(2, 2, 1, 4, 4, generator=generator(0)).unbind(0)
    settings = {"schedule": VPLinear(), "prediction": "v", "weighting": "min-snr-5"}
    shapes = []

    def network(x_t, time, condition):
        shapes.append(tuple(time.shape))
        return torch.tanh(x_t) * time.reshape(2, 1, *(time.shape[2:] or (1, 1))) / 1000

    per_image = denoising_loss(network, noised(x0, eps, t, **settings))
    per_pixel = denoising_loss(network, noised(x0, eps, t.reshape(2, 1, 1, 1).expand(2, 1, 4, 4), **settings))
    assert torch.allclose(per_image, per_pixel, rtol=1e-6)
    assert shapes == [(2,), (2, 1, 4, 4)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_times_lie_in_range_and_follow_their_distribution(schedule):
    t = draw_times(schedule, 20_000, rng=generator(3))
    assert t.dtype == torch.float64 and t.min() >= schedule.t_min and t.max() <= schedule.t_max
    if isinstance(schedule, EDM):
        assert t.log().mean().item() == pytest.approx(-1.2, abs=0.05)
        assert t.log().std().item() == pytest.approx(1.2, abs=0.05)
    else:
        unit = (t - schedule.t_min) / (schedule.t_max - schedule.t_min)
        assert unit.mean().item() == pytest.approx(0.5, abs=0.01)
        assert unit.var().item() == pytest.approx(1 / 12, abs=0.005)


def test_edm_weighting_draws_edm_noise_levels():
    schedule = Cosine()
    t = draw_times(schedule, 20_000, weighting="edm", rng=generator(3))
    assert (-schedule.lambda_(t)).median().item() == pytest.approx(-1.2, abs=0.05)
    assert math.isfinite(t.sum().item())
