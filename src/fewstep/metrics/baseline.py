"""What real images score against the reference: the level that perfect samples would reach."""

import numpy as np
import torch

from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import Baseline, Reference
from fewstep.metrics.statistics import Statistics
from fewstep.rng import generator

REPEATS = 8
SEED = 1973


def real_baseline(reference: Reference, n: int) -> Baseline | None:
    """What n perfect samples would score: the mean distance of n real images to the reference.

    Held-out images are taken where there are n of them, in up to 8 disjoint sets. Otherwise the reference is
    cut into random parts that are compared with each other; the bias of a distance between equals is
    c/n_a + c/n_b, so that the mean is scaled by (1/n + 1/n_reference) / (1/n_a + 1/n_b).

    Returns: None where there are neither enough held-out images nor features of the reference.
    """
    if n not in reference.baselines:
        heldout = reference.heldout
        enough = heldout is not None and len(heldout) >= n
        reference.baselines[n] = _from_heldout(reference, n) if enough else _from_halves(reference, n)
    return reference.baselines[n]


def _from_heldout(reference: Reference, n: int) -> Baseline:
    heldout = reference.heldout
    assert heldout is not None
    order = torch.randperm(len(heldout), generator=generator(SEED, "heldout", len(heldout))).numpy()
    sets = min(len(heldout) // n, REPEATS)
    values = [
        frechet(Statistics.from_features(heldout[rows]), reference.statistics).value
        for rows in order[: sets * n].reshape(sets, n)
    ]
    split = reference.meta["dataset"]["heldout_split"]
    return Baseline(float(np.mean(values)), f"{sets} sets of {n} images of the {split} split")


def _from_halves(reference: Reference, n: int) -> Baseline | None:
    features = reference.statistics.features
    if features is None or len(features) < 4:
        return None
    total = len(features)
    size = min(n, total // 2)
    rng = generator(SEED, "halves", total)
    values = []
    for _ in range(REPEATS // 2):
        order = torch.randperm(total, generator=rng).numpy()
        one, other = features[order[:size]], features[order[size:]]
        values.append(frechet(Statistics.from_features(one), Statistics.from_features(other)).value)
    scale = (1 / n + 1 / total) / (1 / size + 1 / (total - size))
    split = reference.meta["dataset"]["split"]
    source = f"{size} against {total - size} images of the {split} split, scaled by {scale:.3f}"
    return Baseline(float(np.mean(values)) * scale, source)
