import numpy as np
import pytest

from fewstep.checks import ConfigError, DataError
from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import (
    extrapolate,
    half_samples,
    normal_interval,
    paired_difference,
    paired_ratio,
    spread,
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


@pytest.mark.parametrize("n", [25, 200])
def test_replicates_are_the_distances_of_both_halves(reference, n):
    """n = 25 goes by inner products of images, n = 200 by those of features."""
    import torch

    from fewstep.metrics.uncertainty import _SEED
    from fewstep.rng import generator

    features = draw(n, 1, 1.1)
    rows = torch.randperm(n, generator=generator(_SEED, "halves", n)).numpy()
    found = half_samples(features, reference, resamples=10)
    assert found.shape == (10,)
    assert found[0] == pytest.approx(fd(features[rows[: n // 2]], reference), rel=1e-8)
    assert found[1] == pytest.approx(fd(features[rows[n // 2 : n // 2 * 2]], reference), rel=1e-8)


@pytest.mark.parametrize("c, high", [(0.0, 1.45), (0.1, 1.3), (1.0, 1.12)])
def test_spread_is_exact_for_a_squared_mean(c, high):
    """|c + m|^2, m the mean of N normal vectors: its variance is 4 |c|^2 / N + 2 D / N^2.

    The mean of 100 estimates of the variance from 50 cuts each has a relative error of about 3 %. Near c = 0 the lower
    bound cuts off half of their chance, which lifts the mean by up to the chance of one, 0.45.
    """
    n, dim, rng = 64, 64, np.random.default_rng(7)
    found = []
    for _ in range(100):
        x = c + rng.standard_normal((n, dim))
        cuts = [rng.permutation(x).reshape(2, n // 2, dim).mean(1) for _ in range(50)]
        found.append(spread(np.square(cuts).sum(-1).ravel()) ** 2)
    variance = 4 * dim * c**2 / n + 2 * dim / n**2
    assert 0.9 < np.mean(found) / variance < high


@pytest.mark.parametrize("gain, high", [(1.5, 1.12), (1.1, 1.12), (1.0, 1.35)])
def test_spread_of_halves_is_the_spread_of_the_distance(reference, gain, high):
    """200 independent sets give the true standard deviation, to 5 %, and so do the halves of 16 of them.

    At the reference itself the lower bound errs on the safe side, as so few dimensions vary here; the spread of random
    halves alone would be too wide by the root of three.
    """
    sets = [draw(400, 100 + seed, gain) for seed in range(200)]
    truth = np.std([fd(features, reference) for features in sets], ddof=1)
    halves = np.mean([spread(half_samples(features, reference)) for features in sets[:16]])
    assert 0.88 < halves / truth < high


@pytest.mark.parametrize("resamples", [2, 11])
def test_cuts_have_two_halves(reference, resamples):
    with pytest.raises(ConfigError, match="even"):
        half_samples(draw(20, 0), reference, resamples=resamples)


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
    independent = normal_interval(0, np.hypot(spread(one), spread(other)))
    assert width < 0.2 * (independent.high - independent.low)


def test_the_bounds_of_a_ratio_are_where_its_difference_ends_at_zero():
    rng = np.random.default_rng(0)
    a, b = 3 + 0.1 * rng.standard_normal(100), 4 + 0.2 * rng.standard_normal(100)
    low, high = paired_ratio(3.0, 4.0, a, b)
    assert low < 0.75 < high
    for bound, end in ((low, 0), (high, 1)):
        assert paired_difference(3.0, bound * 4.0, a, bound * b).interval[end] == pytest.approx(0, abs=1e-6)
    assert paired_ratio(6.0, 4.0, 2 * a, b) == pytest.approx((2 * low, 2 * high), rel=1e-6)
    exact = np.full(100, 4.0)  # a known divisor leaves the interval of A, divided
    expected = np.array(paired_difference(3.0, 0.0, a, 0 * exact).interval) / 4
    assert paired_ratio(3.0, 4.0, a, exact) == pytest.approx(tuple(expected), rel=1e-6)
    assert paired_ratio(3.0, 4.0, a, a + 1, level=0.99)[1] > paired_ratio(3.0, 4.0, a, a + 1)[1]


def test_a_divisor_that_may_be_zero_bounds_no_ratio():
    noise = np.random.default_rng(0).standard_normal(100)
    assert paired_ratio(3.0, 0.1, 3 + 0.01 * noise[::-1], 0.1 + noise)[1] == np.inf


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


def test_extrapolation_of_scaled_gaussians_is_their_distance():
    """N(0, c^2) against N(0, 1) in D features: D (c - 1)^2 at infinitely many images on either side."""
    rng = np.random.default_rng(9)
    many = Statistics.from_features(rng.standard_normal((100_000, 16)))
    found = [extrapolate(1.5 * rng.standard_normal((800, 16)), many) for _ in range(20)]
    values = [fit.value for fit in found]
    # three standard errors, and the bias of the reference, D / n_reference to first order
    assert abs(np.mean(values) - 16 * 0.25) < 3 * np.std(values, ddof=1) / 20**0.5 + 1e-3


def test_intercept_varies_no_more_than_the_half_samples_say():
    """So that their interval is that of the intercept, too; 20 %: the spread of 60 values, known to 9 %, twice."""
    rng = np.random.default_rng(10)
    reference = Statistics.from_features(rng.standard_normal((5000, 16)))
    sets = [1.5 * rng.standard_normal((400, 16)) for _ in range(60)]
    spread = np.std([extrapolate(features, reference).value for features in sets], ddof=1)
    said = np.mean([half_samples(features, reference).std(ddof=1) for features in sets[:10]])
    assert spread < 1.2 * said


def test_extrapolation_needs_more_images_than_features_in_each_part():
    reference = Statistics.from_features(draw(100, 0))
    dim = reference.dim
    with pytest.raises(DataError, match=f"more than {4 * dim} images"):
        extrapolate(draw(4 * dim, 1), reference)


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
