"""Differentiable augmentation: what it does to pixels, and that gradients flow through it."""

import pytest
import torch

from fewstep.checks import ConfigError
from fewstep.rng import generator
from fewstep.train.augment import COLUMNS, KINDS, Augmentation, draw


@pytest.fixture
def images():
    return torch.rand(64, 3, 8, 8, generator=generator(0)) * 2 - 1


@pytest.mark.parametrize("augmentation", [Augmentation(()), Augmentation(KINDS, 0.0, 0.0)])
def test_without_a_kind_or_a_probability_it_is_the_identity(images, augmentation):
    assert augmentation.is_identity
    assert augmentation(images, draw(64, rng=generator(1))) is images


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_changes_about_as_many_images_as_it_should(images, kind):
    augmented = Augmentation((kind,))(images, draw(64, rng=generator(1)))
    changed = (augmented != images).flatten(1).any(1).float().mean()
    expected = (
        0.3 if kind == "cutout" else 0.8
    )  # a shift by (0, 0) leaves a ninth of the shifted as they were
    assert abs(changed - expected) < 0.2  # three standard deviations of 64 draws


def test_rows_are_augmented_apart(images):
    drawn = draw(64, rng=generator(1))
    whole = Augmentation()(images, drawn)
    torch.testing.assert_close(Augmentation()(images[3:7], drawn[3:7]), whole[3:7])


def test_shifts_are_whole_pixels_up_to_an_eighth():
    image = torch.zeros(200, 1, 16, 16)
    image[:, 0, 8, 8] = 1.0
    shifted = Augmentation(("translation",), 1.0)(image, draw(200, rng=generator(2)))
    at = shifted.flatten(1).argmax(1)
    assert (shifted.flatten(1).sum(1) == 1).all()
    assert set((at // 16 - 8).tolist()) == set((at % 16 - 8).tolist()) == {-2, -1, 0, 1, 2}


def test_colour_keeps_the_order_of_pixels_and_moves_the_mean(images):
    drawn = torch.full((64, COLUMNS), 0.5)
    drawn[:, 0], drawn[:, 1] = 0.0, 0.75  # brightness +0.25; saturation and contrast as they are
    torch.testing.assert_close(Augmentation(("colour",), 1.0)(images, drawn), images + 0.25)


def test_a_square_of_half_the_side_is_cut_out():
    drawn = torch.zeros(1, COLUMNS)
    drawn[:, 8:] = 0.5
    cut = Augmentation(("cutout",), cutout=1.0)(torch.ones(1, 1, 16, 16), drawn)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[5:12, 5:12] = True
    assert torch.equal(cut[0, 0] == 0, inside)


def test_gradients_reach_what_was_augmented(images):
    images.requires_grad_(True)
    Augmentation(KINDS, 1.0, 1.0)(images, draw(64, rng=generator(3))).sum().backward()
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("values", [{"kinds": ("rotation",)}, {"probability": 1.5}, {"cutout": -0.1}])
def test_unknown_kinds_and_wrong_probabilities_are_refused(values):
    with pytest.raises(ConfigError, match="must"):
        Augmentation(**values)
