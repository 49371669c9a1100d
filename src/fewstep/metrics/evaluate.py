"""All measurements on one set of samples, as the `results` of a certificate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.checks import ConfigError, DataError
from fewstep.metrics.baseline import SEED, real_baseline
from fewstep.metrics.extractor import Extractor, Images, extract
from fewstep.metrics.frechet import frechet
from fewstep.metrics.inception_score import inception_score, require_splits
from fewstep.metrics.kid import SEED as KID_SEED
from fewstep.metrics.kid import gaussian, kid, require_blocks
from fewstep.metrics.memorisation import memorisation
from fewstep.metrics.precision_recall import PrecisionRecall, precision_recall, require_neighbours
from fewstep.metrics.reference import Reference, require_extractor
from fewstep.metrics.statistics import Array, Statistics
from fewstep.metrics.uncertainty import (
    RESAMPLES,
    extrapolate,
    half_samples,
    normal_interval,
    require_extrapolable,
    require_halves,
    spread,
    wilson_interval,
)
from fewstep.progress import Progress
from fewstep.rng import generator

METRICS = ("fd", "kid", "cmmd", "pr", "dc", "is", "inf", "mem")
"""Fréchet distance; kernel distance; that of CLIP's features with a Gaussian kernel; precision and recall; density and
coverage; the classifier's score; the Fréchet distance at infinitely many images; the share of samples nearer to
training than to held-out images."""
DEFAULT_METRICS = ("fd", "kid", "pr")

_LARGEST_NEIGHBOURHOOD = 10_000
_OFFICIAL_IMAGES = 4096

OFFICIAL = {
    "inception2015": ("FID", "-inception2015"),
    "inception2015-spatial": ("sFID", "-inception2015"),
    "inception2015-clean": ("cleanFID", ""),
    "inception2015-halfpixel": ("FID", "-pytorchfid"),
}
"""Extractor -> how its Fréchet distance is named: before and after what tells the extrapolated one apart."""

Record = dict[str, Any]


def metric_name(metric: str, extractor: Extractor, n: int) -> str:
    """The name under which a number is reported: metric, extractor, resize, dtype and number of images.

    "FID" is the official features on at least twice as many images as features; all else is "FD".
    """
    return name_in(metric, extractor.protocol, n)


def name_in(metric: str, extractor: Mapping[str, str], n: int) -> str:
    """As `metric_name`, of what a certificate says of the extractor, `Extractor.protocol`."""
    id, resize, dtype = extractor["id"], extractor["resize"], extractor["dtype"]
    count = f"{n / 1000:g}k" if n >= 1000 and n % 100 == 0 else str(n)
    computed = "" if dtype == "float32" else f"/{dtype}"
    if metric in ("FD", "FDinf") and id in OFFICIAL and n >= _OFFICIAL_IMAGES:
        stem, tail = OFFICIAL[id]
        return f"{stem}{metric.removeprefix('FD')}{tail}{computed}#{count}"
    if metric == "IS" and id not in OFFICIAL:
        metric = "ES"
    at = "" if resize == "none" else f"@{resize}"
    return f"{metric}-{id}{at}{computed}#{count}"


def evaluate_samples(
    samples: Images | NDArray[Any],
    reference: Reference,
    extractor: Extractor,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress[int] = iter,
) -> dict[str, Record]:
    """Measure samples against a reference.

    The reference keeps its factor and its baselines: load it and the extractor once for many sets of samples.

    Args: samples: uint8 images, a tensor (N, C, H, W), an array (N, H, W, C) or files; or their features, a
        float array (N, D). metrics: of METRICS; "kid", "pr", "dc" and "mem" need a reference with features, "mem"
        held-out ones, too, and "is" an extractor with logits. level: of the intervals. resamples, seed: of the
        half-samples; equal ones make replicates of two sets paired.
    Returns: Metric name -> value, interval and what else belongs to it, plain numbers and strings.
    Raises: ConfigError: an unknown metric, another extractor, or what a metric needs is not there. DataError:
        images that do not fit the extractor, NaN, too few images.
    """
    require_measurable(metrics, reference, extractor, len(samples))
    is_features = isinstance(samples, np.ndarray) and samples.ndim == 2
    features = np.asarray(samples) if is_features else extract(samples, extractor, progress=progress)
    measured = _Measured(features, reference, extractor, level, resamples, seed)
    return {
        metric_name(label, extractor, measured.fake.n or 0): record
        for name in METRICS
        if name in metrics
        for label, record in _RECORDS[name](measured).items()
    }


def require_measurable(metrics: Sequence[str], reference: Reference, extractor: Extractor, n: int) -> None:
    """Raise what `evaluate_samples` raises about all but the images themselves, of which there are `n`."""
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ConfigError(f"metrics must be of {', '.join(METRICS)}; got {', '.join(unknown) or 'none'}.")
    require_extractor(reference.meta, extractor)
    for name in _REQUIRE.keys() & set(metrics):
        _REQUIRE[name](reference, extractor)
    if n < 2:
        raise DataError(f"A set must have at least 2 images, got {n}; draw more samples.")
    for name in METRICS:
        if name in metrics and name in _REQUIRE_IMAGES:
            _REQUIRE_IMAGES[name](n, reference, extractor)


@dataclass(frozen=True)
class _Measured:
    """One set of samples and what its metrics share, computed once."""

    features: NDArray[Any]
    reference: Reference
    extractor: Extractor
    level: float
    resamples: int
    seed: int

    @cached_property
    def fake(self) -> Statistics:
        return Statistics.from_features(self.features)

    @cached_property
    def replicates(self) -> Array:
        return half_samples(
            self.features, self.reference.statistics, resamples=self.resamples, seed=self.seed
        )

    @cached_property
    def overlap(self) -> tuple[PrecisionRecall, int]:
        """Precision and its kin, and the number of images on either side."""
        real = _real_features(self.reference)
        # Balls shrink as a set grows, hence equal sizes; the quadratic cost sets the largest.
        n = min(len(self.features), len(real), _LARGEST_NEIGHBOURHOOD)
        return precision_recall(_subset(self.features, n, "fake"), _subset(real, n, "real")), n

    def by_error(self, value: float, error: float, method: str) -> Record:
        """Value with a normal interval."""
        interval = list(normal_interval(value, error, self.level))
        return {"value": value, "interval": interval, "level": self.level, "interval_method": method}


def _frechet(measured: _Measured) -> dict[str, Record]:
    reference = measured.reference
    distance = frechet(measured.fake, reference.statistics)
    assert measured.fake.n is not None
    baseline = real_baseline(reference, measured.fake.n)
    sd = spread(measured.replicates)
    record = measured.by_error(distance.value, sd, "half-sampling")
    record["interval"][0] = max(record["interval"][0], 0.0)
    record |= {
        "replicates": _short(measured.replicates),
        "resample_seed": measured.seed,
        "mean_term": distance.mean_term,
        "trace_term": distance.trace_term,
        "rank": distance.rank,
        "baseline": None if baseline is None else baseline.value,
        "baseline_source": None if baseline is None else baseline.source,
    }
    return {"FD": record}


def _short(replicates: Array) -> list[float]:
    """Nine digits are far below the spread of the replicates, and keep the file short."""
    return [float(f"{value:.9g}") for value in replicates]


def _kid(measured: _Measured) -> dict[str, Record]:
    statistics, real = measured.reference.statistics, _real_features(measured.reference)
    # Official KID takes Inception features as they are; others get unit mean variance in the reference.
    variance = float(np.trace(statistics.cov)) / statistics.dim
    official = measured.extractor.id in OFFICIAL
    scale = 1.0 if official else max(variance, np.finfo(float).tiny) ** 0.5
    found = kid(measured.features, real, scale=scale)
    record = measured.by_error(found.value, found.standard_error, "block jackknife")
    return {"KID": {**record, "replicates": _short(found.replicates), "resample_seed": KID_SEED}}


def _cmmd(measured: _Measured) -> dict[str, Record]:
    """1000 times the squared discrepancy, as published; unbiased, where the authors' code adds some 5 / N."""
    found = kid(measured.features, _real_features(measured.reference), kernel=gaussian)
    record = measured.by_error(1000 * found.value, 1000 * found.standard_error, "block jackknife")
    return {"CMMD": {**record, "replicates": _short(1000 * found.replicates), "resample_seed": KID_SEED}}


