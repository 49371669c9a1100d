"""Invariants of what keeps a discriminator's Lipschitz constant in bounds."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from fewstep.checks import ConfigError
from fewstep.nets.lipschitz import DotAttention, ImprovedSpectralNorm, L2Attention, keep_spectral_norms
from fewstep.nets.vitgan import preserve_variance
from fewstep.rng import generator, initial_weights


def attention(kind, width=8, heads=2):
    with initial_weights(0):
        made = kind(width, heads).double()
        preserve_variance(made)
    return made


def tokens(n=5, width=8, seed=1):
    return torch.randn(1, n, width, generator=generator(seed), dtype=torch.float64)


def test_rows_of_weights_sum_to_one_and_near_tokens_attend_to_each_other():
    weights = attention(L2Attention).weights(tokens())
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 5, dtype=torch.float64))
    assert (weights.argmax(-1) == torch.arange(5)).all()  # the distance to itself is 0


def test_weights_do_not_change_when_all_tokens_are_moved():
    net, x = attention(L2Attention), tokens()
    torch.testing.assert_close(net.weights(x + tokens(1, seed=2)), net.weights(x))


@pytest.mark.parametrize("kind", [L2Attention, DotAttention])
def test_attention_permutes_with_its_tokens(kind):
    net, x, order = attention(kind), tokens(), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(net(x[:, order]), net(x)[:, order])


def _jacobian_norm(net, x):
    n = x.numel()
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v.view_as(x)).reshape(-1), x.reshape(-1))
    return float(torch.linalg.matrix_norm(jacobian.reshape(n, n), 2))


def test_the_jacobian_stays_bounded_for_distances_and_explodes_for_dot_products():
    """Tokens scaled by 1, 4, 16, 64, one of them 0, where the proof that dot products are unbounded looks: about 2.5,
    2.3, 2.1, 2.1 against 3, 20, 250, 4000 for random weights."""
    norms = {}
    for kind in (L2Attention, DotAttention):
        x = tokens()
        x[:, 0] = 0.0
        norms[kind] = [_jacobian_norm(attention(kind), scale * x) for scale in (1, 4, 16, 64)]
    assert max(norms[L2Attention]) < 3 * norms[L2Attention][0]
    assert norms[DotAttention][-1] > 100 * norms[DotAttention][0]


def test_second_derivatives_exist_for_gradient_penalties():
    for kind in (L2Attention, DotAttention):
        net, x = attention(kind), tokens().requires_grad_(True)
        (gradient,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        assert net.proj.weight.grad.abs().sum() > 0


# spectral norms that stay


def linear():
    with initial_weights(0):
        layer = nn.Linear(6, 4)
    keep_spectral_norms(layer)
    return layer


def _norm(weight):
    return float(torch.linalg.matrix_norm(weight.detach(), 2))


def test_a_weight_keeps_the_norm_of_its_start_whatever_its_scale():
    layer = linear()
    start = _norm(layer.weight)
    assert start == pytest.approx(_norm(layer.parametrizations.weight.original), rel=1e-5)
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(3.7).add_(
            torch.randn(4, 6, generator=generator(3)), alpha=0.3
        )
    for _ in range(20):  # power iterations
        layer(torch.zeros(1, 6))
    assert _norm(layer.parametrizations.weight.original) > 2 * start
    assert _norm(layer.weight) == pytest.approx(start, rel=1e-3)


def test_evaluation_moves_no_estimate_and_training_does():
    layer = linear()
    norm = layer.parametrizations.weight[0]
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(torch.randn(4, 6, generator=generator(4)))
    before = norm.u.clone()
    layer.eval()
    layer(torch.zeros(1, 6))
    assert torch.equal(norm.u, before)
    layer.train()
    layer(torch.zeros(1, 6))
    assert not torch.equal(norm.u, before)


def test_the_norm_of_the_start_survives_in_the_state():
    layer, other = linear(), linear()
    start = layer.parametrizations.weight[0].sigma_init.clone()
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(5)
    for _ in range(5):
        layer(torch.zeros(1, 6))
    with torch.no_grad():
        other.parametrizations.weight.original.mul_(0.1)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.parametrizations.weight[0].sigma_init, start)
    x = torch.randn(2, 6, generator=generator(5))
    assert torch.equal(layer.eval()(x), other.eval()(x))


def test_gradients_do_not_flow_through_the_iteration():
    """W_bar does not change with the scale of W, so its gradient is orthogonal to W."""
    norm = ImprovedSpectralNorm(torch.diag(torch.tensor([3.0, 1.0])))
    weight = torch.diag(torch.tensor([3.0, 1.0])).requires_grad_(True)
    norm(weight).square().sum().backward()
    assert float((weight.grad * weight.detach()).sum()) == pytest.approx(0.0, abs=1e-5)


def test_every_linear_layer_is_normalised():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 2)))
    keep_spectral_norms(net)
    assert [parametrize.is_parametrized(net[0]), parametrize.is_parametrized(net[2][0])] == [True, True]


def test_heads_must_divide_the_tokens():
    with pytest.raises(ConfigError, match="multiple of the heads; got 6 and 4"):
        L2Attention(6, 4)
