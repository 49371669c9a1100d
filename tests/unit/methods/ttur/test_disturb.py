"""Disturbances: what they change, and that their levels rise."""

import numpy as np
import pytest

from fewstep.methods.ttur.disturb import DISTURBANCES, disturbed


@pytest.fixture(params=[1, 3])
def images(request: pytest.FixtureRequest) -> np.ndarray:
    smooth = np.linspace(0, 255, 16)
    picture = np.add.outer(smooth, smooth)[None, :, :, None] / 2
    shifted = np.concatenate([np.roll(picture, k, axis=2) for k in range(12)])
    return np.repeat(shifted, request.param, axis=3).astype(np.uint8)


@pytest.mark.parametrize("kind", DISTURBANCES)
def test_images_move_further_away_with_each_level(kind: str, images: np.ndarray) -> None:
    levels = DISTURBANCES[kind][1]
    moved = [disturbed(images, kind, level) for level in levels]
    assert all(one.dtype == np.uint8 and one.shape == images.shape for one in moved)
    errors = [float(np.square(one.astype(float) - images).mean()) for one in moved]
    assert 0 < errors[0] < errors[1] < errors[2]
    np.testing.assert_array_equal(disturbed(images, kind, levels[0]), moved[0])


@pytest.mark.parametrize("kind", ["noise", "rectangles", "salt-and-pepper"])
def test_another_seed_disturbs_elsewhere(kind: str, images: np.ndarray) -> None:
    assert not np.array_equal(disturbed(images, kind, 0.25), disturbed(images, kind, 0.25, seed=1))


def test_shares_are_what_they_say(images: np.ndarray) -> None:
    flat = np.full((20, 32, 32, 1), 128, np.uint8)
    assert (disturbed(flat, "salt-and-pepper", 0.2) != 128).mean() == pytest.approx(0.2, abs=0.01)
    assert disturbed(flat, "noise", 0.5).mean() == pytest.approx(128, abs=1)
    black = (disturbed(flat, "rectangles", 0.25) == 0).mean()
    assert 0.25**2 < black <= 5 * 0.25**2
    np.testing.assert_array_equal(disturbed(flat, "swirl", 4.0), flat)
    np.testing.assert_array_equal(disturbed(flat, "blur", 0.2), flat)
