import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Classes, Condition, Entry, Stored
from fewstep.nets.folder import build
from fewstep.nets.unet import UNet, inputs_of, pooled, sinusoids
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


# Conditions besides the class


MAPS, CONTEXT = {"mask": 1, "known": 2}, 6


def told(n: int, tokens: int = 5, side: int = 8) -> Condition:
    rng = generator(4)
    maps = {name: torch.randn(n, channels, side, side, generator=rng) for name, channels in MAPS.items()}
    return Condition({"context": torch.randn(n, tokens, CONTEXT, generator=rng), **maps})


@pytest.mark.parametrize("patch", [1, 2])
def test_new_parts_leave_a_network_without_conditions_as_it_is(patch):
    plain = small(patch=patch)
    net = UNet(**{**plain.config(), "maps": MAPS, "context": CONTEXT})
    missing, unknown = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown and all(name.startswith(net.condition_parts()) for name in missing)
    x = images(2, 1, 8, 8)
    assert torch.equal(net(x, 7.0, told(2)), plain(x, 7.0))
    assert torch.equal(net(x, 7.0), plain(x, 7.0))


def test_config_says_no_more_than_is_used():
    assert {"maps", "context"} & small().config().keys() == set()
    assert small(maps=MAPS).config()["maps"] == MAPS and "context" not in small(maps=MAPS).config()
    assert small(context=6).config()["context"] == 6
    again = UNet(**small(maps=MAPS, context=CONTEXT).config())
    assert list(again.maps) == ["known", "mask"]  # by name: the order of the channels


@pytest.mark.parametrize("patch", [1, 2])
def test_every_condition_moves_the_output(patch):
    net, x, condition = (
        small(maps=MAPS, context=CONTEXT, patch=patch, n_classes=2),
        images(2, 1, 8, 8),
        told(2),
    )
    values = {**condition.values, "label": torch.tensor([0, 1])}
    out = net(x, 7.0, Condition(values))
    assert out.shape == x.shape
    for name, value in values.items():
        moved = net(x, 7.0, Condition({**values, name: value.flip(0)}))
        assert (moved - out).abs().max() > 1e-3, name


def test_maps_are_channels_beside_the_image():
    """One convolution over image and maps side by side."""
    net, x, condition = small(maps=MAPS), images(2, 1, 8, 8), told(2)
    condition = Condition({name: condition.values[name] for name in MAPS})
    wide = UNet(**{**small().config(), "in_channels": 4, "out_channels": 1})
    assert net.maps_in is not None
    weights = {name: value for name, value in net.state_dict().items() if not name.startswith("maps_in")}
    weights["conv_in.weight"] = torch.cat([net.conv_in.weight, net.maps_in.weight], dim=1)
    wide.load_state_dict(weights)
    side_by_side = torch.cat([x, condition.values["known"], condition.values["mask"]], dim=1)
    assert torch.allclose(net(x, 7.0, condition), wide.eval()(side_by_side, 7.0), atol=1e-5)


def test_order_of_context_tokens_does_not_matter():
    net, x, condition = small(context=CONTEXT), images(2, 1, 8, 8), told(2)
    tokens = condition.values["context"]
    out = net(x, 7.0, Condition({"context": tokens}))
    # float32: sums over tokens in another order
    assert torch.allclose(net(x, 7.0, Condition({"context": tokens[:, [3, 0, 4, 1, 2]]})), out, atol=1e-5)
    assert not torch.allclose(net(x, 7.0, Condition({"context": tokens[:, :4]})), out, atol=1e-4)
    doubled = net(x, 7.0, Condition({"context": torch.cat([tokens, tokens], 1)}))
    assert torch.allclose(doubled, out, atol=1e-5)


def test_null_condition_is_that_of_no_condition():
    net, x = small(maps=MAPS, context=CONTEXT, n_classes=2), images(3, 1, 8, 8)
    assert net.conditions is not None
    like = Condition({**told(3).values, "label": torch.tensor([0, 1, 0])})
    null = net.conditions.null(like)
    assert null is not None and torch.allclose(net(x, 7.0, null), net(x, 7.0), atol=1e-6)
    assert not torch.allclose(net(x, 7.0, like), net(x, 7.0), atol=1e-3)


def test_what_a_network_declares():
    assert small().conditions is None and small(n_classes=3).conditions == Classes(3)
    declared = small(maps=MAPS, context=CONTEXT, n_classes=3).conditions
    assert isinstance(declared, Stored) and declared.rows is None
    assert declared.entries == {
        "known": Entry((2, 8, 8)),
        "mask": Entry((1, 8, 8)),
        "context": Entry((None, CONTEXT)),
        "label": Entry((), torch.int64),
    }
    assert inputs_of({"label": Entry((), torch.int64)}, 8) == {"maps": {}, "context": 0}
    assert inputs_of(small(maps=MAPS, context=CONTEXT).conditions.entries, 8) == {
        "maps": MAPS,
        "context": CONTEXT,
    }


@pytest.mark.parametrize(
    "entry",
    [
        {"mask": Entry((1, 4, 4))},
        {"prompt": Entry((5, 6))},
        {"context": Entry((6,))},
        {"label": Entry()},
        {"mask": Entry((1, 8, 8), torch.uint8)},
    ],
)
def test_conditions_that_no_unet_takes_are_named(entry):
    with pytest.raises(ConfigError, match=f"A U-Net takes maps, .* got {next(iter(entry))}"):
        inputs_of(entry, 8)


def test_every_conditioned_parameter_learns():
    net = small(maps=MAPS, context=CONTEXT, n_classes=3)
    condition = Condition({**told(2).values, "label": torch.tensor([0, 3])})
    net(images(2, 1, 8, 8), torch.tensor([3.0, 700.0]), condition).square().sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_conditions_work_with_a_map_of_times_and_under_autocast():
    net, x, condition = small(maps=MAPS, context=CONTEXT), images(2, 1, 8, 8), told(2)
    exact = net(x, 7.0, condition)
    assert torch.allclose(net(x, torch.full((2, 1, 8, 8), 7.0), condition), exact, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, 7.0, condition)
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()  # bfloat16 has 8 bits


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
        ({"context": -1}, "context must be >= 0"),
        ({"maps": {"mask": 0}}, "maps must have 1 channel or more"),
        ({"maps": {"label": 1}}, "other names than label and context"),
        ({"colour": 1}, "does not take"),
        ({"type": "resnet"}, "unet, transformer, classifier"),
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
