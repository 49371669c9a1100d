"""All measurements on one set of samples, as the `results` of a certificate."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.metrics.extractor import Extractor, extract
from fewstep.metrics.frechet import frechet
from fewstep.metrics.kid import kid
from fewstep.metrics.precision_recall import precision_recall
from fewstep.metrics.reference import Reference, require_extractor
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import RESAMPLES, half_samples, normal_interval, wilson_interval
from fewstep.progress import Progress
from fewstep.rng import generator

METRICS = ("fd", "kid", "pr")

_LARGEST_NEIGHBOURHOOD = 10_000
_BASELINE_REPEATS = 8
_FID_IMAGES = 4096
_SEED = 1973


def metric_name(metric: str, extractor: Extractor, n: int) -> str:
    """The name under which a number is reported: metric, extractor, resize, dtype and number of images.

    "FID" is the official features on at least twice as many images as features; all else is "FD".
    """
    count = f"{n / 1000:g}k" if n >= 1000 and n % 100 == 0 else str(n)
    if metric == "FD" and extractor.id == "inception2015" and n >= _FID_IMAGES:
        return f"FID-{extractor.id}#{count}"
    resize = "" if extractor.resize == "none" else f"@{extractor.resize}"
    dtype = "" if extractor.dtype == "float32" else f"/{extractor.dtype}"
    return f"{metric}-{extractor.id}{resize}{dtype}#{count}"


def evaluate_samples(
    samples: Tensor | NDArray[Any],
    reference: Reference,
    extractor: Extractor,
    *,
    metrics: Sequence[str] = METRICS,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress[int] = iter,
) -> dict[str, dict[str, Any]]:
    """Measure samples against a reference.

    The reference keeps its factor and its baselines: load it and the extractor once for many sets of samples.

    Args: samples: uint8 images, a tensor (N, C, H, W) or an array (N, H, W, C); or their features, a float
        array (N, D). metrics: of "fd", "kid", "pr"; the last two need a reference with features. level: of
        the intervals. resamples, seed: of the half-samples; equal ones make replicates of two sets paired.
    Returns: Metric name -> value, interval and what else belongs to it, plain numbers and strings.
    Raises: ConfigError: an unknown metric, another extractor, no features for kid or pr. DataError: images
        that do not fit the extractor, NaN, too few images.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ConfigError(f"metrics must be of {', '.join(METRICS)}; got {', '.join(unknown) or 'none'}.")
    require_extractor(reference.meta, extractor)
    is_features = not isinstance(samples, Tensor) and samples.ndim == 2
    features = np.asarray(samples) if is_features else extract(samples, extractor, progress=progress)
    fake = Statistics.from_features(features)
    n = len(features)
    results: dict[str, dict[str, Any]] = {}
    if "fd" in metrics:
        name = metric_name("FD", extractor, n)
        results[name] = _frechet(fake, reference, level=level, resamples=resamples, seed=seed)
    if "kid" in metrics:
        results[metric_name("KID", extractor, n)] = _kid(features, reference, extractor, level)
    if "pr" in metrics:
        for metric, record in _precision_recall(features, reference, level).items():
            results[metric_name(metric, extractor, n)] = record
    return results


def _frechet(
    fake: Statistics, reference: Reference, *, level: float, resamples: int, seed: int
) -> dict[str, Any]:
    assert fake.features is not None and fake.n is not None
    distance = frechet(fake, reference.statistics)
    replicates = half_samples(fake.features, reference.statistics, resamples=resamples, seed=seed)
    interval = normal_interval(distance.value, float(replicates.std(ddof=1)), level)
    baseline = real_baseline(reference, fake.n)
    return {
        "value": distance.value,
        "interval": [max(interval.low, 0.0), interval.high],
        "level": level,
        "interval_method": "half-sampling",
        # Nine digits are far below the spread of the replicates, and keep the file short.
        "replicates": [float(f"{value:.9g}") for value in replicates],
        "resample_seed": seed,
        "mean_term": distance.mean_term,
        "trace_term": distance.trace_term,
        "rank": distance.rank,
        "baseline": None if baseline is None else baseline.value,
        "baseline_source": None if baseline is None else baseline.source,
    }


def _kid(features: NDArray[Any], reference: Reference, extractor: Extractor, level: float) -> dict[str, Any]:
    real = _real_features(reference)
    # Official KID takes Inception features as they are; others get unit mean variance in the reference.
    variance = float(np.trace(reference.statistics.cov)) / reference.statistics.dim
    scale = 1.0 if extractor.id == "inception2015" else max(variance, np.finfo(float).tiny) ** 0.5
    found = kid(features, real, scale=scale)
    return {
        "value": found.value,
        "interval": list(normal_interval(found.value, found.standard_error, level)),
        "level": level,
        "interval_method": "block jackknife",
    }


def _precision_recall(
    features: NDArray[Any], reference: Reference, level: float
) -> dict[str, dict[str, Any]]:
    real = _real_features(reference)
    # Balls shrink as a set grows, hence equal sizes; the quadratic cost sets the largest.
    n = min(len(features), len(real), _LARGEST_NEIGHBOURHOOD)
    found = precision_recall(_subset(features, n, "fake"), _subset(real, n, "real"))
    return {
        name: {
            "value": value,
            "interval": list(wilson_interval(value, n, level)),
            "level": level,
            "interval_method": "wilson",
            "n": n,
        }
        for name, value in (("precision", found.precision), ("recall", found.recall))
    }


def _real_features(reference: Reference) -> NDArray[Any]:
    if reference.statistics.features is None:
        raise ConfigError(
            "KID, precision and recall need a reference that keeps its features, but this one holds mean and "
            "covariance alone; leave kid and pr out of the metrics."
        )
    return reference.statistics.features


def _subset(features: NDArray[Any], n: int, stream: str) -> NDArray[Any]:
    if n == len(features):
        return features
    order = torch.randperm(len(features), generator=generator(_SEED, stream, len(features)))
    rows: NDArray[Any] = features[np.sort(order[:n].numpy())]
    return rows


class Baseline(NamedTuple):
    """Distance of n real images to the reference, and which images these were."""

    value: float
    source: str


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
    found: Baseline | None = reference.baselines[n]
    return found


def _from_heldout(reference: Reference, n: int) -> Baseline:
    heldout = reference.heldout
    assert heldout is not None
    order = torch.randperm(len(heldout), generator=generator(_SEED, "heldout", len(heldout))).numpy()
    sets = min(len(heldout) // n, _BASELINE_REPEATS)
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
    rng = generator(_SEED, "halves", total)
    values = []
    for _ in range(_BASELINE_REPEATS // 2):
        order = torch.randperm(total, generator=rng).numpy()
        one, other = features[order[:size]], features[order[size:]]
        values.append(frechet(Statistics.from_features(one), Statistics.from_features(other)).value)
    scale = (1 / n + 1 / total) / (1 / size + 1 / (total - size))
    split = reference.meta["dataset"]["split"]
    source = f"{size} against {total - size} images of the {split} split, scaled by {scale:.3f}"
    return Baseline(float(np.mean(values)) * scale, source)
