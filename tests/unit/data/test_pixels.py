import pytest
import torch

from fewstep.data.pixels import to_u8, to_unit


def test_ends_and_middle():
    assert to_u8(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 128, 255]
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_overshoot_saturates_and_nan_is_zero():
    x0 = torch.tensor([-7.0, 7.0, float("inf"), -float("inf"), float("nan")])
    assert to_u8(x0).tolist() == [0, 255, 255, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_precisions_quantise_like_float32(dtype):
    x0 = torch.linspace(-1, 1, 97).to(dtype)
    assert torch.equal(to_u8(x0), to_u8(x0.float()))


def test_wrong_dtypes_are_refused():
    with pytest.raises(TypeError, match="must be uint8"):
        to_unit(torch.zeros(2))
    with pytest.raises(TypeError, match="floating point"):
        to_u8(torch.zeros(2, dtype=torch.uint8))
