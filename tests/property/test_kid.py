"""What any kernel distance between sets of features must satisfy, on drawn features."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.metrics.kid import BLOCKS, kid, mmd2

few = settings(max_examples=40, deadline=None)
sizes = st.integers(2 * BLOCKS, 60)
seeds = st.integers(0, 2**32 - 1)
D = 6


def draw(n, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, D)) @ rng.standard_normal((D, D)) + rng.standard_normal(D)


def tolerance(x, y):
    """1e-12 of the largest kernel: sums of up to 60 x 60 such numbers in float64, averaged."""
    largest = max(np.square(x).sum(1).max(), np.square(y).sum(1).max())
    return 1e-12 * (largest / D + 1) ** 3


@few
@given(sizes, sizes, seeds)
def test_symmetric_with_its_standard_error(n, m, seed):
    x, y = draw(n, seed), draw(m, seed ^ 1)
    there, back = kid(x, y), kid(y, x)
    assert there.value == pytest.approx(back.value, abs=tolerance(x, y))
    # nine in ten of the differences of the replicates, times 3: their sum of squares is rounded at its root
    assert there.standard_error == pytest.approx(back.standard_error, abs=10 * tolerance(x, y))


@few
@given(sizes, sizes, seeds)
def test_order_of_images_does_not_matter(n, m, seed):
    x, y = draw(n, seed), draw(m, seed ^ 1)
    rng = np.random.default_rng(seed)
    shuffled = kid(x[rng.permutation(n)], y[rng.permutation(m)])
    assert shuffled.value == pytest.approx(kid(x, y).value, abs=tolerance(x, y))


@few
@given(sizes, sizes, seeds)
def test_rotations_change_nothing(n, m, seed):
    """The kernel is one of inner products."""
    x, y = draw(n, seed), draw(m, seed ^ 1)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((D, D)))[0]
    assert mmd2(x @ rotation, y @ rotation) == pytest.approx(mmd2(x, y), abs=10 * tolerance(x, y))
