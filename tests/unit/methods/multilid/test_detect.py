from statistics import NormalDist

import numpy as np
import pytest

from fewstep.methods.multilid import detect
from fewstep.methods.multilid.detect import (
    Separation,
    Splits,
    identify,
    not_distinguishable,
    probabilities,
    separate,
)
from fewstep.methods.multilid.protocol import NULL, REAL

PHI = NormalDist().cdf


def normal_scores(rng, shift, n, repeats=1):
    """Scores in (0, 1), increasing in a normal variable: ideal probabilities for two classes `shift` apart."""
    z = rng.normal(shift, 1, (repeats, n))
    return 1 / (1 + np.exp(-z))


def test_folds_are_a_balanced_partition_that_repeats_change():
    splits = Splits(4, 2, 7)
    folds = [splits.fold(42, repeat) for repeat in (0, 1)]
    assert all(sorted(np.bincount(fold)) == [10, 10, 11, 11] for fold in folds)
    assert (folds[0] != folds[1]).any()
    assert (folds[0] == Splits(4, 2, 7).fold(42, 0)).all()


def test_no_image_of_a_position_is_predicted_by_who_has_seen_that_position(monkeypatch):
    class Spy:
        def fit(self, rows, labels):
            self.seen = set(rows[:, 0])
            assert (np.bincount(labels) == len(rows) / 2).all()

        def predict_proba(self, rows):
            assert not self.seen & set(rows[:, 0])
            assert len(set(rows[:, 0])) * 3 == len(rows)  # three classes shown
            return np.stack([1 - rows[:, 1], rows[:, 1]], 1)

    monkeypatch.setitem(detect.CLASSIFIERS, "spy", Spy)
    position = np.arange(30.0)
    classes = [np.stack([position, np.full(30, share)], 1) for share in (0.25, 0.5, 0.75)]
    found = probabilities(classes[:2], "spy", Splits(3, 2, 0), others=classes[2:])
    assert found.shape == (2, 3, 30, 2)
    assert (found[..., 1] == np.array([0.25, 0.5, 0.75])[None, :, None]).all()


def test_area_and_accuracy_are_those_of_counting():
    rng = np.random.default_rng(0)
    real, fake = rng.integers(0, 8, (2, 1, 40)) / 8  # with ties, and some at the border of 0.5
    found = Separation.of(real, fake)
    pairs = np.sign(fake[0][:, None] - real[0])
    assert found.auroc(0.95).value == pytest.approx(((pairs + 1) / 2).mean(), abs=1e-12)
    counts = [(s[0] * np.sign(s[1][0] - 0.5) + 1) / 2 for s in ((-1, real), (1, fake))]
    assert found.accuracy(0.95).value == pytest.approx(np.mean(counts), abs=1e-12)


def test_area_agrees_with_the_library():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    real, fake = normal_scores(rng, 0, 300), normal_scores(rng, 1, 200)
    expected = roc_auc_score(np.repeat([0, 1], [300, 200]), np.concatenate([real[0], fake[0]]))
    assert Separation.of(real, fake).auroc(0.95).value == pytest.approx(expected, abs=1e-12)


def test_sensitivity_keeps_the_rate_of_false_alarms():
    """At most 5 % of the real images above the threshold; the next lower threshold would let more through."""
    real, fake = np.linspace(0, 1, 101)[None, :-1], np.array([[0.9401, 0.9399, 0.2, 0.95]])
    assert Separation.of(real, fake).caught == 0.5  # threshold 0.94: five of 100 are above
    assert Separation.of(real, real).caught == 0.05


def test_intervals_hold_what_they_promise():
    """Coverage over 400 draws: 95 % has a standard error of 1.1 points; repeats of one draw are no new images.

    Accuracy at the best threshold is Phi(d/2), the area Phi(d/sqrt 2); both differences share the real images. Where
    one in 20 real images raises a false alarm, the others are above the threshold with Phi(d - 1.645).
    """
    rng, d, hits = np.random.default_rng(2), 1.0, np.zeros(5)
    truth = (PHI(d / 2), PHI(d / 2**0.5), PHI(d - NormalDist().inv_cdf(0.95)))
    for _ in range(400):
        real = rng.normal(0, 1, (1, 150))
        scores = [1 / (1 + np.exp(-(z - d / 2))) for z in (real, rng.normal(d, 1, (1, 150)))]
        null = [1 / (1 + np.exp(-z)) for z in (real, rng.normal(0, 1, (1, 150)))]
        found, control = Separation.of(*scores), Separation.of(*null)
        estimates = (
            found.accuracy(0.95),
            found.auroc(0.95),
            found.sensitivity(0.95),
            *found.minus(control, 0.95),
        )
        wanted = (*truth, truth[0] - 0.5, truth[1] - 0.5)
        hits += [e.interval.low <= t <= e.interval.high for e, t in zip(estimates, wanted, strict=True)]
    assert (hits / 400 > 0.95 - 4 * 0.011).all()
    assert (hits / 400 < 0.95 + 4 * 0.011).all()


