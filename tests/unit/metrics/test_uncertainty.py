import numpy as np
import pytest

from fewstep.checks import DataError
from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import (
    extrapolate,
    half_samples,
    normal_interval,
    paired_difference,
    wilson_interval,
)

D = 16
MIXING = np.random.default_rng(7).standard_normal((D, D)) * np.arange(1, D + 1) ** -0.5


def draw(n, seed, gain=1.0):
    return gain * np.random.default_rng(seed).standard_normal((n, D)) @ MIXING


@pytest.fixture(scope="module")
def reference():
    return Statistics.from_features(draw(4000, 0))


def fd(features, reference):
    return frechet(Statistics.from_features(features), reference).value


@pytest.mark.parametrize("n", [24, 200])
def test_a_replicate_is_the_distance_of_a_half(reference, n):
    """n = 24 goes by inner products of images, n = 200 by those of features."""
    import torch

    from fewstep.metrics.uncertainty import _SEED
    from fewstep.rng import generator

    features = draw(n, 1, 1.1)
    rows = torch.randperm(n, generator=generator(_SEED, "halves", n))[: n // 2].numpy()
    found = half_samples(features, reference, resamples=10)
    assert found[0] == pytest.approx(fd(features[rows], reference), rel=1e-8)


@pytest.mark.parametrize("gain, low, high", [(1.5, 0.88, 1.12), (1.0, 1.0, 2.0)])
def test_spread_of_halves_is_the_spread_of_the_distance(reference, gain, low, high):
    """200 independent sets give the true standard deviation, to 5 %.

    Far from the reference the halves of a few of them agree with it; at the reference itself, where a
    distance is all bias, they are on the safe side.
    """
    sets = [draw(400, 100 + seed, gain) for seed in range(200)]
    truth = np.std([fd(features, reference) for features in sets], ddof=1)
    halves = np.mean([half_samples(features, reference).std(ddof=1) for features in sets[:8]])
    assert low < halves / truth < high


def test_bootstrap_with_replacement_would_exclude_the_estimate(reference):
    """Why there is none: duplicates raise the distance itself, so that its interval misses the estimate."""
    features, rng = draw(150, 3), np.random.default_rng(0)
    estimate = fd(features, reference)
    replicates = [fd(features[rng.integers(0, 150, 150)], reference) for _ in range(60)]
    assert np.quantile(replicates, 0.025) > estimate
    assert np.mean(replicates) > 1.5 * estimate


def test_paired_difference_is_surer_than_its_parts(reference):
    """The same noise with another gain: the common part cancels."""
    a, b = draw(300, 5, 1.1), draw(300, 5, 1.12)
    one, other = half_samples(a, reference), half_samples(b, reference)
    found = paired_difference(fd(a, reference), fd(b, reference), one, other)
    assert found.value < 0 and found.interval.high < 0
    width = found.interval.high - found.interval.low
    independent = normal_interval(0, np.hypot(one.std(ddof=1), other.std(ddof=1)))
    assert width < 0.2 * (independent.high - independent.low)


def test_equal_seeds_give_equal_replicates(reference):
    features = draw(100, 6)
    assert np.array_equal(half_samples(features, reference), half_samples(features, reference))
    assert not np.array_equal(half_samples(features, reference), half_samples(features, reference, seed=1))


def test_extrapolation_removes_the_bias_of_few_images():
    rng = np.random.default_rng(8)
    features, many = (
        rng.standard_normal((1500, 64)),
        Statistics.from_features(rng.standard_normal((20_000, 64))),
    )
    found = extrapolate(features, many)
    at_all = fd(features, many)
    assert found.r2 > 0.99
    assert found.slope > 0 and found.value < at_all
    # Equal distributions: what is left is the bias of the finite reference, slope / n_reference.
    assert abs(found.value - found.slope / 20_000) < 0.2 * at_all


def test_normal_interval_by_hand():
    assert normal_interval(1, 2) == pytest.approx((1 - 3.919928, 1 + 3.919928))


def test_wilson_interval_by_hand():
    """5 of 10: the published interval is 0.2366 to 0.7634."""
    assert wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(1, 10).high == 1 and wilson_interval(0, 10).low == pytest.approx(0)


def test_too_few_images_and_unpaired_replicates_are_refused(reference):
    with pytest.raises(DataError, match="at least 4"):
        half_samples(draw(3, 0), reference)
    with pytest.raises(DataError, match="paired"):
        paired_difference(1, 2, np.zeros(3), np.zeros(4))
