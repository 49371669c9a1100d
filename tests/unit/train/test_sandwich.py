import pytest
import torch

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import VPLinear
from fewstep.nets.slim import Narrow
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights
from fewstep.train.losses import denoising_loss, noised
from fewstep.train.sandwich import Sandwich

WIDTHS = (1.0, 0.75, 0.5, 0.25)


def network():
    with initial_weights(0):
        net = UNet(8, 1, 16, (1, 2), attention=(4,))
    rng = generator(1)
    for parameter in net.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    return net.double()


def batch():
    x0, eps = torch.randn(2, 3, 1, 8, 8, generator=generator(2), dtype=torch.float64).unbind()
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    return noised(x0, eps, t, schedule=VPLinear(), prediction="v")


def gradients(net, loss):
    net.zero_grad()
    loss.sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def middle(rng):
    """The width between the outer ones that a generator in this state draws."""
    return 1 + int(torch.randint(2, (), generator=rng))


@pytest.mark.parametrize("distil", [0.0, 0.5, 1.0])
def test_gradient_is_the_sum_over_three_widths(distil):
    """Mean of the two squared errors, mixed: they have the same gradient as the error to the mixed target."""
    net, noisy = network(), batch()
    found = gradients(
        net, Sandwich(net, WIDTHS, distil=distil)(generator(7), len(noisy.x_in))(net, noisy, None)
    )
    output = net(noisy.x_in, noisy.time_in).detach()
    parts = [gradients(net, denoising_loss(net, noisy))]
    for width in (WIDTHS[-1], WIDTHS[middle(generator(7))]):
        narrow = Narrow(net, width)
        parts.append(gradients(net, (1 - distil) * denoising_loss(narrow, noisy)))
        parts.append(gradients(net, distil * noisy.loss(narrow(noisy.x_in, noisy.time_in), output)))
    for name, grad in found.items():
        # losses are float32
        assert torch.allclose(grad, sum(part[name] for part in parts), rtol=1e-4, atol=1e-6), name


def test_every_width_between_is_drawn():
    net = network()
    drawn = {middle(generator(0, i)) for i in range(20)}
    assert drawn == {1, 2}
    assert (
        len(
            {
                float(Sandwich(net, WIDTHS)(generator(0, i), 4)(net, batch(), None).sum().detach())
                for i in range(20)
            }
        )
        == 2
    )


def test_two_widths_need_no_draw():
    net, noisy = network(), batch()
    loss = Sandwich(net, (1.0, 0.5), distil=0.0)(generator(0), 4)(net, noisy, None)
    both = denoising_loss(net, noisy) + denoising_loss(Narrow(net, 0.5), noisy)
    assert torch.allclose(loss, both, rtol=1e-12)


def test_share_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"distil must lie in \[0, 1\]; got 1.5"):
        Sandwich(network(), WIDTHS, distil=1.5)