def _precision_recall(measured: _Measured) -> dict[str, Record]:
    found, n = measured.overlap
    values = (("precision", found.precision), ("recall", found.recall))
    return {name: _fraction(measured, value, n) for name, value in values}


def _density_coverage(measured: _Measured) -> dict[str, Record]:
    found, n = measured.overlap
    density = measured.by_error(found.density, found.density_error, "spread over images")
    return {"density": {**density, "n": n}, "coverage": _fraction(measured, found.coverage, n)}


def _fraction(measured: _Measured, value: float, n: int) -> Record:
    return {
        "value": value,
        "interval": list(wilson_interval(value, n, measured.level)),
        "level": measured.level,
        "interval_method": "wilson",
        "n": n,
    }


def _score(measured: _Measured) -> dict[str, Record]:
    assert measured.extractor.head is not None
    found = inception_score(measured.extractor.head.logits(measured.features))
    record = measured.by_error(found.value, found.standard_error, "delta method")
    return {"IS": {**record, "split_sd": found.split_sd}}


def _extrapolated(measured: _Measured) -> dict[str, Record]:
    found = extrapolate(measured.features, measured.reference.statistics)
    # The intercept weighs all images as FD(N) does, so that it varies hardly more.
    sd = spread(measured.replicates)
    record = measured.by_error(found.value, sd, "half-sampling at N")
    return {"FDinf": {**record, "slope": found.slope, "r2": found.r2}}


