import numpy as np
import pytest

from fewstep.checks import DataError
from fewstep.metrics.statistics import (
    CHUNK,
    Accumulator,
    Moments,
    Statistics,
    chunk_moments,
    fold,
    merge,
)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((1300, 12)) @ rng.standard_normal((12, 12))).astype(np.float32)


def chunks(rows):
    return [chunk_moments(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]


def same_bits(a: Moments, b: Moments) -> bool:
    return a.n == b.n and np.array_equal(a.mean, b.mean) and np.array_equal(a.scatter, b.scatter)


def test_moments_are_those_of_numpy(rows):
    found = fold(chunks(rows))
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        found.scatter / (found.n - 1), np.cov(exact, rowvar=False), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("batch", [1, 7, 256, 300, 5000])
def test_batch_size_never_changes_the_bits(rows, batch):
    accumulator = Accumulator()
    for start in range(0, len(rows), batch):
        accumulator.update(rows[start : start + batch])
    assert same_bits(accumulator.moments(), fold(chunks(rows)))


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_workers_that_share_the_chunks_give_the_same_bits(rows, shards):
    done = [list(enumerate(chunks(rows)))[worker::shards] for worker in range(shards)]
    in_order = [chunk for _, chunk in sorted(sum(done, []), key=lambda pair: pair[0])]
    assert same_bits(fold(in_order), fold(chunks(rows)))


def test_shards_of_any_cut_agree_to_rounding(rows):
    parts = [chunk_moments(part) for part in np.array_split(rows, 7)]
    found, expected = fold(parts), fold(chunks(rows))
    np.testing.assert_allclose(found.scatter, expected.scatter, rtol=1e-12, atol=1e-10)


def test_asking_in_between_changes_nothing(rows):
    asked, silent = Accumulator(), Accumulator()
    for part in np.array_split(rows, 9):
        asked.update(part)
        silent.update(part)
        asked.moments()
    assert same_bits(asked.moments(), silent.moments())


def test_a_large_offset_costs_no_digits(rows):
    """Raw second moments in float32 lose all digits here; Chan's formula loses hardly any."""
    plain = fold(chunks(rows.astype(np.float64)))
    moved = fold(chunks(rows.astype(np.float64) + 1e4))
    np.testing.assert_allclose(moved.scatter, plain.scatter, rtol=1e-9, atol=1e-7)


def test_empty_and_single_rows_merge(rows):
    empty, one = chunk_moments(rows[:0]), chunk_moments(rows[:1])
    assert same_bits(merge(empty, one), one)
    assert same_bits(merge(one, empty), one)
    pair = merge(one, chunk_moments(rows[1:2]))
    np.testing.assert_allclose(pair.scatter, np.cov(rows[:2].astype(np.float64), rowvar=False), atol=1e-12)


def test_merge_leaves_its_arguments_alone(rows):
    a, b = chunk_moments(rows[:100]), chunk_moments(rows[100:200])
    before = a.scatter.copy()
    merge(a, b)
    assert np.array_equal(a.scatter, before)


def test_nothing_has_no_statistics():
    with pytest.raises(DataError, match="at least one image"):
        Accumulator().moments()


def test_accumulated_nan_and_single_rows_are_refused(rows):
    with pytest.raises(DataError, match="two images"):
        Statistics.from_moments(chunk_moments(rows[:1]))
    with pytest.raises(DataError, match="finite"):
        Statistics.from_moments(chunk_moments(np.where(rows[:3] > 0, np.nan, rows[:3])))


def test_statistics_of_features_have_the_folded_mean_to_the_bit(rows):
    assert np.array_equal(Statistics.from_features(rows).mu, fold(chunks(rows)).mean)


@pytest.mark.parametrize("n", [5, 40])
def test_factor_reproduces_the_covariance(n):
    features = np.random.default_rng(n).standard_normal((n, 12))
    statistics = Statistics.from_features(features)
    factor = statistics.factor
    assert factor.shape[1] == min(n - 1, 12)
    np.testing.assert_allclose(factor @ factor.T, statistics.cov, atol=1e-12)


def test_factor_of_a_dead_feature_falls_back_to_eigenvectors():
    features = np.random.default_rng(0).standard_normal((40, 6))
    features[:, 2] = 0
    statistics = Statistics.from_features(features)
    np.testing.assert_allclose(statistics.factor @ statistics.factor.T, statistics.cov, atol=1e-12)


def test_one_row_and_nan_are_refused():
    with pytest.raises(DataError, match="N >= 2"):
        Statistics.from_features(np.zeros((1, 3)))
    bad = np.zeros((4, 3))
    bad[2, 1] = np.nan
    with pytest.raises(DataError, match="row 2"):
        Statistics.from_features(bad)
