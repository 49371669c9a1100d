import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.schedule import Flow
from fewstep.nets.folder import build, load_model, save_model
from fewstep.nets.transformer import (
    AdaptiveNorm,
    LayerNorm,
    SelfAttention,
    Transformer,
    TransformerBlock,
    grid_positions,
    image_of,
    patches,
)
from fewstep.rng import generator

CONFIG = {"image_size": 8, "in_channels": 1, "channels": 16, "depth": 2, "head_channels": 8}
MAPS, CONTEXT = {"mask": 1, "known": 2}, 6


def drawn(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def lively(net: nn.Module) -> nn.Module:
    """Give layers that start at or near zero weights: else little is tested."""
    rng = generator(1)
    for parameter in net.parameters():
        if parameter.abs().max() < 0.1:
            with torch.no_grad():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=rng))
    return net.eval()


def small(**changes: object) -> Transformer:
    net = lively(build({"type": "transformer", **CONFIG, **changes}))
    assert isinstance(net, Transformer)
    return net


def told(n: int, tokens: int = 5) -> Condition:
    maps = {name: drawn(n, channels, 8, 8, seed=channels) for name, channels in MAPS.items()}
    return Condition({"context": drawn(n, tokens, CONTEXT), "label": torch.arange(n), **maps})


# The block


def test_a_block_is_that_of_diffusers():
    """Another implementation of adaLN-zero, with the same weights."""
    attention = pytest.importorskip("diffusers.models.attention")
    peer = attention.BasicTransformerBlock(
        16, 2, 8, norm_type="ada_norm_zero", num_embeds_ada_norm=3, attention_bias=True, norm_elementwise_affine=False,
        activation_fn="gelu-approximate",
    )  # fmt: skip
    peer, block = (
        lively(peer),
        TransformerBlock(16, SelfAttention(16, 2), AdaptiveNorm(16, 16), AdaptiveNorm(16, 16)),
    )
    theirs = dict(peer.state_dict())
    modulation = {"weight": theirs["norm1.linear.weight"], "bias": theirs["norm1.linear.bias"]}
    own = {}
    for part in ("weight", "bias"):
        own[f"norm1.modulation.{part}"], own[f"norm2.modulation.{part}"] = modulation[part].chunk(2)
        own[f"attention.qkv.{part}"] = torch.cat([theirs[f"attn1.to_{name}.{part}"] for name in "qkv"])
        own[f"attention.proj.{part}"] = theirs[f"attn1.to_out.0.{part}"]
        own[f"mlp.into.{part}"], own[f"mlp.out.{part}"] = (
            theirs[f"ff.net.0.proj.{part}"],
            theirs[f"ff.net.2.{part}"],
        )
    block.load_state_dict(own)
    x, t, label = drawn(2, 9, 16), torch.tensor([3, 700]), torch.tensor([0, 2])
    emb = peer.norm1.emb(t, label)
    expected = peer(x, timestep=t, class_labels=label)
    assert (expected - x).abs().max() > 0.1
    # their normalisation has eps 1e-6 in the first and 1e-5 in the second place
    assert torch.allclose(block(x, emb[:, None]), expected, atol=2e-4)


def test_a_block_starts_as_the_identity():
    block = TransformerBlock(8, SelfAttention(8, 2), AdaptiveNorm(8, 4), AdaptiveNorm(8, 4))
    x = drawn(2, 5, 8)
    assert torch.equal(block(x, drawn(2, 1, 4)), x)


class Scaled(nn.Module):
    """A normalisation without a gate, that scales by the embedding."""

    def forward(self, tokens: Tensor, emb: Tensor | None) -> tuple[Tensor, None]:
        assert emb is not None
        return tokens * emb, None


