"""How well a simple classifier distinguishes descriptions of images, out of fold, beside its null control."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.methods.multilid.features import Array
from fewstep.methods.multilid.protocol import NULL, REAL
from fewstep.metrics.uncertainty import Interval, normal_interval, wilson_interval
from fewstep.rng import generator

FALSE_ALARMS = 0.05

TRAINING = 2.0
"""Factor of the variance over images for the training that varies with them, too.

Without signal it is two: each pair of images counts twice, one learnt from and the other judged. Where classes lie far
apart training hardly matters, and intervals are too wide. A little below the correction of [nadeau2003inference],
1 + folds / (folds - 1), which held more than it promised.
"""

_FOREST_TREES, _FOREST_STATE = 100, 21  # as published


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def _forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(_FOREST_TREES, random_state=_FOREST_STATE)


CLASSIFIERS: dict[str, Callable[[], Any]] = {"logistic": _logistic, "forest": _forest}
"""Name -> an untrained classifier with fit and predict_proba."""


@dataclass(frozen=True)
class Splits:
    """Repeated cross-validation.

    All classes share the fold of a position: where the position is that of a noise, images of one noise by several
    samplers are never on both sides.
    """

    folds: int
    repeats: int
    seed: int

    def fold(self, n: int, repeat: int) -> NDArray[np.int64]:
        """The fold of each of n positions, (n,); sizes differ by at most one."""
        order = torch.randperm(n, generator=generator(self.seed, "folds", repeat)).numpy()
        fold = np.empty(n, np.int64)
        fold[order] = np.arange(n) % self.folds
        return fold


def probabilities(
    classes: Sequence[Array], classifier: str, splits: Splits, *, others: Sequence[Array] = ()
) -> Array:
    """Out-of-fold probabilities of every image.

    Args: classes: descriptions (n, columns) per class, n equal. others: descriptions of the same form that are only
        predicted, each position by the classifier that has not seen that position of any class.
    Returns: (repeats, classes + others, n, classes).
    """
    every = np.stack([*classes, *others])
    c, n = len(classes), every.shape[1]
    probabilities = np.empty((splits.repeats, len(every), n, c))
    for repeat in range(splits.repeats):
        fold = splits.fold(n, repeat)
        for held_out in range(splits.folds):
            inside, outside = fold != held_out, fold == held_out
            model = CLASSIFIERS[classifier]()
            model.fit(every[:c, inside].reshape(-1, every.shape[-1]), np.repeat(np.arange(c), inside.sum()))
            shown = every[:, outside]
            shares = model.predict_proba(shown.reshape(-1, every.shape[-1]))
            probabilities[repeat][:, outside] = shares.reshape(*shown.shape[:2], c)
    return probabilities


@dataclass(frozen=True)
class Estimate:
    """A number and its interval."""

    value: float
    interval: Interval

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"value": self.value, "interval": list(self.interval)}


@dataclass(frozen=True)
class Separation:
    """How well real images (n,) are distinguished from others (m,), as means over images.

    Attributes: correct: share of repeats in which each image was put on its side, ties by half. placed: share of the
        other class that each image is on the right side of; their mean is the area under the ROC curve. caught:
        share of the others above the threshold of FALSE_ALARMS. slack: standard deviation of that share through the
        threshold, which some real images have set. widening: factor of all variances; TRAINING, if scores were learnt
        from the other images.
    """

    correct: tuple[Array, Array]
    placed: tuple[Array, Array]
    caught: float
    slack: float
    widening: float

    @classmethod
    def of(cls, real: Array, others: Array, *, widening: float = 1.0) -> "Separation":
        """From scores, larger for what looks generated: (repeats, n) and (repeats, m)."""
        spread = (FALSE_ALARMS * (1 - FALSE_ALARMS) / real.shape[1]) ** 0.5
        few, some, many = (
            float(np.mean([_caught(*scores, alarms) for scores in zip(real, others, strict=True)]))
            for alarms in (FALSE_ALARMS - spread, FALSE_ALARMS, FALSE_ALARMS + spread)
        )
        return cls(
            (_right(0.5 - real), _right(others - 0.5)),
            (
                np.mean([1 - _below(one, other) for one, other in zip(real, others, strict=True)], 0),
                np.mean([_below(other, one) for one, other in zip(real, others, strict=True)], 0),
            ),
            caught=some,
            slack=(many - few) / 2,  # the slope of the ROC curve, times the spread of the false alarms
            widening=widening,
        )

    def accuracy(self, level: float) -> Estimate:
        """Balanced accuracy; Wilson's interval over distinct images, repeats not counted as new ones."""
        real, others = self.correct
        value = float(real.mean() + others.mean()) / 2
        return Estimate(value, wilson_interval(value, (len(real) + len(others)) / self.widening, level))

    def auroc(self, level: float) -> Estimate:
        """Area under the ROC curve with the interval of [delong1988comparing], Wilson's where all are distinguished."""
        value, spread = float(self.placed[0].mean()), self._widened(*self.placed)
        if spread == 0:  # perfect on these images, which need not be so on others
            return Estimate(value, wilson_interval(value, min(map(len, self.placed)) / self.widening, level))
        low, high = normal_interval(value, spread, level)
        return Estimate(value, Interval(max(low, 0.0), min(high, 1.0)))

    def sensitivity(self, level: float) -> Estimate:
        """Others found where FALSE_ALARMS of the real images raise one.

        Wilson's interval of as many images as would vary by chance and threshold together.
        """
        m = len(self.correct[1])
        share = (self.caught * m + 1) / (m + 2)  # none or all of them caught need not be so on others
        own = share * (1 - share)
        n = own / (own / m + self.slack**2) / self.widening
        return Estimate(self.caught, wilson_interval(self.caught, n, level))

    def minus(self, other: "Separation", level: float, *, paired: bool = False) -> tuple[Estimate, Estimate]:
        """Accuracy and area minus those of another class against the same real images.

        Both are means over images, so that differences of the shared ones, image by image, give the interval.
        Args: paired: the classes' own images belong together, too, one noise at each position.
        """
        accuracy = self.accuracy(level).value - other.accuracy(level).value
        auroc = self.auroc(level).value - other.auroc(level).value
        correct = self._widened(*_differences(self.correct, other.correct, paired)) / 2
        placed = self._widened(*_differences(self.placed, other.placed, paired))
        return (
            Estimate(accuracy, normal_interval(accuracy, correct, level)),
            Estimate(auroc, normal_interval(auroc, placed, level)),
        )

    def _widened(self, *groups: Array) -> float:
        """Standard deviation of the sum of means of independent groups."""
        return float(np.sqrt(self.widening * sum(rows.var(ddof=1) / len(rows) for rows in groups)))


