import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.data.pixels import to_u8, to_unit

finite = st.floats(-3, 3, width=32)


def test_every_byte_survives_the_round_trip():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_u8(to_unit(every)), every)


@given(st.lists(finite, min_size=1, max_size=20))
def test_quantiser_is_the_formula(values):
    x0 = torch.tensor(values, dtype=torch.float64)
    expected = [min(max(math.floor(127.5 * v + 128), 0), 255) for v in x0.tolist()]
    assert to_u8(x0).tolist() == expected


@given(finite, finite)
def test_quantiser_is_monotone(a, b):
    low, high = to_u8(torch.tensor([min(a, b), max(a, b)])).tolist()
    assert low <= high


@given(st.floats(-1, 1, width=32))
def test_quantising_moves_by_at_most_half_a_level(value):
    x0 = torch.tensor([value])
    error = (to_unit(to_u8(x0)) - x0).abs().item()
    assert error <= 0.5 / 127.5 + 1e-6  # half a level, plus the rounding of float32


@given(st.lists(st.integers(0, 255), min_size=1, max_size=30))
def test_quantising_twice_changes_nothing(levels):
    images_u8 = torch.tensor(levels, dtype=torch.uint8)
    once = to_u8(to_unit(images_u8))
    assert torch.equal(to_u8(to_unit(once)), once)