class Mean(nn.Module):
    """Attention that finds the mean of all tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1, keepdim=True).expand_as(tokens)


def test_a_block_takes_its_attention_and_its_normalisations_as_parts():
    block = TransformerBlock(4, Mean(), Scaled(), LayerNorm(4), mlp_ratio=2)
    nn.init.zeros_(block.mlp.out.weight)
    x, emb = drawn(2, 3, 4), drawn(2, 1, 4)
    assert torch.allclose(block(x, emb), x + emb * x.mean(1, keepdim=True), atol=1e-6)


# The network


def test_patches_are_put_back():
    x = drawn(2, 3, 4, 8)
    tokens = patches(x, 2)
    assert tokens.shape == (2, 8, 12)
    assert torch.equal(tokens[:, 1].reshape(2, 3, 2, 2), x[..., :2, 2:4])
    assert torch.equal(image_of(tokens, 2, 4, 2), x)


def test_positions_are_distinct_and_say_how_far_apart_they_are():
    codes = grid_positions(6, 5, 16)
    assert codes.shape == (30, 16) and torch.pdist(codes).min() > 0.1
    products = (codes @ codes.T).reshape(6, 5, 6, 5)
    # cos a cos b + sin a sin b = cos(a - b): the product depends on the offset alone
    assert torch.allclose(products[0, 0, 2, 1], products[3, 2, 5, 3], atol=1e-4)
    assert not torch.allclose(products[0, 0, 2, 1], products[0, 0, 3, 1], atol=1e-3)


def test_the_untrained_output_is_zero():
    assert not build({"type": "transformer", **CONFIG})(drawn(2, 1, 8, 8), 5.0).any()


def test_without_positions_the_order_of_patches_does_not_matter():
    net, x = small(), drawn(2, 1, 8, 8)
    with_positions = net(x, 5.0)
    order = torch.randperm(16, generator=generator(5))
    moved = image_of(patches(x, 2)[:, order], 4, 4, 2)
    assert not torch.allclose(patches(net(moved, 5.0), 2), patches(with_positions, 2)[:, order], atol=1e-3)
    net.positions.zero_()
    assert torch.allclose(patches(net(moved, 5.0), 2), patches(net(x, 5.0), 2)[:, order], atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"n_classes": 3}, {"patch": 1}])
def test_a_constant_map_of_times_equals_the_scalar(changes):
    net, x = small(**changes), drawn(3, 1, 8, 8)
    label = Condition({"label": torch.tensor([0, 2, 1])}) if "n_classes" in changes else None
    scalar = net(x, 321.5, label)
    for time in (torch.full((3,), 321.5), torch.full((3, 1, 8, 8), 321.5), torch.full((1, 1, 8, 8), 321.5)):
        assert torch.allclose(net(x, time, label), scalar, atol=1e-5)


def test_a_map_of_times_is_not_its_mean():
    net, x, time = small(), drawn(1, 1, 8, 8), torch.full((1, 1, 8, 8), 500.0)
    changed = time.clone()
    changed[..., :4] = 0.0
    difference = (net(x, changed) - net(x, time)).abs()
    assert difference[..., :2].mean() > 1e-3


def test_times_per_image_equal_single_images():
    net, x, time = small(), drawn(3, 1, 8, 8), torch.tensor([3.0, 500.0, 999.0])
    together = net(x, time)
    for i in range(3):
        assert torch.allclose(together[i : i + 1], net(x[i : i + 1], time[i]), atol=1e-5)
    assert not torch.allclose(net(x[:1], time[0]), net(x[:1], time[2]), atol=1e-3)


@given(
    channels=st.sampled_from([4, 12, 16]),
    depth=st.integers(1, 2),
    n_classes=st.integers(0, 3),
    in_channels=st.integers(1, 3),
    patch=st.integers(1, 3),
    factor=st.integers(1, 3),
)
@settings(max_examples=15, deadline=None)
def test_shapes(channels, depth, n_classes, in_channels, patch, factor):
    side = patch * factor
    net = Transformer(side, in_channels, channels, depth, patch, n_classes)
    x = drawn(2, in_channels, side, 2 * side)
    assert net(x, 7.0).shape == x.shape
    again = Transformer(**net.config())
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }


def test_new_parts_leave_a_network_without_conditions_as_it_is():
    plain = small(n_classes=2)
    net = Transformer(**{**plain.config(), "maps": MAPS, "context": CONTEXT})
    missing, unknown = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown and all(name.startswith(net.condition_parts()) for name in missing)
    x, label = drawn(2, 1, 8, 8), Condition({"label": torch.arange(2)})
    assert torch.equal(net(x, 7.0, told(2)), plain(x, 7.0, label))
    assert {"maps", "context"} & plain.config().keys() == set()


def test_every_condition_moves_the_output_and_every_weight_learns():
    net, x, condition = small(maps=MAPS, context=CONTEXT, n_classes=3), drawn(2, 1, 8, 8), told(2)
    out = net(x, torch.tensor([3.0, 700.0]), condition)
    for name, value in condition.values.items():
        moved = net(x, torch.tensor([3.0, 700.0]), Condition({**condition.values, name: value.flip(0)}))
        assert (moved - out).abs().max() > 1e-3, name
    label = torch.tensor([0, 3])
    other = net(x, 9.0, Condition({**condition.values, "label": label}))
    (out + other).square().sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_order_of_context_tokens_does_not_matter():
    net, x, tokens = small(context=CONTEXT), drawn(2, 1, 8, 8), told(2).values["context"]
    out = net(x, 7.0, Condition({"context": tokens}))
    # float32: sums over tokens in another order
    assert torch.allclose(net(x, 7.0, Condition({"context": tokens[:, [3, 0, 4, 1, 2]]})), out, atol=1e-5)
    assert not torch.allclose(net(x, 7.0, Condition({"context": tokens[:, :4]})), out, atol=1e-4)


def test_null_condition_is_that_of_no_condition():
    net, x, like = small(maps=MAPS, context=CONTEXT, n_classes=3), drawn(3, 1, 8, 8), told(3)
    assert net.conditions is not None
    null = net.conditions.null(like)
    assert null is not None and torch.allclose(net(x, 7.0, null), net(x, 7.0), atol=1e-6)
    assert not torch.allclose(net(x, 7.0, like), net(x, 7.0), atol=1e-3)


def test_autocast_stays_close_and_double_is_supported():
    net, x = small(), drawn(2, 1, 8, 8)
    exact = net(x, 123.0)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, 123.0)
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()  # bfloat16 has 8 bits
    assert torch.allclose(net.double()(x.double(), 123.0), exact.double(), atol=1e-4)


def test_dropout_only_acts_in_training():
    net, x = small(dropout=0.5), drawn(2, 1, 8, 8)
    assert torch.equal(net(x, 1.0), net(x, 1.0))
    net.train()
    assert not torch.equal(net(x, 1.0), net(x, 1.0))


def test_a_model_folder_holds_it(tmp_path):
    net, x = small(n_classes=3), drawn(2, 1, 8, 8)
    save_model(
        tmp_path / "m", net, schedule=Flow(), prediction="u", shape=(1, 8, 8), name="tiny", card={"steps": 3}
    )
    model = load_model(tmp_path / "m")
    t, label = torch.tensor([0.1, 0.9]), Condition({"label": torch.tensor([0, 3])})
    assert torch.allclose(model.fn(x, t, label), net(x, Flow().time_input(t), label), atol=1e-5)
    assert model.conditions == net.conditions


@pytest.mark.slow
def test_the_graph_is_whole():
    """Dynamo captures one graph per kind of time: nothing falls back to Python."""
    net, x = small(n_classes=2), drawn(2, 1, 8, 8)
    label = Condition({"label": torch.tensor([0, 1])})
    for time in (torch.tensor([1.0, 2.0]), torch.ones(2, 1, 8, 8)):
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(x, time, label), net(x, time, label), atol=1e-6)


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"channels": 6}, "multiple of 4"),
        ({"time_channels": 3}, "even"),
        ({"image_size": 9}, "multiple of the patch"),
        ({"patch": 0}, "multiple of the patch"),
        ({"depth": 0}, "depth of 1 to 256"),
        ({"n_classes": -1}, "n_classes"),
        ({"dropout": 1.0}, "dropout"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"context": -1}, "context must be >= 0"),
        ({"maps": {"mask": 0}}, "maps must have 1 channel or more"),
        ({"colour": 1}, "does not take"),
    ],
)
def test_bad_values_are_refused(changes, word):
    with pytest.raises(ConfigError, match=word):
        small(**changes)
