"""What any distance between Gaussian fits must satisfy, on drawn features."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Statistics

sizes = st.integers(min_value=2, max_value=40)
seeds = st.integers(min_value=0, max_value=2**32 - 1)
D = 12


def draw(n, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, D)) @ rng.standard_normal((D, D)) + rng.standard_normal(D)


def distance(x, y):
    return frechet(Statistics.from_features(x), Statistics.from_features(y)).value


def tolerance(x, y):
    """1e-7 of the traces: a root of rounding errors is 1e-8 of the largest root, and there are up to 12."""
    return 1e-7 * (x.var(0).sum() + y.var(0).sum() + 1)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, seeds)
def test_symmetric_and_not_negative(n, m, seed):
    x, y = draw(n, seed), draw(m, seed ^ 1)
    assert abs(distance(x, y) - distance(y, x)) <= tolerance(x, y)
    assert distance(x, y) >= -tolerance(x, y)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, seeds)
def test_rotations_and_common_shifts_change_nothing(n, m, seed):
    x, y = draw(n, seed), draw(m, seed ^ 1)
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((D, D)))[0]
    shift = rng.standard_normal(D)
    turned = distance(x @ rotation + shift, y @ rotation + shift)
    assert abs(turned - distance(x, y)) <= tolerance(x, y)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, seeds, st.floats(min_value=0.1, max_value=10))
def test_scaling_scales_by_the_square(n, m, seed, scale):
    x, y = draw(n, seed), draw(m, seed ^ 1)
    assert abs(distance(scale * x, scale * y) - scale**2 * distance(x, y)) <= max(scale, 1) ** 2 * tolerance(
        x, y
    )


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, sizes, seeds)
def test_triangle_inequality_of_the_root(n, m, k, seed):
    x, y, z = draw(n, seed), draw(m, seed ^ 1), draw(k, seed ^ 2)
    root = [max(distance(a, b), 0) ** 0.5 for a, b in ((x, z), (x, y), (y, z))]
    assert root[0] <= root[1] + root[2] + tolerance(x, z) ** 0.5


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, seeds)
def test_order_of_images_does_not_matter(n, m, seed):
    x, y = draw(n, seed), draw(m, seed ^ 1)
    shuffled = x[np.random.default_rng(seed).permutation(n)]
    assert abs(distance(shuffled, y) - distance(x, y)) <= tolerance(x, y)
