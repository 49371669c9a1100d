import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.nets.folder import build
from fewstep.nets.unet import UNet, pooled, sinusoids
from fewstep.rng import generator


def lively(net: nn.Module) -> nn.Module:
    """Give the zero-initialised layers weights: else half of the network is not tested."""
    rng = generator(1)
    for parameter in net.parameters():
        if not parameter.any():
            with torch.no_grad():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    return net.eval()


def small(**changes: object) -> UNet:
    config = {"image_size": 8, "in_channels": 1, "channels": 8, "multipliers": [1, 2], "attention": [4]}
    net = lively(build({"type": "unet", **config, **changes}))
    assert isinstance(net, UNet)
    return net


def of_classes(*labels: int) -> Condition:
    return Condition({"label": torch.tensor(labels)})


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(2))


@pytest.mark.parametrize("changes", [{}, {"n_classes": 3}, {"patch": 2}])
def test_a_constant_map_of_times_equals_the_scalar(changes: dict[str, int]):
    net, x, n_classes = small(**changes), images(3, 1, 8, 8), changes.get("n_classes", 0)
    label = of_classes(0, 2, 1) if n_classes else None
    scalar = net(x, 321.5, label)
    # float32: the sums over 8 x 8 pixels are taken in another order
    assert torch.allclose(net(x, torch.full((3,), 321.5), label), scalar, atol=1e-5)
    assert torch.allclose(net(x, torch.full((3, 1, 8, 8), 321.5), label), scalar, atol=1e-5)
    assert torch.allclose(net(x, torch.full((1, 1, 8, 8), 321.5), label), scalar, atol=1e-5)


def test_times_per_image_equal_single_images():
    net, x, time = small(), images(3, 1, 8, 8), torch.tensor([3.0, 500.0, 999.0])
    together = net(x, time)
    for i in range(3):
        assert torch.allclose(together[i : i + 1], net(x[i : i + 1], time[i]), atol=1e-5)


def test_a_map_of_times_is_not_its_mean():
    net, x = small(), images(1, 1, 8, 8)
    time = torch.full((1, 1, 8, 8), 500.0)
    changed = time.clone()
    changed[..., :4] = 0.0
    difference = (net(x, changed) - net(x, time)).abs()
    assert difference[..., :2].mean() > 1e-3


@given(
    channels=st.sampled_from([4, 12, 16]),
    multipliers=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    blocks=st.integers(1, 2),
    n_classes=st.integers(0, 3),
    in_channels=st.integers(1, 3),
    factor=st.integers(1, 2),
    patch=st.integers(1, 3),
    data=st.data(),
)
@settings(max_examples=15, deadline=None)
def test_shapes(channels, multipliers, blocks, n_classes, in_channels, factor, patch, data):
    side = patch * factor * 2 ** (len(multipliers) - 1)
    sides = [side // patch >> level for level in range(len(multipliers))]
    attention = data.draw(st.lists(st.sampled_from(sides), unique=True))
    net = UNet(side, in_channels, channels, multipliers, blocks, attention, n_classes, patch=patch)
    x = images(2, in_channels, side, 2 * side)
    assert net(x, 7.0).shape == x.shape
    again = UNet(**net.config())
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }


def test_a_patch_is_one_pixel_of_a_network_without_patches():
    net, x = small(patch=2), images(2, 1, 8, 8)
    inner = UNet(**{**net.config(), "patch": 1, "image_size": 4, "in_channels": 4, "out_channels": 4})
    inner.load_state_dict(net.state_dict())
    folded = x.reshape(2, 4, 2, 4, 2).permute(0, 2, 4, 1, 3).reshape(2, 4, 4, 4)
    out = inner(folded, 10.0).reshape(2, 2, 2, 4, 4).permute(0, 3, 1, 4, 2).reshape(2, 1, 8, 8)
    assert torch.allclose(net(x, 10.0), out, atol=1e-5)


def test_the_untrained_output_is_zero():
    assert not UNet(8, 1, 8)(images(2, 1, 8, 8), 5.0).any()


