import numpy as np
import pytest

from fewstep.checks import DataError
from fewstep.metrics.inception_score import inception_score, shuffled_rows


def test_equals_the_definition_by_loops():
    logits = 3 * np.random.default_rng(0).standard_normal((47, 5))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = []
    for split in range(10):
        rows = shuffled_rows(47)[split * 47 // 10 : (split + 1) * 47 // 10]
        mean = np.mean([p[i] for i in rows], axis=0)
        scores.append(np.exp(np.mean([np.sum(p[i] * np.log(p[i] / mean)) for i in rows])))
    found = inception_score(logits)
    assert (found.value, found.split_sd) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


def test_equal_answers_score_one_and_sure_ones_the_number_of_classes():
    assert inception_score(np.zeros((40, 7))).value == pytest.approx(1, abs=1e-12)
    sure = 60 * np.eye(4)[np.random.default_rng(1).integers(0, 4, 4000)]
    found = inception_score(sure)
    # all answers are e^-60 from certain; each split of 400 lacks about (4 - 1) / (2 * 400) nats of log 4
    assert found.value == pytest.approx(4 * np.exp(-3 / 800), rel=2e-3)
    assert found.standard_error < 0.02


def test_two_unsure_classes_have_the_entropy_of_their_doubt():
    """Half the images say (.9, .1), half (.1, .9): exp(log 2 - H(.1)), less a bias of the splits below 1/N."""
    answer = np.log([[0.9, 0.1], [0.1, 0.9]])
    found = inception_score(answer[np.arange(20_000) % 2])
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert found.value == pytest.approx(2 * np.exp(-entropy), rel=1e-3)


def test_standard_error_is_the_spread_of_the_value():
    """Over 150 draws; the published deviation over splits is three times that. 0.2: two sd of a spread of 150."""
    rng = np.random.default_rng(2)
    to_logits = rng.standard_normal((8, 10))
    found = [inception_score(rng.standard_normal((400, 8)) @ to_logits) for _ in range(150)]
    truth = np.std([score.value for score in found], ddof=1)
    assert np.mean([score.standard_error for score in found]) == pytest.approx(truth, rel=0.2)
    assert np.mean([score.split_sd for score in found]) > 2 * truth


def test_adding_the_same_number_to_all_logits_changes_nothing():
    logits = np.random.default_rng(3).standard_normal((60, 4))
    shifted = inception_score(logits + 1000)
    assert shifted.value == pytest.approx(inception_score(logits).value, rel=1e-9)


def test_what_cannot_be_is_refused():
    with pytest.raises(DataError, match="at least 20 images, got 19"):
        inception_score(np.zeros((19, 3)))
    with pytest.raises(DataError, match="finite"):
        inception_score(np.full((20, 3), np.nan))
