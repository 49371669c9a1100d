"""Ranges of activations."""

import pytest
import torch

from fewstep.methods.tfmq.ranges import RangeError, Seen, ranges_of
from fewstep.nets.quantised import SMALLEST_SCALE
from fewstep.rng import generator

RNG = generator(0)
VALUES = [torch.nn.functional.silu(width * torch.randn(4096, generator=RNG)) for width in (0.1, 1.0, 8.0)]
SEEN = [Seen.of(values, where="layer", call=k) for k, values in enumerate(VALUES)]


def errors(ranges):
    return [float((ranges(values, k) - values).pow(2).mean()) for k, values in enumerate(VALUES)]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("per_call", [True, False])
def test_values_in_range_are_half_a_step_off_at_most_and_zero_is_exact(bits, per_call):
    ranges = ranges_of(SEEN, bits, per_call=per_call, exact=True)
    for k, values in enumerate(VALUES):
        assert bool(((ranges(values, k) - values).abs() <= 0.5001 * ranges.scale[k]).all())
        assert float(ranges(torch.zeros(1), k)) == 0
        again = ranges(ranges(values, k), k)
        assert torch.equal(again, ranges(values, k))


def test_a_range_for_each_call_loses_less_than_one_for_all():
    whole = errors(ranges_of(SEEN, 8, per_call=False, exact=False))
    each = errors(ranges_of(SEEN, 8, per_call=True, exact=False))
    # the narrow calls gain the ratio of the widths, squared: what finite-set calibration is for
    assert each[0] < 0.05 * whole[0] and each[1] < 0.5 * whole[1]
    # what one zero point for all calls costs the widest, whose own would be near the end of the levels
    assert each[2] < 2.5 * whole[2]


def test_the_search_clips_what_is_rare_at_few_bits():
    found = ranges_of(SEEN, 4, per_call=True, exact=False)
    assert sum(errors(found)) < sum(errors(ranges_of(SEEN, 4, per_call=True, exact=True)))


def test_a_rare_large_value_is_not_missed():
    values = torch.zeros(1_000_000)
    values[::2], values[12_345] = 0.01, 5.0
    ranges = ranges_of([Seen.of(values, where="layer", call=0)], 8, per_call=True, exact=False)
    assert float(ranges(torch.tensor([5.0]), 0)) > 1


@pytest.mark.parametrize("value", [0.0, 2.5, -3.0])
def test_a_constant_divides_nothing_by_zero(value):
    seen = [Seen.of(torch.full((64,), value), where="layer", call=k) for k in range(2)]
    for exact in (True, False):
        ranges = ranges_of(seen, 8, per_call=True, exact=exact)
        assert bool((ranges.scale >= SMALLEST_SCALE).all())
        assert float(ranges(torch.tensor([value]), 1)) == pytest.approx(value, abs=0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_layer_call_and_count(bad):
    values = torch.zeros(10)
    values[3:5] = bad
    with pytest.raises(RangeError, match=r"2 of 10 that enter middle\.conv1 at call 7 are not"):
        Seen.of(values, where="middle.conv1", call=7)


def test_looks_at_one_call_are_joined():
    parts = [Seen.of(part, where="layer", call=0) for part in VALUES[1].split(1000)]
    joined = Seen.joined(parts)
    assert (joined.low, joined.high) == (float(VALUES[1].min()), float(VALUES[1].max()))
    assert float(joined.counts.sum()) == len(VALUES[1])
