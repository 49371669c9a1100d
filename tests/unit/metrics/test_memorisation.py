import numpy as np
import pytest

from fewstep.checks import DataError
from fewstep.metrics import memorisation as module
from fewstep.metrics.memorisation import memorisation
from fewstep.metrics.uncertainty import wilson_interval


def sets(rng, *sizes, dim=6):
    return [rng.standard_normal((size, dim)) for size in sizes]


def test_copies_of_training_images_are_all_found():
    training, heldout = sets(np.random.default_rng(0), 100, 100)
    found = memorisation(training[:60], training, heldout)
    assert found.share == 1 and found.effective_n == pytest.approx(60)
    # distances of equal rows are rounding, about 1e-8
    assert found.median_ratio < 1e-6
    assert memorisation(heldout, training, heldout).share == 0


def test_share_of_copies_follows_from_their_number():
    """30 % copies, the others even: .3 + .7 / 2, within four standard deviations of 210 even answers."""
    fake, training, heldout = sets(np.random.default_rng(1), 300, 400, 400)
    fake[:90] = training[:90] + 1e-3
    assert memorisation(fake, training, heldout).share == pytest.approx(0.65, abs=4 * 0.7 * 0.5 / 210**0.5)


def test_independent_samples_are_even_within_their_error():
    """200 triples: the share over its null deviation has mean 0 and spread 1; the interval covers .5.

    Tolerances: four standard errors of a mean, of a spread, and of 95 % coverage.
    """
    rng = np.random.default_rng(2)
    scores, covered = [], 0
    for _ in range(200):
        found = memorisation(*sets(rng, 200, 120, 120))
        scores.append((found.share - 0.5) / found.null_sd)
        low, high = wilson_interval(found.share, found.effective_n)
        covered += low <= 0.5 <= high
    assert abs(np.mean(scores)) < 4 / 200**0.5
    assert np.std(scores) == pytest.approx(1, abs=4 / 400**0.5)
    assert covered / 200 > 0.95 - 4 * (0.95 * 0.05 / 200) ** 0.5


def test_null_deviation_is_that_of_relabelled_images():
    """The exact value against 2000 random ways to call half of the pool training; 0.08: five standard errors."""
    rng = np.random.default_rng(3)
    fake, pool = sets(rng, 80, 40, dim=2)
    shares = []
    for _ in range(2000):
        order = rng.permutation(40)
        shares.append(memorisation(fake, pool[order[:20]], pool[order[20:]]).share)
    found = memorisation(fake, pool[:20], pool[20:])
    assert np.std(shares) == pytest.approx(found.null_sd, rel=0.08)


def test_equal_answers_of_many_samples_count_once():
    training, heldout = sets(np.random.default_rng(4), 30, 30)
    found = memorisation(np.repeat(training[:1], 500, axis=0), training, heldout)
    assert found.share == 1 and found.effective_n == pytest.approx(1)


def test_by_hand_and_rows_at_a_time(monkeypatch):
    fake = np.array([[0.0], [1.0], [10.0]])
    training, heldout = np.array([[1.0], [20.0]]), np.array([[3.0], [12.0]])
    found = memorisation(fake, training, heldout)
    assert found.share == pytest.approx(2 / 3)
    assert found.median_ratio == pytest.approx(1 / 3)  # 1/3, 0, 9/2
    monkeypatch.setattr(module, "_ROWS", 2)
    assert memorisation(fake, training, heldout) == found


def test_unequal_sets_are_refused():
    training, heldout = sets(np.random.default_rng(5), 10, 9)
    with pytest.raises(DataError, match="got 10 and 9"):
        memorisation(training, training, heldout)
