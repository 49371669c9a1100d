import numpy as np
import pytest

from fewstep.checks import DataError
from fewstep.metrics.kid import BLOCKS, kid, mmd2


def test_mmd_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    within_x = np.mean([kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert mmd2(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


def test_equal_distributions_are_at_zero_within_the_standard_error():
    """Unbiased: over 30 pairs of sets the mean is within three standard errors of zero."""
    rng = np.random.default_rng(1)
    values = [kid(rng.standard_normal((200, 8)), rng.standard_normal((300, 8))).value for _ in range(30)]
    assert abs(np.mean(values)) < 3 * np.std(values, ddof=1) / np.sqrt(30)


def test_standard_error_is_that_of_the_value():
    rng = np.random.default_rng(2)
    found = [kid(rng.standard_normal((400, 4)) * 1.1, rng.standard_normal((400, 4))) for _ in range(60)]
    truth = np.std([k.value for k in found], ddof=1)
    assert np.mean([k.standard_error for k in found]) == pytest.approx(truth, rel=0.3)


def test_another_distribution_is_far():
    rng = np.random.default_rng(3)
    found = kid(rng.standard_normal((300, 8)) + 0.5, rng.standard_normal((300, 8)))
    assert found.value > 10 * found.standard_error


def test_scale_divides_the_features():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((100, 8)) + 1, rng.standard_normal((100, 8))
    assert kid(3 * x, 3 * y, scale=3).value == pytest.approx(kid(x, y).value, rel=1e-9)


def test_small_sets_use_all_pairs():
    """One group: the value does not depend on the shuffle or the blocks."""
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((57, 3)) + 1, rng.standard_normal((83, 3))
    assert kid(x, y).value == pytest.approx(mmd2(x, y), rel=1e-10)


def test_large_sets_are_averaged_over_groups():
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((250, 2)) + 1, rng.standard_normal((500, 2))
    whole, grouped = kid(x, y), kid(x, y, largest=50)
    assert grouped.value == pytest.approx(whole.value, abs=4 * grouped.standard_error)
    assert grouped.standard_error == pytest.approx(whole.standard_error, rel=0.8)


def test_a_large_set_against_a_small_one():
    rng = np.random.default_rng(7)
    assert np.isfinite(kid(rng.standard_normal((900, 2)), rng.standard_normal((45, 2)), largest=100).value)


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="at least 20"):
        kid(np.zeros((19, 2)), np.zeros((100, 2)))


@pytest.mark.parametrize("largest", [150, 2000])
def test_spread_of_the_replicates_is_the_standard_error(largest):
    rng = np.random.default_rng(8)
    found = kid(rng.standard_normal((300, 4)), rng.standard_normal((400, 4)), largest=largest)
    assert len(found.replicates) == BLOCKS * -(-300 // largest)
    assert np.std(found.replicates, ddof=1) == pytest.approx(found.standard_error, rel=1e-12)
    assert found.replicates.mean() == pytest.approx(found.value)


@pytest.mark.parametrize("largest", [150, 2000])
def test_paired_replicates_tell_the_error_of_a_difference(largest):
    """Equal noise with another gain. 60 differences: their spread is known to 9 %, the jackknife's is biased up."""
    rng = np.random.default_rng(9)
    differences, errors, alone = [], [], []
    for _ in range(60):
        z, real = rng.standard_normal((300, 8)), rng.standard_normal((300, 8))
        a, b = kid(1.1 * z, real, largest=largest), kid(1.2 * z, real, largest=largest)
        differences.append(a.value - b.value)
        errors.append(np.std(a.replicates - b.replicates, ddof=1))
        alone.append(np.hypot(a.standard_error, b.standard_error))
    truth = np.std(differences, ddof=1)
    assert 0.75 * truth < np.mean(errors) < 1.5 * truth
    assert np.mean(errors) < 0.5 * np.mean(alone), "pairs are surer than two sets"


def test_shifted_gaussians_by_their_moments():
    """N(m, 1) against N(0, 1) with q = |m|^2: s = x.y / D has E s = q/D, E s^2 = (D + 2q + q^2)/D^2 and
    E s^3 = (q^3 + 6 q^2 + 3 q (D + 2))/D^3 within the shifted, E s^2 = 1/D within the other, and (D + q)/D^2
    between them; odd moments vanish there. The mean of 40 unbiased estimates is within three standard errors."""
    d, shift = 6, 0.4
    q = d * shift**2
    within = 1 + 3 * q / d + 3 * (d + 2 * q + q**2) / d**2 + (q**3 + 6 * q**2 + 3 * q * (d + 2)) / d**3
    expected = within + (1 + 3 / d) - 2 * (1 + 3 * (d + q) / d**2)
    rng = np.random.default_rng(10)
    values = [
        kid(rng.standard_normal((400, d)) + shift, rng.standard_normal((400, d))).value for _ in range(40)
    ]
    assert abs(np.mean(values) - expected) < 3 * np.std(values, ddof=1) / 40**0.5
    assert expected > 10 * np.std(values, ddof=1) / 40**0.5, "the test would see another formula"
