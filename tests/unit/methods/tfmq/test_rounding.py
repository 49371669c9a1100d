"""Scales of weights, and rounding that is learned."""

import pytest
import torch
from torch import nn

from fewstep.checks import ConfigError, DataError
from fewstep.methods.tfmq.rounding import BETA, Rounding, beta_at, learn, weight_codes
from fewstep.nets.quantised import SMALLEST_SCALE, Bits
from fewstep.rng import generator

WEIGHT = (
    torch.randn(5, 3, 3, 3, generator=generator(0))
    * torch.tensor([0.01, 0.1, 1, 3, 10.0])[:, None, None, None]
)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
def test_integers_lie_in_range_and_weights_within_half_a_step(bits, scheme):
    codes = weight_codes(WEIGHT, bits, scheme=scheme, search="minmax")
    assert int(codes.integers.max()) <= 2**bits - 1
    off = (codes.weight() - WEIGHT).abs().flatten(1).amax(1)
    # the last level of a symmetric grid is missing above, so that its end is half a step inside; float32 rounding
    assert bool((off <= 0.5 * codes.scale * (1 + 1e-4)).all())


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_zero_is_exact_and_rounding_is_idempotent(bits):
    weight = WEIGHT.clone()
    weight[:, 0] = 0
    for scheme in ("symmetric", "affine"):
        codes = weight_codes(weight, bits, scheme=scheme)
        assert bool((codes.weight()[:, 0] == 0).all())
        again = (
            (codes.weight() / codes.scale[:, None, None, None]).round() + codes.zero[:, None, None, None]
        ).int()
        assert torch.equal(again, codes.integers.int())


def test_a_searched_scale_loses_no_more_than_the_whole_range():
    for bits in (3, 4, 8):
        errors = [
            (weight_codes(WEIGHT, bits, scheme="affine", search=search).weight() - WEIGHT)
            .abs()
            .pow(2.4)
            .mean()
            for search in ("mse", "minmax")
        ]
        assert errors[0] <= errors[1]
    assert errors[0] < 1e-3


@pytest.mark.parametrize("weight", [torch.zeros(2, 4), torch.full((2, 4), 3.0), torch.full((2, 1), -1e-12)])
def test_constant_weights_divide_nothing_by_zero(weight):
    codes = weight_codes(weight, 8, scheme="affine")
    assert bool((codes.scale >= SMALLEST_SCALE).all())
    assert torch.allclose(codes.weight(), weight, atol=0.02)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="Weights to be quantised must be finite"):
        weight_codes(torch.tensor([[1.0, float("nan")]]), 8, scheme="symmetric")


@torch.no_grad()
def test_the_share_starts_at_the_fraction_and_hard_rounding_then_is_plain_rounding():
    codes = weight_codes(WEIGHT, 4, scheme="affine", search="minmax")
    rounding = Rounding(WEIGHT, codes, 4)
    units = WEIGHT / codes.scale[:, None, None, None]
    # the inverse of the sigmoid is cut at 1e-4 from both ends
    assert torch.allclose(rounding.share(), units - units.floor(), atol=1.1e-4)
    assert torch.allclose(rounding.soft(), WEIGHT, atol=float(codes.scale.max()) * 0.6)
    assert torch.equal(rounding.hard().integers, codes.integers)


@torch.no_grad()
def test_the_regulariser_is_zero_just_where_all_is_decided():
    rounding = Rounding(WEIGHT, weight_codes(WEIGHT, 4, scheme="affine"), 4)
    assert float(rounding.undecided(20.0)) > 1
    rounding.alpha.data = torch.where(rounding.alpha > 0, 9.0, -9.0)
    assert float(rounding.undecided(2.0)) == 0


def test_the_exponent_is_absent_at_first_and_then_falls_on_a_line():
    assert beta_at(0, 100) is None and beta_at(19, 100) is None
    assert beta_at(20, 100) == BETA[0]
    assert beta_at(60, 100) == pytest.approx(sum(BETA) / 2)


def test_learning_lowers_the_error_of_a_layer_below_that_of_nearest_integers():
    rng = generator(3)
    weight = torch.randn(6, 16, generator=rng)
    x = 0.1 * torch.randn(64, 16, generator=rng) @ torch.randn(16, 16, generator=rng)
    codes = weight_codes(weight, 3, scheme="affine")
    roundings = nn.ModuleDict({"a": Rounding(weight, codes, 3)})
    target = x @ weight.T

    def losses(rows):
        return (x[rows] @ roundings["a"].soft().T - target[rows]).pow(2).sum(1)

    learn(roundings, losses, [torch.arange(64)] * 400, lr=1e-2)
    learned = (x @ roundings["a"].hard().weight().T - target).pow(2).mean()
    # correlated inputs, so that errors of single weights can cancel
    assert learned < 0.5 * (x @ codes.weight().T - target).pow(2).mean()


@pytest.mark.parametrize("text", ["w9a8", "w1a8", "w8a7", "w8", "8a8", "w8a8 ", "w8a16"])
def test_bits_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="bits must"):
        Bits.parse(text)
    assert str(Bits.parse("w4a32")) == "w4a32"
