import numpy as np
import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.data.masks import KINDS, LARGEST, SHAPES, as_mask, draw_mask, perlin_masks
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


def test_shapes_are_chosen_among_those_that_are_named():
    for shape in SHAPES:
        one = draw_mask(16, 16, rng=generator(3), shapes=(shape,))
        assert torch.equal(one, draw_mask(16, 16, rng=generator(3), shapes=(shape,)))
        assert 0 < float(one.float().mean()) <= LARGEST
    with pytest.raises(ConfigError, match="among strokes, boxes, perlin; got blobs"):
        draw_mask(16, 16, rng=generator(3), shapes=("blobs",))


# Perlin noise


def test_holes_of_perlin_noise_take_any_share_with_equal_chance():
    masks = perlin_masks(2000, 8, 8, rng=generator(0))
    shares, _ = masks.float().mean((1, 2)).sort()
    n = len(shares)
    # Kolmogorov-Smirnov against the 65 shares that there are: their steps are within 1 / 65 of a line
    steps = torch.arange(n + 1) / n
    distance = float(torch.maximum((steps[1:] - shares).abs(), (steps[:-1] - shares).abs()).max())
    assert distance < 1.63 / n**0.5 + 1 / 65, "p > 0.01"
    assert abs(float(shares.mean()) - 0.5) < 4 * 0.293 / n**0.5
    assert 0.0 in shares and 1.0 in shares, "none and all are among them"


def test_holes_grow_with_the_period_and_are_those_of_the_generator():
    def edges(period):
        masks = perlin_masks(100, 32, 32, rng=generator(1), period=period, share=0.5)
        assert bool((masks.flatten(1).sum(1) == 512).all())
        return float((masks[:, :, 1:] != masks[:, :, :-1]).float().mean())

    found = [edges(period) for period in (1, 2, 4, 8, 16, 32)]
    assert found == sorted(found, reverse=True) and found[-1] < 0.3 * found[0]
    once, again, other = (perlin_masks(3, 8, 12, rng=generator(seed)) for seed in (2, 2, 3))
    assert torch.equal(once, again) and not torch.equal(once, other) and once.shape == (3, 8, 12)


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"period": 0.5}, "must be 1 pixel or more; got 0.5"),
        ({"share": 1.5}, r"must lie in \[0, 1\]; got 1.5"),
    ],
)
def test_noise_that_cannot_be_is_refused(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        perlin_masks(1, 8, 8, rng=generator(0), **values)


# Masks to measure with


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_have_a_hole_in_any_image(kind):
    for height, width in ((8, 8), (32, 48), (5, 7)):
        mask = KINDS[kind](height, width, generator(4))
        assert mask.shape == (height, width) and mask.dtype == torch.bool
        assert 0 < float(mask.float().mean()) <= LARGEST


def test_pictures_of_masks_are_black_and_white():
    hole = np.array([[0, 255], [255, 0]], np.uint8)
    assert as_mask(hole, name="m").tolist() == [[False, True], [True, False]]
    assert torch.equal(as_mask(np.stack([hole] * 3, axis=2), name="m"), as_mask(hole, name="m"))
    with pytest.raises(DataError, match="m must be one mask, but its 3 channels differ"):
        as_mask(np.stack([hole, hole, 255 - hole], axis=2), name="m")
    with pytest.raises(
        DataError, match="0 for what is known and 255 for the hole; got 2 values from 0 to 128"
    ):
        as_mask(hole // 2 + (hole > 0), name="m")
