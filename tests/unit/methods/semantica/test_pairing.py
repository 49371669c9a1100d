import numpy as np
import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.data.pairs import pairs_of
from fewstep.methods.semantica.pairing import (
    balanced,
    kept,
    mutual_neighbours,
    of_class,
    pooled,
    require_no_self_pairs,
    similarity_of,
)
from fewstep.rng import generator

LABELS = np.array([0, 1, 0, 1, 1, 0, 1, 2, 2])


def tokens(n=60, seed=0):
    return torch.randn(n, 4, 6, generator=generator(seed))


def test_pooled_features_are_unit_vectors_about_the_mean():
    features = pooled(tokens() + 5)
    assert torch.allclose(torch.linalg.vector_norm(features, dim=1), torch.ones(60), atol=1e-5)
    assert torch.allclose(pooled(tokens() + 5), pooled(tokens()), atol=1e-4), "what all share does not count"
    shuffled = tokens()[:, [2, 0, 3, 1]]
    assert torch.allclose(pooled(shuffled), pooled(tokens()), atol=1e-5)


def test_pairs_of_a_class_are_of_others_of_it_and_as_many_for_all():
    conditions, targets = of_class(LABELS, limit=2, rng=generator(0))
    assert (LABELS[conditions] == LABELS[targets]).all() and (conditions != targets).all()
    assert sorted(set(targets)) == list(range(9))
    for label, n in ((0, 2), (1, 2), (2, 1)):
        for i in np.flatnonzero(label == LABELS):
            assert (targets == i).sum() == (conditions == i).sum() == n
    again, other = (of_class(LABELS, limit=2, rng=generator(seed))[0] for seed in (0, 1))
    assert np.array_equal(again, conditions) and not np.array_equal(other, conditions)
    with pytest.raises(DataError, match="class 3 has only image 9"):
        of_class(np.append(LABELS, 3), limit=2, rng=generator(0))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_neighbours_are_mutual(k):
    features = pooled(tokens())
    conditions, targets = mutual_neighbours(features, k)
    similarity = features @ features.T
    similarity.fill_diagonal_(-2)
    nearest = [set(row.tolist()) for row in similarity.topk(k, dim=1).indices]
    expected = {(i, j) for i in range(60) for j in nearest[i] if i in nearest[j]}
    assert set(zip(targets.tolist(), conditions.tolist(), strict=True)) == expected
    assert len(conditions) == len(expected) > 0


def test_an_injected_duplicate_is_taken_out_from_above():
    found = tokens()
    found[1] = found[0]
    features = pooled(found)
    conditions, targets = mutual_neighbours(features, 10)
    similarity = similarity_of(features, conditions, targets)
    duplicate = (conditions + targets == 1) & (np.abs(conditions - targets) == 1)
    assert duplicate.sum() == 2 and np.allclose(similarity[duplicate], 1, atol=1e-5)
    assert kept(similarity, (0.0, 1.0)).all()
    inside = kept(similarity, (0.2, 0.95))
    assert not inside[duplicate].any() and inside.mean() == pytest.approx(0.75, abs=0.03)


def test_weights_make_hubs_count_no_more_than_others():
    pairs = balanced(np.array([5, 5, 5, 6]), np.array([0, 1, 2, 0]), np.ones(4))
    uses = {int(c): float(pairs.weight[pairs.cond_id == c].sum()) for c in (5, 6)}
    assert uses == pytest.approx({5: 1.0, 6: 1.0})


def test_mistakes_are_one_sentence():
    with pytest.raises(ConfigError, match="below the number of images, 60; got 60"):
        mutual_neighbours(pooled(tokens()), 60)
    with pytest.raises(ConfigError, match="in rising order; got 0.9 and 0.2"):
        kept(np.ones(3), (0.9, 0.2))
    with pytest.raises(DataError, match="must not be its own condition, .* 4 and 0 more are"):
        require_no_self_pairs(pairs_of([4, 3], [4, 2]))
    require_no_self_pairs(pairs_of([4, 3], [3, 2]))
