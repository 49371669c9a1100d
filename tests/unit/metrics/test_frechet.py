"""Closed forms: commuting covariances give sum((sqrt(a) - sqrt(b))^2), a shift adds its squared length."""

import warnings

import numpy as np
import pytest

from fewstep.checks import DataError
from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Statistics


def gaussian(mu, cov):
    return Statistics(None, np.asarray(mu, float), np.asarray(cov, float))


def features(n, d, seed, *, gain=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((d, d)) * np.arange(1, d + 1) ** -0.5
    return gain * rng.standard_normal((n, d)) @ mixing + shift


def nuclear(x, y):
    """The distance straight from its definition as a nuclear norm."""
    a, b = (x - x.mean(0)) / np.sqrt(len(x) - 1), (y - y.mean(0)) / np.sqrt(len(y) - 1)
    shift = x.mean(0) - y.mean(0)
    root = np.linalg.norm(a @ b.T, "nuc")
    return shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * root


def test_commuting_covariances():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((9, 9)))[0]
    a, b, shift = rng.uniform(0.1, 3, 9), rng.uniform(0.1, 3, 9), rng.standard_normal(9)
    found = frechet(gaussian(shift, basis * a @ basis.T), gaussian(np.zeros(9), basis * b @ basis.T))
    assert found.mean_term == pytest.approx(shift @ shift, rel=1e-12)
    assert found.trace_term == pytest.approx(np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-9)
    assert found.value == found.mean_term + found.trace_term


def test_one_dimension():
    """(m1 - m2)^2 + (s1 - s2)^2."""
    assert frechet(gaussian([3], [[4]]), gaussian([1], [[25]])).value == pytest.approx(4 + 9, rel=1e-12)


def test_a_shift_adds_its_squared_length():
    x, y = features(500, 16, 0), features(400, 16, 1)
    moved = frechet(Statistics.from_features(x + 0.25), Statistics.from_features(y)).value
    shift = x.mean(0) - y.mean(0)
    expected = frechet(Statistics.from_features(x), Statistics.from_features(y)).value
    assert moved - expected == pytest.approx(np.square(shift + 0.25).sum() - shift @ shift, rel=1e-9)


@pytest.mark.parametrize("n", [10, 300])
def test_equal_sets_are_at_zero(n):
    x = Statistics.from_features(features(n, 24, 0))
    assert abs(frechet(x, Statistics.from_features(features(n, 24, 0))).value) <= 1e-8 * np.trace(x.cov)


@pytest.mark.parametrize("method", ["factor-a", "factor-b"])
def test_methods_agree_at_full_rank(method):
    """d = 128, 1e-6 relative as the specification of any two implementations; observed 1e-13."""
    x, y = features(600, 128, 0, gain=1.1), features(700, 128, 1)
    a, b = Statistics.from_features(x), Statistics.from_features(y)
    found = frechet(Statistics(600, a.mu, a.cov), Statistics(700, b.mu, b.cov), method=method)
    assert found.value == pytest.approx(nuclear(x, y), rel=1e-10)
    assert found.rank == 128 and found.clipped == 0


@pytest.mark.parametrize("sizes", [(40, 60), (40, 500), (500, 40), (60, 60)])
@pytest.mark.parametrize("method", ["auto", "cross", "small-a", "small-b", "factor-a", "factor-b"])
def test_methods_agree_with_fewer_images_than_features(sizes, method):
    n, m = sizes
    if (method, n) == ("small-a", 500) or (method, m) == ("small-b", 500):
        pytest.skip("that side is not small")
    x, y = features(n, 128, 0, gain=1.1), features(m, 128, 1)
    found = frechet(Statistics.from_features(x), Statistics.from_features(y), method=method)
    # Roots of rounding errors: 1e-8 of the largest root each, over the few eigenvalues that are exactly zero.
    assert found.value == pytest.approx(nuclear(x, y), rel=1e-7)
    assert found.rank == min(n, m) - 1


def test_automatic_choices():
    small, large = features(40, 64, 0), features(200, 64, 1)
    a, b = Statistics.from_features(small), Statistics.from_features(large)
    assert frechet(a, b).method == "cross"
    known = Statistics(200, b.mu, b.cov)
    assert frechet(a, known).method == "small-a"
    assert frechet(known, a).method == "small-b"
    assert frechet(Statistics(40, a.mu, a.cov), known).method == "factor-b"
    known.factor  # noqa: B018 - fills the cache
    assert frechet(known, Statistics(40, a.mu, a.cov)).method == "factor-a"


def test_float32_is_promoted():
    x, y = features(300, 32, 0).astype(np.float32), features(300, 32, 1).astype(np.float32)
    low = frechet(Statistics.from_features(x), Statistics.from_features(y)).value
    high = frechet(Statistics.from_features(x.astype(float)), Statistics.from_features(y.astype(float))).value
    assert low == high


def test_foreign_statistics_of_low_rank_need_no_count():
    x, y = features(20, 32, 0), features(400, 32, 1)
    a, b = Statistics.from_features(x), Statistics.from_features(y)
    found = frechet(gaussian(a.mu, a.cov), gaussian(b.mu, b.cov))
    # Without a count the 13 zero eigenvalues are kept as roots of rounding errors.
    assert found.value == pytest.approx(nuclear(x, y), rel=1e-5)


def test_more_images_come_nearer():
    reference = Statistics.from_features(features(2000, 32, 0))
    values = [
        frechet(Statistics.from_features(features(n, 32, 1)), reference).value for n in (50, 100, 400, 1600)
    ]
    assert values == sorted(values, reverse=True)


def test_nan_other_features_and_unknown_methods_are_refused():
    good = gaussian([0, 0], np.eye(2))
    with pytest.raises(DataError, match="NaN"):
        frechet(gaussian([0, np.nan], np.eye(2)), good)
    with pytest.raises(DataError, match="3 and 2"):
        frechet(gaussian([0, 0, 0], np.eye(3)), good)
    with pytest.raises(ValueError, match="sqrtm"):
        frechet(good, good, method="sqrtm")


def test_pytorch_fid_agrees_at_full_rank(torchvision_operators):
    score = pytest.importorskip("pytorch_fid.fid_score", exc_type=ImportError)
    x, y = features(400, 48, 0, gain=1.2), features(300, 48, 1)
    a, b = Statistics.from_features(x), Statistics.from_features(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it passes disp= to SciPy's sqrtm
        expected = score.calculate_frechet_distance(a.mu, a.cov, b.mu, b.cov)
    assert frechet(a, b).value == pytest.approx(expected, rel=1e-6)


def test_torch_fidelity_agrees_at_full_rank(torchvision_operators):
    metric = pytest.importorskip("torch_fidelity.metric_fid", exc_type=ImportError)
    x, y = features(400, 48, 0, gain=1.2), features(300, 48, 1)
    a, b = Statistics.from_features(x), Statistics.from_features(y)
    sides = ({"mu": side.mu, "sigma": side.cov} for side in (a, b))
    expected = metric.fid_statistics_to_metric(*sides, verbose=False)
    assert frechet(a, b).value == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)


def test_scipys_matrix_root_agrees_at_full_rank():
    linalg = pytest.importorskip("scipy.linalg")
    x, y = features(400, 48, 0, gain=1.2), features(300, 48, 1)
    a, b = Statistics.from_features(x), Statistics.from_features(y)
    root = np.trace(linalg.sqrtm(a.cov @ b.cov)).real
    shift = a.mu - b.mu
    expected = shift @ shift + np.trace(a.cov) + np.trace(b.cov) - 2 * root
    assert frechet(a, b).value == pytest.approx(expected, rel=1e-9)