def test_the_parts_make_the_whole():
    net, x = small(), images(2, 1, 8, 8)
    emb = net.embed(10.0, like=x)
    h, skips = net.encode(x, emb)
    h = net.middle(h, emb)
    assert h.shape == (2, 16, 4, 4) and [s.shape[-1] for s in skips] == [8, 4]
    assert torch.equal(net.decode(h, skips, emb), net(x, 10.0))
    assert not torch.allclose(net.decode(h + 1, skips, emb), net(x, 10.0))


def test_no_label_is_the_label_n_classes():
    net, x = small(n_classes=3), images(2, 1, 8, 8)
    assert torch.allclose(net(x, 10.0), net(x, 10.0, of_classes(3, 3)), atol=1e-6)
    assert not torch.allclose(net(x, 10.0), net(x, 10.0, of_classes(0, 3)), atol=1e-3)


def test_memory_layout_does_not_change_the_output():
    net, x = small(), images(4, 1, 8, 8)
    plain = net(x, 10.0)
    net.to(memory_format=torch.channels_last)
    out = net(x.contiguous(memory_format=torch.channels_last), 10.0)
    assert torch.allclose(out, plain, atol=1e-4)  # another convolution kernel: another order of sums


def test_autocast_stays_close_and_double_is_supported():
    net, x = small(), images(2, 1, 8, 8)
    exact = net(x, 123.0)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, 123.0)
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()  # bfloat16 has 8 bits
    assert torch.allclose(net.double()(x.double(), 123.0), exact.double(), atol=1e-4)


def test_every_parameter_learns():
    net = small(n_classes=3)
    time = torch.rand(2, generator=generator(3)) * 1000
    net(images(2, 1, 8, 8), time, of_classes(0, 3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_dropout_only_acts_in_training():
    net, x = small(dropout=0.5), images(2, 1, 8, 8)
    assert torch.equal(net(x, 1.0), net(x, 1.0))
    net.train()
    assert not torch.equal(net(x, 1.0), net(x, 1.0))


@pytest.mark.slow
def test_the_graph_is_whole():
    """Dynamo captures one graph per kind of time: nothing falls back to Python."""
    net, x = small(n_classes=2), images(2, 1, 8, 8)
    for time in (torch.tensor([1.0, 2.0]), torch.ones(2, 1, 8, 8)):
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(x, time, of_classes(0, 1)), net(x, time, of_classes(0, 1)), atol=1e-6)


def test_weights_follow_the_seed_alone():
    config = {"type": "unet", "image_size": 8, "in_channels": 1, "channels": 8}
    one, other, third = build(config, seed=1), build(config, seed=1), build(config, seed=2)
    assert torch.equal(one.conv_in.weight, other.conv_in.weight)
    assert not torch.equal(one.conv_in.weight, third.conv_in.weight)


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"channels": 6}, "multiple of 4"),
        ({"image_size": 9}, "multiple of 2"),
        ({"patch": 0}, "patch must be 1 or more"),
        ({"patch": 3}, "multiple of 6 for 2 levels of patches of side 3"),
        ({"attention": [16]}, r"sides among \[8, 4\]"),
        ({"multipliers": []}, "positive multipliers"),
        ({"dropout": 1.0}, "dropout"),
        ({"n_classes": -1}, "n_classes"),
        ({"colour": 1}, "does not take"),
        ({"type": "resnet"}, "unet, classifier"),
    ],
)
def test_bad_values_are_refused(changes, word):
    with pytest.raises(ConfigError, match=word):
        small(**changes)


def test_sinusoids_keep_single_steps_apart():
    codes = sinusoids(torch.arange(1000.0), 16)
    assert codes.shape == (1000, 32)
    assert torch.allclose(codes.square().sum(-1), torch.tensor(16.0))
    assert torch.pdist(codes[::7]).min() > 0.01


def test_pooling_takes_the_mean():
    emb = torch.arange(16.0).reshape(1, 4, 4, 1)
    assert torch.equal(pooled(emb, (2, 2)).flatten(), torch.tensor([2.5, 4.5, 10.5, 12.5]))
