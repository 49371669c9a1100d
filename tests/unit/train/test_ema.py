import pytest
import torch
from torch import nn

from fewstep.checks import ConfigError
from fewstep.train.ema import Ema


def numbers(*values: float) -> list[nn.Module]:
    nets = []
    for value in values:
        net = nn.Linear(1, 1, bias=False)
        nn.init.constant_(net.weight, value)
        nets.append(net)
    return nets


def test_closed_form_of_a_constant_decay():
    """From w_0 to constant weights w: the average is w + d^n (w_0 - w) once the warm-up is over."""
    start, end = numbers(0.0, 1.0)
    ema = Ema(start, decay=0.5)
    for step in range(100, 110):  # (step) / (9 + step) > 0.5: no warm-up left
        ema.update(end, step=step, images_seen=0, batch_size=1)
    assert ema.net.weight.item() == pytest.approx(1 - 0.5**10, rel=1e-6)


def test_warm_up_forgets_the_start():
    ema = Ema(numbers(0.0)[0], decay=0.9999)
    assert ema.beta(step=1, images_seen=0, batch_size=1) == 0.1
    assert ema.beta(step=10**6, images_seen=0, batch_size=1) == 0.9999


def test_half_life_halves():
    start, end = numbers(1.0, 0.0)
    ema = Ema(start, half_life=1000, ramp=0.05)
    for step in range(10):
        ema.update(end, step=step, images_seen=10**6, batch_size=100)
    assert ema.net.weight.item() == pytest.approx(0.5, rel=1e-6)
    assert ema.beta(step=1, images_seen=2000, batch_size=100) == pytest.approx(0.5)


def test_the_copy_is_apart_and_follows_buffers():
    net = nn.BatchNorm2d(2)
    ema = Ema(net, decay=0.0)
    net.running_mean.fill_(3.0)
    nn.init.constant_(net.weight, 5.0)
    assert ema.net.weight[0] == 1 and not ema.net.weight.requires_grad
    ema.update(net, step=1, images_seen=1, batch_size=1)
    assert torch.equal(ema.net.weight, net.weight) and torch.equal(ema.net.running_mean, net.running_mean)


@pytest.mark.parametrize("values", [{}, {"decay": 0.9, "half_life": 1.0}, {"decay": 1.0}, {"half_life": 0.0}])
def test_bad_values(values):
    with pytest.raises(ConfigError, match="average"):
        Ema(nn.Linear(1, 1), **values)
