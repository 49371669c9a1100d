import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.metrics.resize import bicubic_aa, bilinear_halfpixel, bilinear_tf1, to_rgb


def test_tf1_bilinear_on_a_ramp_by_hand():
    """4 -> 8: output i reads source i / 2; the last one is clamped at the border."""
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    expected = torch.tensor([0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    out = bilinear_tf1(ramp, 8)
    assert torch.equal(out, expected.expand(1, 1, 8, 8))
    assert torch.equal(bilinear_tf1(ramp.mT, 8), expected[:, None].expand(1, 1, 8, 8))


def test_tf1_bilinear_shrinks_by_reading_single_positions():
    """5 -> 2: positions 0 and 2.5, no antialias."""
    x = torch.tensor([0.0, 1, 4, 9, 16]).expand(1, 1, 5, 5)
    assert torch.equal(bilinear_tf1(x, 2)[0, 0, 0], torch.tensor([0.0, 6.5]))


def test_tf1_bilinear_keeps_an_image_of_the_right_size():
    x = torch.arange(48.0).reshape(1, 3, 4, 4)
    assert torch.equal(bilinear_tf1(x, 4), x)


def test_halfpixel_bilinear_on_a_ramp_by_hand():
    """4 -> 8: output i reads source i / 2 - 1/4; both ends are clamped at the border."""
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    assert torch.equal(bilinear_halfpixel(ramp, 8), expected.expand(1, 1, 8, 8))


@pytest.mark.parametrize("size", [16, 5])
def test_bicubic_is_pillows_kernel(size):
    pixels = np.random.default_rng(0).uniform(0, 255, (8, 8)).astype(np.float32)
    expected = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    out = bicubic_aa(torch.from_numpy(pixels)[None, None], size)[0, 0].numpy()
    np.testing.assert_allclose(out, expected, atol=1e-3)  # float32 sums of numbers up to 255 in another order


def test_grey_is_repeated_and_colour_kept():
    grey = torch.randint(0, 256, (2, 1, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(to_rgb(grey), grey.repeat(1, 3, 1, 1))
    colour = grey.repeat(1, 3, 1, 1)
    assert to_rgb(colour) is colour