class Centroids:
    """The simplest classifier: along the line between the centres of two classes."""

    def fit(self, rows, labels):
        one, other = (rows[labels == label].mean(0) for label in (0, 1))
        self.slope, self.middle = other - one, (one + other) / 2

    def predict_proba(self, rows):
        share = 1 / (1 + np.exp(-(rows - self.middle) @ self.slope))
        return np.stack([1 - share, share], 1)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_intervals_hold_for_classifiers_that_learn_from_the_same_images(monkeypatch, shift):
    """Coverage over 400 draws, as above; no more than 95 % is promised, since training matters less with signal.

    The truth without signal is chance; with signal it is what is found on average.
    """
    monkeypatch.setitem(detect.CLASSIFIERS, "centroids", Centroids)
    rng, values, bounds = np.random.default_rng(6), [], []
    for seed in range(400):
        columns = {name: rng.normal(0, 1, (60, 8)) for name in (REAL, NULL, "ddim")}
        columns["ddim"][:, 0] += shift
        found, _ = separate(columns, "centroids", Splits(5, 1, seed))
        one = found["ddim"]
        estimates = (
            one.accuracy(0.95),
            one.auroc(0.95),
            one.sensitivity(0.95),
            *one.minus(found[NULL], 0.95),
        )
        values.append([e.value for e in estimates])
        bounds.append([e.interval for e in estimates])
    truth = np.mean(values, 0) if shift else np.array([0.5, 0.5, 0.05, 0, 0])
    low, high = np.moveaxis(np.array(bounds), 2, 0)
    assert (((low <= truth) & (truth <= high)).mean(0) > 0.95 - 4 * 0.011).all()


def test_generators_are_distinguished_by_images_of_the_same_noise():
    """One is the other with a little noise, one differs by chance alone, one is a standard deviation off."""
    rng = np.random.default_rng(8)
    real, noise = rng.normal(-0.5, 1, (1, 300)), rng.normal(0.5, 1, (1, 300))
    logits = {
        NULL: rng.normal(-0.5, 1, (1, 300)),
        "ddim": noise,
        "as good": noise + rng.normal(0, 0.1, (1, 300)),
        "by chance": rng.normal(0.5, 1, (1, 300)),
        "better": noise - 1,
    }
    found = {name: Separation.of(*(1 / (1 + np.exp(-z)) for z in (real, z))) for name, z in logits.items()}
    assert not_distinguishable(found, "ddim", 0.95) == ["as good", "by chance"]
    assert not_distinguishable(found, "better", 0.95) == []
    # of one noise the shift by 0.2 is seen, of two it is not: what both share is not counted as chance
    shifted = Separation.of(*(1 / (1 + np.exp(-z)) for z in (real, noise - 0.2)))
    lows = [found["ddim"].minus(shifted, 0.999, paired=paired)[1].interval.low for paired in (True, False)]
    assert lows[0] > 0 > lows[1]


def test_repeats_do_not_narrow_an_interval():
    rng = np.random.default_rng(3)
    real, fake = normal_scores(rng, -0.3, 100), normal_scores(rng, 0.3, 100)
    once, often = (Separation.of(np.repeat(real, r, 0), np.repeat(fake, r, 0)).accuracy(0.9) for r in (1, 5))
    assert once == often


def test_perfect_separation_is_not_certain():
    found = Separation.of(np.full((1, 50), 0.1), np.full((1, 50), 0.9))
    assert found.auroc(0.95).value == found.accuracy(0.95).value == found.caught == 1
    assert found.auroc(0.95).interval.low < 0.95
    assert found.accuracy(0.95).interval.low < 0.98


@pytest.fixture(scope="module")
def columns():
    """Normal descriptions: two generators 2 apart from real images in different directions, one as if real."""
    rng = np.random.default_rng(5)
    centres = {REAL: (0, 0), NULL: (0, 0), "east": (2, 0), "north": (0, 2), "real-like": (0, 0)}
    return {name: rng.normal(0, 1, (400, 2)) + centre for name, centre in centres.items()}


def test_generators_stand_out_from_the_null_control(columns):
    """4 standard errors of 800 images, 7 points; the best rule has Phi(1) = 84 %."""
    found, transfer = separate(columns, "logistic", Splits(5, 1, 0))
    assert set(found) == set(columns) - {REAL}
    for name in ("east", "north"):
        assert found[name].accuracy(0.95).value == pytest.approx(PHI(1), abs=0.07)
        assert found[name].minus(found[NULL], 0.95)[0].interval.low > 0.15
    assert abs(found[NULL].accuracy(0.95).value - 0.5) < 0.07
    assert found["real-like"].minus(found[NULL], 0.999)[0].interval.low < 0
    # who knows the east alone sees the north as it sees real images
    assert set(transfer) == {"east", "north", "real-like"}
    assert transfer["east"]["east"] == pytest.approx(found["east"].accuracy(0.95).value, abs=1e-12)
    assert transfer["east"]["north"] == pytest.approx(0.5, abs=0.1)


def test_generators_are_told_from_each_other(columns):
    chosen = {name: rows for name, rows in columns.items() if name != "real-like"}
    told = identify(chosen, "logistic", Splits(5, 2, 0), 0.95)
    assert told.classes == (REAL, "east", "north")
    assert np.allclose(told.confusion.sum(1), 1)
    assert told.accuracy.value == pytest.approx(np.trace(told.confusion) / 3)
    assert told.accuracy.interval.low > 0.6  # the best rule has 75 %, chance 33 %
    same = identify({name: columns[name] for name in (REAL, "real-like")}, "logistic", Splits(5, 1, 0), 0.999)
    assert same.accuracy.interval.low < 0.5 < same.accuracy.interval.high
