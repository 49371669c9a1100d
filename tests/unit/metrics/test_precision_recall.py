import numpy as np
import pytest

from fewstep.checks import DataError
from fewstep.metrics import precision_recall as module
from fewstep.metrics.precision_recall import precision_recall


def naive(fake, real, k, k_density):
    def distance(a, b):
        return np.linalg.norm(a - b)

    def radius(points, i, k):
        return sorted(distance(points[i], p) for j, p in enumerate(points) if j != i)[k - 1]

    real_radius = [radius(real, i, k) for i in range(len(real))]
    fake_radius = [radius(fake, i, k) for i in range(len(fake))]
    wide = [radius(real, i, k_density) for i in range(len(real))]
    precision = np.mean(
        [any(distance(f, r) <= q for r, q in zip(real, real_radius, strict=True)) for f in fake]
    )
    recall = np.mean([any(distance(f, r) <= q for f, q in zip(fake, fake_radius, strict=True)) for r in real])
    inside = np.array([[distance(f, r) <= q for r, q in zip(real, wide, strict=True)] for f in fake])
    return precision, recall, inside.sum() / (k_density * len(fake)), inside.any(0).mean()


def test_equals_the_definition_by_loops():
    rng = np.random.default_rng(0)
    fake, real = rng.standard_normal((25, 3)) + 0.8, rng.standard_normal((30, 3))
    found = precision_recall(fake, real)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(
        naive(fake, real, 3, 5)
    )


def test_rows_at_a_time_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    fake, real = rng.standard_normal((50, 4)), rng.standard_normal((40, 4))
    whole = precision_recall(fake, real)
    monkeypatch.setattr(module, "_ROWS", 7)
    assert precision_recall(fake, real) == whole


def test_identical_sets_overlap_wholly():
    x = np.random.default_rng(2).standard_normal((60, 5))
    found = precision_recall(x, x.copy())
    assert found.precision == found.recall == found.coverage == 1


def test_one_mode_of_two_keeps_precision_and_loses_recall():
    rng = np.random.default_rng(3)
    real = np.concatenate([rng.standard_normal((50, 2)), rng.standard_normal((50, 2)) + 50])
    found = precision_recall(rng.standard_normal((100, 2)), real)
    assert found.precision > 0.8 and found.recall < 0.6 and found.coverage <= 0.5


def test_far_sets_do_not_overlap():
    x = np.random.default_rng(4).standard_normal((20, 2))
    found = precision_recall(x, x + 100)
    assert found.precision == found.recall == found.density == found.coverage == 0


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="at least 6"):
        precision_recall(np.zeros((5, 2)), np.zeros((9, 2)))


def test_density_error_is_the_spread_over_generated_sets():
    """80 sets against one real set: their spread is known to 8 %."""
    rng = np.random.default_rng(5)
    real = rng.standard_normal((200, 4))
    found = [precision_recall(1.1 * rng.standard_normal((200, 4)), real) for _ in range(80)]
    truth = np.std([one.density for one in found], ddof=1)
    assert np.mean([one.density_error for one in found]) == pytest.approx(truth, rel=0.25)
