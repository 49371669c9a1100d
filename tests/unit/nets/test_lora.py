"""Invariants of low-rank adaptation."""

import pytest
import torch
from torch import nn

from fewstep.checks import ConfigError
from fewstep.nets.lora import adapt, merge
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights

ROLES = ("attn", "body", "first", "last")


def network():
    with initial_weights(0):
        net = UNet(8, 3, 16, (1, 2), attention=(4,))
    for parameter in net.parameters():  # layers that start at zero would hide what stands before them
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator(1))
    return net


def called(net):
    x = torch.randn(2, 3, 8, 8, generator=generator(2))
    time = torch.rand(2, 1, 8, 8, generator=generator(3)) * 900
    return net.eval()(x, time)


def adapted(**changes):
    net = network()
    adapt(net, **{"rank": 4, "roles": ROLES, "rng": generator(4), **changes})
    return net


def learned(net):
    """Other factors than those of the start, whose product is zero."""
    rng = generator(5)
    for name, parameter in net.named_parameters():
        if name.endswith((".a", ".b")):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    return net


def test_an_adapted_network_starts_as_it_was_to_the_bit():
    assert torch.equal(called(adapted()), called(network()))


def test_a_merged_network_is_the_adapted_one_and_has_the_layers_of_before():
    net = learned(adapted())
    before, names = called(net), network().state_dict().keys()
    merge(net)
    assert torch.allclose(called(net), before, atol=1e-5) and not torch.equal(before, called(network()))
    assert net.state_dict().keys() == names and type(net) is UNet


def test_two_convolutions_are_their_product():
    """A, one convolution to r channels, then B of 1 x 1: as the method is stated for convolutions."""
    net = learned(adapted(rank=2))
    conv = net.conv_in
    low = conv.parametrizations.weight[0]
    x = torch.randn(1, 3, 8, 8, generator=generator(6))
    a = nn.functional.conv2d(x, low.a.reshape(2, 3, 3, 3), padding=1)
    b = nn.functional.conv2d(a, low.b[:, :, None, None])
    plain = nn.functional.conv2d(x, conv.parametrizations.weight.original, conv.bias, padding=1)
    assert torch.allclose(conv(x), plain + b, atol=1e-5)


def test_factors_and_the_layers_of_the_time_learn_and_nothing_else():
    net = adapted(roles=("attn",))
    called(net).square().sum().backward()
    free = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert free == {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    known = net.roles()
    times = {path for path, role in known.items() if role in ("time_mlp", "time_proj")}
    factors = {f"{path}.parametrizations.weight.0" for path, role in known.items() if role == "attn"}
    assert {name.rpartition(".")[0] for name in free} == times | factors


def test_a_rank_is_cut_where_a_layer_cannot_have_it():
    net = adapted(rank=20)
    assert net.conv_in.parametrizations.weight[0].a.shape == (16, 27)
    assert net.conv_out.parametrizations.weight[0].b.shape == (3, 3)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"roles": ("attn", "resample")}, "must be among those of the network, attn, body,.*got resample"),
        ({"rank": 0}, "must be 1 to 32, the most that one of attn, body, first, last"),
        ({"rank": 33}, "must be 1 to 32.*got 33"),
        ({"roles": (), "rank": 1}, "must be 1 to 0"),
    ],
)
def test_what_matches_no_layer_is_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        adapted(**changes)
