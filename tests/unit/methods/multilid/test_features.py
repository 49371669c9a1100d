import numpy as np
import pytest
import torch
from unit.methods.multilid.pixels import noise_images, pixel_taps

from fewstep.methods.multilid import features
from fewstep.methods.multilid.features import (
    duplicates,
    lid,
    log_ratios,
    nearest,
    ratio_columns,
    scaled_columns,
)


def uniform_distances(dim, k, *, queries=1000, bank=2000):
    """To the k nearest of a uniform cube, on a torus so that no query is near an edge: (queries, 1, k)."""
    generator = torch.Generator().manual_seed(dim)
    x, y = (torch.rand(n, dim, generator=generator, dtype=torch.float64) for n in (queries, bank))
    apart = (x[:, None] - y).abs()
    distances = torch.minimum(apart, 1 - apart).square().sum(-1).sqrt()
    return distances.topk(k, largest=False).values[:, None].numpy()


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("k", [10, 20])
def test_the_estimate_is_the_dimension_of_a_cube(dim, k):
    """ln(r_i / r_k) are k - 1 exponentials of rate d, so that their mean is 1/d; 5 %: 9000 terms have 1 %."""
    distances = uniform_distances(dim, k)
    assert 1 / (log_ratios(distances).sum(-1) / (k - 1)).mean() == pytest.approx(dim, rel=0.05)
    # the published average over all k terms: E[k / Gamma(k - 1, d)] = d k / (k - 2)
    assert lid(distances).mean() == pytest.approx(dim * k / (k - 2), rel=0.05)


def test_ratios_do_not_know_how_far_and_scale_does():
    distances = uniform_distances(2, 5, queries=7)
    assert np.allclose(ratio_columns(7 * distances), ratio_columns(distances), rtol=0, atol=1e-12)
    moved = scaled_columns(7 * distances) - scaled_columns(distances)
    assert np.allclose(moved, [[0, 0, 0, 0, np.log(7)]] * 7, rtol=0, atol=1e-12)


def test_columns_stand_by_neighbour_and_then_by_layer():
    distances = np.arange(1.0, 13).reshape(1, 3, 4)  # three layers, four neighbours
    expected = [
        -np.log(distances[0, layer, i] / distances[0, layer, 3]) for i in range(4) for layer in range(3)
    ]
    assert np.allclose(ratio_columns(distances), [expected], rtol=1e-12, atol=1e-15)
    assert np.allclose(scaled_columns(distances)[0, -3:], np.log([4, 8, 12]), rtol=1e-12)


def test_neighbours_are_those_of_brute_force():
    queries, bank = noise_images(37, seed=1), noise_images(23, seed=2)
    found = nearest(queries, bank, pixel_taps(layers=2), 6)
    apart = queries.flatten(1).double()[:, None] - bank.flatten(1).double()
    brute = apart.square().sum(-1).sqrt().sort(1).values[:, :6].numpy()
    assert np.allclose(
        found[:, 0], brute, rtol=1e-10
    )  # float64 products lose 1e-13 of distances of this size
    assert np.allclose(found[:, 1], brute / 2, rtol=1e-10)


def test_a_bank_in_pieces_has_the_same_neighbours(monkeypatch):
    queries, bank = noise_images(20, seed=1), noise_images(33, seed=2)
    whole = nearest(queries, bank, pixel_taps(layers=2), 4)
    monkeypatch.setattr(features, "TILE_BYTES", 7 * 2 * 16 * 8)  # seven images of two layers of 16 numbers
    assert np.allclose(nearest(queries, bank, pixel_taps(layers=2), 4), whole, rtol=1e-12)


def test_queries_do_not_depend_on_each_other():
    queries, bank = noise_images(40, seed=3), noise_images(30, seed=4)
    found = nearest(queries, bank, pixel_taps(), 5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert np.allclose(nearest(queries[order], bank, pixel_taps(), 5), found[order.numpy()], rtol=1e-12)


def test_images_of_the_bank_are_at_no_distance_and_counted():
    bank = noise_images(30, seed=5, side=16)
    queries = torch.cat([noise_images(9, seed=6, side=16), bank[[3, 8]]])
    found = nearest(queries, bank, pixel_taps(layers=2), 4)
    assert duplicates(found) == 2
    assert (found[9:, :, 0] == 0).all()
    assert np.isfinite(scaled_columns(found)).all()
    one_level = bank[:5].clone()
    one_level[:, 0, 0, 0] ^= 1  # the least that two images can differ
    assert duplicates(nearest(one_level, bank, pixel_taps(), 1)) == 0


def test_neighbours_that_are_all_equally_far_leave_finite_numbers():
    assert np.isfinite(lid(np.ones((2, 1, 4)))).all()
    assert np.isfinite(scaled_columns(np.zeros((2, 1, 4)))).all()
