import pytest
import torch

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import EDM, DDPMTable, Flow, VPLinear
from fewstep.methods.rad.objective import RegionAware, objective
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights
from fewstep.train.losses import noised

TABLE = DDPMTable.linear()
SIDES = (8, 8)


def noisy(aware, prediction="eps"):
    x0, eps = torch.randn(2, 6, 1, *SIDES, generator=generator(1)).unbind()
    t = aware.times(torch.linspace(0.1, 0.9, 6, dtype=torch.float64), SIDES, generator(2))
    return t, noised(x0.clamp(-1, 1), eps, t, schedule=aware.schedule, prediction=prediction)


def test_times_are_those_of_both_phases():
    t = torch.full((400,), 0.4, dtype=torch.float64)
    times = RegionAware("rad", TABLE, "eps").times(t, SIDES, generator(0))
    assert times.shape == (400, 1, *SIDES) and times.dtype == torch.float64
    values = [sorted({round(value, 9) for value in image.flatten().tolist()}) for image in times]
    known = [[0, 0.4], [0.4, 1], [0.4], [0], [1]]  # the last three of full and empty masks
    assert all(one in known for one in values)
    second = sum(1.0 in one for one in values) / 400
    assert abs(second - 0.5) < 4 * 0.5 / 400**0.5
    shares = torch.stack([(image == 0).float().mean() for image in times if 1.0 not in image])
    assert abs(float(shares.mean()) - 0.5) < 4 * 0.29 / len(shares) ** 0.5, "holes of all sizes"


@pytest.mark.parametrize("name", ["rad", "rad-all-pixels"])
def test_clean_pixels_have_no_loss_but_where_it_is_asked_for(name):
    aware = RegionAware(name, TABLE, "eps")
    t, batch = noisy(aware)
    off = batch.target.square()  # of a network that gives zeros
    counted = off if name == "rad-all-pixels" else off.where(t > 0, torch.zeros(()))
    found = aware(generator(0), 6)(lambda x, time, condition: torch.zeros_like(x), batch, None)
    assert torch.allclose(found, counted.flatten(1).mean(1))
    assert bool((t == 0).any())
    assert aware.config() == {"type": "rad", "all_pixels": name == "rad-all-pixels"}


@pytest.mark.parametrize("schedule, prediction", [(TABLE, "v"), (TABLE, "x0"), (Flow(), "u")])
def test_other_predictions_are_finite_at_clean_pixels(schedule, prediction):
    aware = objective("rad", schedule, prediction, "uniform", UNet(8, 1, 8))
    t, batch = noisy(aware, prediction)
    assert bool((t == 0).any()) and bool(batch.target.isfinite().all())
    with initial_weights(0):
        net = UNet(8, 1, 8)
    loss = aware(generator(0), 6)(net, batch, None)
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


def test_a_weighting_that_is_infinite_at_clean_pixels_leaves_them_out():
    aware = RegionAware("rad", TABLE, "eps", "snr")
    t = aware.times(torch.full((6,), 0.5, dtype=torch.float64), SIDES, generator(2))
    x0, eps = torch.zeros(2, 6, 1, *SIDES).unbind()
    batch = noised(x0, eps + 1, t, schedule=TABLE, prediction="eps", weighting="snr")
    assert bool(aware(generator(0), 6)(lambda x, time, condition: x * 0, batch, None).isfinite().all())


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("rod", TABLE, "eps"), "must be rad or rad-all-pixels; got 'rod'"),
        (("rad", EDM(), "edm"), "can be told the time 0"),
        (("rad", VPLinear(), "u"), "needs a prediction that is defined for clean data, eps, x0 or v; got u"),
        (("rad-all-pixels", TABLE, "eps", "snr"), "needs the weighting uniform"),
    ],
)
def test_what_is_not_defined_for_clean_pixels_is_refused(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        RegionAware(*arguments)