def _memorised(measured: _Measured) -> dict[str, Record]:
    training, heldout = _real_features(measured.reference), measured.reference.heldout
    assert heldout is not None
    if measured.reference.meta["dataset"]["heldout_split"] == "train":  # the reference is the test split
        training, heldout = heldout, training
    m = min(len(training), len(heldout), _LARGEST_NEIGHBOURHOOD)
    found = memorisation(measured.features, _subset(training, m, "training"), _subset(heldout, m, "held out"))
    record = {
        "value": found.share,
        "interval": list(wilson_interval(found.share, found.effective_n, measured.level)),
        "level": measured.level,
        "interval_method": "wilson, clustered",
        "n": m,
        "median_ratio": found.median_ratio,
        "null_sd": found.null_sd,
    }
    return {"memorisation": record}


_RECORDS: dict[str, Callable[[_Measured], dict[str, Record]]] = {
    "fd": _frechet,
    "kid": _kid,
    "cmmd": _cmmd,
    "pr": _precision_recall,
    "dc": _density_coverage,
    "is": _score,
    "inf": _extrapolated,
    "mem": _memorised,
}


def _require_features(reference: Reference, _: Extractor) -> None:
    _real_features(reference)


def _require_heldout(reference: Reference, _: Extractor) -> None:
    _real_features(reference)
    if reference.heldout is None:
        raise ConfigError(
            "The memorisation check needs a reference with held-out images, but this one has none; make it of a "
            "dataset with a second split, or leave mem out of the metrics."
        )


def _require_head(_: Reference, extractor: Extractor) -> None:
    if extractor.head is None:
        raise ConfigError(
            f"The score needs an extractor with logits, but {extractor.id} has none; use inception2015 or a "
            "trained classifier, or leave is out of the metrics."
        )


def _require_clip(reference: Reference, extractor: Extractor) -> None:
    if not extractor.id.startswith("clip-"):
        raise ConfigError(
            f"CMMD is of CLIP's features, but the extractor is {extractor.id}; take clip-vitl14-336, or leave cmmd out "
            "of the metrics."
        )
    _real_features(reference)


_REQUIRE = {
    "kid": _require_features,
    "cmmd": _require_clip,
    "pr": _require_features,
    "dc": _require_features,
    "mem": _require_heldout,
    "is": _require_head,
}


_REQUIRE_IMAGES: dict[str, Callable[[int, Reference, Extractor], None]] = {
    "fd": lambda n, reference, extractor: require_halves(n),
    "kid": lambda n, reference, extractor: require_blocks(n, len(_real_features(reference))),
    "cmmd": lambda n, reference, extractor: require_blocks(n, len(_real_features(reference))),
    "pr": lambda n, reference, extractor: require_neighbours(n, len(_real_features(reference))),
    "dc": lambda n, reference, extractor: require_neighbours(n, len(_real_features(reference))),
    "is": lambda n, reference, extractor: require_splits(n),
    "inf": lambda n, reference, extractor: require_extrapolable(n, extractor.dim),
}
"""Metric -> what it needs of the number of images."""


def _real_features(reference: Reference) -> NDArray[Any]:
    if reference.statistics.features is None:
        raise ConfigError(
            "KID, precision, recall, density, coverage and memorisation need a reference that keeps its features, "
            "but this one holds mean and covariance alone; leave kid, pr, dc and mem out of the metrics."
        )
    return reference.statistics.features


def _subset(features: NDArray[Any], n: int, stream: str) -> NDArray[Any]:
    if n == len(features):
        return features
    order = torch.randperm(len(features), generator=generator(SEED, stream, len(features)))
    rows: NDArray[Any] = features[np.sort(order[:n].numpy())]
    return rows
