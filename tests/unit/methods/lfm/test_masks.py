import pytest
import torch

from fewstep.checks import ConfigError
from fewstep.methods.lfm.masks import LARGEST, draw_mask
from fewstep.rng import generator


@pytest.mark.parametrize("side", [8, 32, 64])
def test_masks_have_a_hole_and_something_around_it(side):
    masks = torch.stack([draw_mask(side, side, rng=generator(seed)) for seed in range(60)])
    shares = masks.float().mean((1, 2))
    assert masks.dtype == torch.bool and masks.shape == (60, side, side)
    assert float(shares.min()) > 0 and float(shares.max()) <= LARGEST
    assert 0.1 < float(shares.mean()) < 0.45
    quarters = masks.float().reshape(60, 2, side // 2, 2, side // 2).mean((0, 2, 4))
    assert float(quarters.min()) > 0.4 * float(quarters.max()), "holes are everywhere"


def test_masks_follow_the_generator():
    one, same, other = (draw_mask(16, 24, rng=generator(seed)) for seed in (1, 1, 2))
    assert one.shape == (16, 24) and torch.equal(one, same) and not torch.equal(one, other)


def test_small_images_are_refused():
    with pytest.raises(ConfigError, match="sides of 4 pixels or more; got 3 x 8"):
        draw_mask(3, 8, rng=generator(0))
