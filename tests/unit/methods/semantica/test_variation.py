import numpy as np
import pytest

from fewstep.checks import DataError
from fewstep.methods.semantica.variation import (
    class_match,
    nearest_class,
    shots,
    spread_of_class,
    spread_within,
    total_variation,
)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_spread_is_the_mean_distance_of_two_variations():
    features = np.zeros((2, 3, 2))
    features[0, :, 0] = [0, 3, 6]
    assert spread_within(features).tolist() == [pytest.approx(4), 0]  # distances 3, 3 and 6
    assert spread_of_class(features[0]) == pytest.approx(4)
    # two points of a normal distribution in D dimensions are sqrt(2 D) apart, less 1 / (4 D) of it
    assert spread_of_class(drawn(400, 50)) == pytest.approx(10 * (1 - 1 / 200), rel=0.01)
    with pytest.raises(DataError, match="two or more to differ; got 1"):
        spread_within(features[:, :1])


def test_class_match_is_of_each_condition():
    predicted = np.array([[1, 1, 2], [0, 0, 0]])
    assert class_match(predicted, np.array([1, 3])).tolist() == [pytest.approx(2 / 3), 0]


def test_total_variation_counts_every_class():
    predicted = np.array([0] * 7 + [1] * 3)
    assert total_variation(predicted, {0: 0.7, 1: 0.3}) == pytest.approx(0)
    assert total_variation(predicted, {0: 0.3, 1: 0.7}) == pytest.approx(0.4)
    assert total_variation(np.full(10, 5), {0: 0.7, 1: 0.3}) == pytest.approx(1)


def test_shots_of_the_same_distribution_and_of_a_constant():
    real = drawn(300, 8)
    same, far = shots(drawn(300, 8, seed=1), real), shots(drawn(300, 8, seed=1) + 20, real)
    assert same.fd < 1 < far.fd and same.precision > 0.8 and same.recall > 0.8
    assert far.precision == far.recall == 0
    narrow = shots(0.01 * drawn(300, 8, seed=2), real)
    assert narrow.precision > 0.9 and narrow.recall < 0.1, "copies of one image are real, and cover nothing"


def test_nearest_mean_judges():
    means = np.array([[0.0, 0.0], [4.0, 0.0]])
    assert nearest_class(np.array([[1.0, 3.0], [3.0, 3.0]]), means).tolist() == [0, 1]