def _right(margin: Array) -> Array:
    """Share of the repeats (repeats, n) with a positive margin, (n,); zeros count half."""
    share: Array = ((np.sign(margin) + 1) / 2).mean(0)
    return share


def _below(scores: Array, others: Array) -> Array:
    """For each score the share of others below it, ties by half."""
    ordered = np.sort(others)
    ranks = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    share: Array = ranks / (2 * len(others))
    return share


def _caught(real: Array, others: Array, alarms: float) -> float:
    threshold = np.sort(real)[len(real) - 1 - int(alarms * len(real))]
    return float((others > threshold).mean())


def _differences(one: tuple[Array, Array], other: tuple[Array, Array], paired: bool) -> tuple[Array, ...]:
    """Groups whose means add up to that of the one minus that of the other."""
    shared = one[0] - other[0]
    return (shared, one[1] - other[1]) if paired else (shared, one[1], -other[1])


def separate(
    columns: Mapping[str, Array], classifier: str, splits: Splits
) -> tuple[dict[str, Separation], dict[str, dict[str, float]]]:
    """Every generator, and NULL, against REAL; and how each generator's classifier fares on the others' images.

    Args: columns: descriptions (n, columns) by class, REAL and NULL among them.
    Returns: Name -> separation; name trained on -> name tried on -> accuracy, real images included.
    """
    found: dict[str, Separation] = {}
    transfer: dict[str, dict[str, float]] = {}
    names = [name for name in columns if name != REAL]
    for name in names:
        others = [other for other in names if NULL not in (name, other) and other != name]
        scores = probabilities(
            [columns[REAL], columns[name]], classifier, splits, others=[columns[other] for other in others]
        )[..., 1]
        found[name] = Separation.of(scores[:, 0], scores[:, 1], widening=TRAINING)
        if name != NULL:
            right = float(_right(0.5 - scores[:, 0]).mean())
            transfer[name] = {
                other: (right + float(_right(scores[:, 1 + i] - 0.5).mean())) / 2
                for i, other in enumerate([name, *others])
            }
    return found, transfer


def not_distinguishable(found: Mapping[str, Separation], name: str, level: float) -> list[str]:
    """Generators whose accuracy is not distinguishable from that of a named one.

    Their images at one position are of one noise. All that are left out are so with the level, taken together.
    """
    others = [other for other in found if other not in (name, NULL)]
    joint = 1 - (1 - level) / max(len(others), 1)
    apart = {other: found[name].minus(found[other], joint, paired=True)[0].interval for other in others}
    return [other for other, (low, high) in apart.items() if low <= 0 <= high]


@dataclass(frozen=True)
class Identification:
    """Which class an image is of, out of fold.

    Attributes: classes: REAL and the generators. confusion: share (true, predicted), rows sum to 1. accuracy: mean of
        the diagonal, with Wilson's interval over distinct images.
    """

    classes: tuple[str, ...]
    confusion: Array
    accuracy: Estimate


def identify(columns: Mapping[str, Array], classifier: str, splits: Splits, level: float) -> Identification:
    """Classify REAL and all generators at once; NULL has no part in it."""
    names = tuple(name for name in columns if name != NULL)
    shares = probabilities([columns[name] for name in names], classifier, splits)
    said = np.eye(len(names))[shares.argmax(-1)]
    confusion: Array = said.mean((0, 2))
    value = float(np.trace(confusion)) / len(names)
    n = len(names) * shares.shape[2] / TRAINING
    return Identification(names, confusion, Estimate(value, wilson_interval(value, n, level)))
