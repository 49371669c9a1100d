import pytest
import torch

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.schedule import VPLinear
from fewstep.nets.folder import as_model, load_model, save_model
from fewstep.nets.slim import Narrow, check_widths, groups_of, materialised, skeleton, sliced
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights

WIDTHS = (1.0, 0.75, 0.5, 0.25)
NETS = {
    "digits": {"image_size": 8, "in_channels": 1, "channels": 16, "multipliers": (1, 2), "attention": (4,)},
    "colour": {"image_size": 16, "in_channels": 3, "channels": 32, "multipliers": (1, 2, 2), "blocks": 2,
               "attention": (8,), "n_classes": 3},
    "conditioned": {"image_size": 8, "in_channels": 1, "channels": 16, "multipliers": (1, 2), "attention": (4,),
                    "n_classes": 3, "maps": {"mask": 1, "known": 2}, "context": 6},
    "odd": {"image_size": 8, "in_channels": 1, "channels": 20, "multipliers": (1, 3), "groups": 5},
}  # fmt: skip


def network(name="digits", dtype=torch.float64):
    """Every weight random: half of them start at zero."""
    with initial_weights(0):
        net = UNet(**NETS[name])
    rng = generator(1, name)
    for parameter in net.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    return net.to(dtype)


def inputs(net, n=2, dtype=torch.float64):
    x = torch.randn(n, net.in_channels, net.image_size, net.image_size, generator=generator(2), dtype=dtype)
    return x, torch.tensor([3.0, 700.0])[:n], told(net, n, dtype)


def told(net, n, dtype):
    """A condition for the network, if it takes one."""
    if net.conditions is None:
        return None
    rng = generator(3)
    values = {"label": torch.tensor([0, 2])[:n]} if net.n_classes else {}
    if net.context:
        values["context"] = torch.randn(n, 5, net.context, generator=rng, dtype=dtype)
    for name, channels in net.maps.items():
        values[name] = torch.randn(n, channels, net.image_size, net.image_size, generator=rng, dtype=dtype)
    return Condition(values)


@pytest.mark.parametrize("name", list(NETS))
@pytest.mark.parametrize("width", WIDTHS)
def test_sliced_network_equals_the_materialised_one(name, width):
    net = network(name)
    arguments = inputs(net)
    off = (Narrow(net, width)(*arguments) - materialised(net, width)(*arguments)).abs().max()
    assert off < 1e-12  # float64; layouts differ, so sums may be ordered differently


@pytest.mark.parametrize("name", list(NETS))
def test_full_width_is_the_plain_network_bit_for_bit(name):
    net = network(name, torch.float32)
    arguments = inputs(net, dtype=torch.float32)
    assert torch.equal(Narrow(net, 1.0)(*arguments), net(*arguments))
    assert set(materialised(net, 1.0).state_dict()) == set(net.state_dict())


@pytest.mark.parametrize("name", list(NETS))
def test_gradient_reaches_the_slice_and_nothing_else(name):
    net = network(name)
    narrow = Narrow(net, 0.5)
    narrow(*inputs(net)).square().mean().backward()
    inside = sliced({k: torch.ones_like(p) for k, p in net.named_parameters()}, narrow.groups)
    for key, parameter in net.named_parameters():
        reached = int((parameter.grad != 0).sum())
        assert reached <= inside[key].numel(), key
    assert int((net.conv_in.weight.grad != 0).sum()) == inside["conv_in.weight"].numel()


def test_skip_connection_keeps_its_own_weights():
    """The features of the way up have 32 wide and 16 narrow channels, and the skip beside them 16 and 8."""
    net = network()
    groups = groups_of(net, skeleton(net, 0.5))
    name = "decoder.0.0.conv1.weight"
    assert groups[name] == (((16, 8),), ((32, 16), (16, 8)))
    cut = sliced(dict(net.named_parameters()), {name: groups[name]})[name]
    wide = net.get_parameter(name)
    assert torch.equal(cut, torch.cat([wide[:8, :16], wide[:8, 32:40]], dim=1))


def test_query_key_and_value_are_cut_each():
    net = network()
    groups = groups_of(net, skeleton(net, 0.5))
    assert groups["middle_in.attention.qkv.weight"] == (((32, 16),) * 3, ((32, 16),))
    conditioned = network("conditioned")
    groups = groups_of(conditioned, skeleton(conditioned, 0.5))
    assert groups["middle_in.cross.kv.weight"] == (((32, 16),) * 2, ((6, 6),))
    assert groups["maps_in.weight"] == (((16, 8),), ((3, 3),))
    assert groups["middle_in.emb.weight"][0] == ((32, 16),) * 2


def test_time_is_told_alike_at_every_width():
    net = network()
    assert {skeleton(net, width).time_channels for width in WIDTHS} == {16}


@pytest.mark.parametrize("widths", [[], [0.5], [1.0, 1.0], [1.0, 0.5, 0.75], [1.0, 0.99], [1.0, 0.0]])
def test_widths_that_cannot_be_are_refused(widths):
    with pytest.raises(ConfigError, match="widths must fall from 1.0 by 4 of the 16 channels"):
        check_widths(widths, 16)


def test_model_folder_keeps_the_widths(tmp_path):
    net = network(dtype=torch.float32)
    save_model(
        tmp_path / "m", net, schedule=VPLinear(), prediction="eps", shape=(1, 8, 8), name="slim", card={},
        widths=WIDTHS,
    )  # fmt: skip
    model = load_model(tmp_path / "m")
    assert model.widths == WIDTHS
    x, t = inputs(net, dtype=torch.float32)[0], torch.tensor([0.2, 0.8])
    for index, width in enumerate(WIDTHS):
        own = as_model(materialised(net, width), schedule=VPLinear(), prediction="eps", shape=(1, 8, 8))
        assert torch.equal(model.network(index)(x, t), own.fn(x, t))
    assert model.network(2) is not model.network(1)


def test_conditions_reach_every_width(tmp_path):
    net = network("conditioned", torch.float32)
    save_model(
        tmp_path / "m", net, schedule=VPLinear(), prediction="eps", shape=(1, 8, 8), name="slim", card={},
        widths=WIDTHS,
    )  # fmt: skip
    model = load_model(tmp_path / "m")
    x, _, condition = inputs(net, dtype=torch.float32)
    outputs = [
        Denoiser(model, condition=given).output(x, 0.5, width=width)
        for width in range(4)
        for given in (condition, condition[[1, 0]])
    ]
    assert not any(torch.equal(a, b) for a, b in zip(outputs[::2], outputs[1::2], strict=True))
    assert all(output.shape == x.shape and output.isfinite().all() for output in outputs)
