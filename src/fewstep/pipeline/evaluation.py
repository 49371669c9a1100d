"""From a set of images to its certificate."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fewstep.checks import ConfigError
from fewstep.data.image_files import ImageFiles
from fewstep.data.left_out import sentence
from fewstep.files import canonical_json
from fewstep.metrics.certificate import QUANTISATION, UNKNOWN_BYTES, build_certificate, require_parts
from fewstep.metrics.evaluate import Record, evaluate_samples, require_measurable
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.protocols import check, find_protocol
from fewstep.metrics.reference import Reference
from fewstep.pipeline.environment import environment
from fewstep.pipeline.features import FeatureStore
from fewstep.pipeline.images import ImageSet, open_images
from fewstep.pipeline.recorded import record, seen_from
from fewstep.pipeline.samples import parse_seeds, require_facts
from fewstep.pipeline.settings import MeasureSettings
from fewstep.pipeline.stage.spec import Spec

log = logging.getLogger(__name__)

FITTED_METRICS = ("fd",)
"""What is measured in features that plans were fitted in."""


@dataclass(frozen=True)
class MeasuredBy:
    """Reference images in the features of an extractor, and where both stand."""

    reference: Reference
    reference_path: Path
    extractor: Extractor
    extractor_path: Path


@dataclass(frozen=True)
class Evaluation:
    """What sets of images are measured by, loaded once for all of them.

    Attributes:
        fitted: features that plans were fitted in: their Fréchet distance stands beside those of `extractor`, which
            nothing was fitted to and rows are ranked by. None: there is one space alone.
        max_pixels: as in `open_images`.

    Raises:
        ConfigError: both spaces are one.
    """

    reference: Reference
    reference_path: Path
    extractor_path: Path
    extractor: Extractor
    settings: MeasureSettings
    preset: str | None
    store: FeatureStore
    max_pixels: int | None = None
    fitted: MeasuredBy | None = None

    def __post_init__(self) -> None:
        if self.fitted is not None:
            require_other_features(self.extractor, self.fitted.extractor)

    @property
    def extractors(self) -> list[Extractor]:
        """All through which images are seen."""
        return [self.extractor, *([] if self.fitted is None else [self.fitted.extractor])]

    def certificate(self, path: Path, beside: Path, spec: Spec | None) -> dict[str, Any]:
        """Measure one set; `beside` is the folder in which the certificate will stand."""
        images = open_images(path, max_pixels=self.max_pixels)
        results = measured_in_both(
            lambda extractor: self.store.read(images, extractor),
            (self.reference, self.extractor),
            None if self.fitted is None else (self.fitted.reference, self.fitted.extractor),
            self.settings,
        )
        return build_certificate(
            subject=_subject(images, self.reference, images.sha256),
            protocol=self.protocol_of(images),
            results=results,
            costs=images.meta["costs"] if images.meta else None,
            environment=environment(),
            files=self._files(images, beside),
            spec_key=spec.key if spec else None,
        )

    def protocol_of(self, images: ImageSet) -> dict[str, Any]:
        """All that must agree before the certificate of these images is compared with another."""
        fitted = None if self.fitted is None else (self.fitted.reference, self.fitted.extractor)
        return certified_protocol(
            images, self.reference, self.extractor, self.settings, self.preset, fitted=fitted
        )

    def require_preset(self, sets: Sequence[ImageSet]) -> None:
        """Raise ConfigError where the sets are not what the preset asks for.

        Sets of one model, plan and guidance are its runs, and so are those of another program.
        """
        if self.preset is None:
            return
        several = find_protocol(self.preset).runs > 1
        groups: dict[str, list[ImageSet]] = {}
        for images in sets:
            groups.setdefault(_maker(images), []).append(images)
        for group in groups.values():
            if several:
                _require_independent(group)
            for images in group:
                require_preset(self.preset, self.protocol_of(images), runs=len(group) if several else 1)

    def require_measurable(self, sets: Sequence[ImageSet]) -> None:
        """Raise, before hours of work, what `evaluate_samples` would raise after them; log what is left out."""
        for images in sets:
            if isinstance(images.images, ImageFiles) and images.images.left_out:
                log.warning("%s, left out: %s", images.path, sentence(images.images.left_out))
            self._require_described(images)
            height, width, channels = images.shape
            for extractor in self.extractors:
                extractor.require_shape((channels, height, width))
            n = len(images.images)
            require_measurable(self.settings.metrics, self.reference, self.extractor, n)
            if self.fitted is not None:
                require_measurable(FITTED_METRICS, self.fitted.reference, self.fitted.extractor, n)

    def _require_described(self, images: ImageSet) -> None:
        """Raise DataError where what is stated beside images and reference makes no certificate."""
        meta, data = images.meta or {}, self.reference.meta["dataset"].get("files")
        require_facts(images.path, meta)
        require_parts(
            f"{images.path}, measured against {self.reference_path},",
            subject=_subject(images, self.reference, "0" * 64),
            protocol=self.protocol_of(images),
            costs=meta.get("costs"),
            files={**meta.get("files", {}), **({"data": data} if data else {})},
        )

    def _files(self, images: ImageSet, beside: Path) -> dict[str, Any]:
        files = {
            "reference": record(self.reference_path, beside=beside),
            "images": record(images.path, beside=beside),
        }
        if self.extractor_path.is_dir():
            files["extractor"] = record(self.extractor_path, beside=beside)
        if self.fitted is not None:
            files["fitted_reference"] = record(self.fitted.reference_path, beside=beside)
            if self.fitted.extractor_path.is_dir():
                files["fitted_extractor"] = record(self.fitted.extractor_path, beside=beside)
        for role, recorded in (images.meta or {}).get("files", {}).items():
            files[role] = seen_from(recorded, images.path.parent, beside)
        dataset = self.reference.meta["dataset"].get("files")
        if dataset:
            files["data"] = seen_from(dataset, self.reference_path.parent, beside)
        return files


def require_other_features(reported: Extractor, fitted: Extractor) -> None:
    """Raise ConfigError where the features that are reported are those that plans were fitted in."""
    if reported.weights_sha256 == fitted.weights_sha256:
        raise ConfigError(
            f"The features that are reported must differ from those that plans were fitted in, but both are of "
            f"{fitted.id}; take another extractor, or leave the fitted ones out."
        )


def measured_in_both(
    features: Callable[[Extractor], NDArray[Any]],
    reported: tuple[Reference, Extractor],
    fitted: tuple[Reference, Extractor] | None,
    settings: MeasureSettings,
) -> dict[str, Record]:
    """All metrics in the features that are reported, and the Fréchet distance in the fitted ones.

    Args: features: of the images, by extractor, (N, D).
    Raises: as `evaluate_samples`.
    """
    results: dict[str, Record] = {}
    for measured_by, metrics in ((reported, settings.metrics), (fitted, FITTED_METRICS)):
        if measured_by is not None:
            results |= evaluate_samples(
                features(measured_by[1]),
                *measured_by,
                metrics=metrics,
                level=settings.level,
                resamples=settings.resamples,
                seed=settings.seed,
            )
    return results


def _subject(images: ImageSet, reference: Reference, sha256: str) -> dict[str, Any]:
    meta, dataset = images.meta, reference.meta["dataset"]
    subject: dict[str, Any] = {
        "model": None,
        "plan": None,
        "draw": None,
        "data": {"name": dataset["name"], "fingerprint": dataset["fingerprint"]},
        "images_sha256": sha256,
    }
    if meta is None:
        return subject
    made_by = meta["plan"]["provenance"]
    return subject | {
        "model": {"fingerprint": meta["model"]["fingerprint"], "name": meta["model"]["name"]},
        "plan": {
            "hash": meta["plan_hash"],
            "name": meta["plan_name"],
            "sampler": made_by.get("sampler") or made_by.get("preset") or meta["plan_name"],
            "grid": made_by.get("grid", ""),
            "nfe": meta["nfe"],
            "steps": meta["plan"],
        },
        "draw": {"guidance": meta["guidance"], "batch_size": meta["batch_size"]},
    }


def _maker(images: ImageSet) -> str:
    """What made the images, as a key."""
    if images.meta is None:
        return ""
    return canonical_json(_made_with(images.meta))


def _made_with(meta: Mapping[str, Any]) -> list[Any]:
    return [meta["model"], meta["plan_hash"], meta["guidance"], meta.get("conditions")]


def _require_independent(runs: Sequence[ImageSet]) -> None:
    """Raise ConfigError where two runs share images or seeds."""
    for one, other in combinations(runs, 2):
        shared = one.sha256 == other.sha256
        if not shared and one.meta and other.meta:
            a, b = parse_seeds(one.seeds), parse_seeds(other.seeds)
            shared = max(a[0], b[0]) <= min(a[-1], b[-1])
        if shared:
            raise ConfigError(
                f"Runs must be independent, but {one.path} and {other.path} share seeds or images; draw them with "
                "other --seeds."
            )


def require_preset(name: str, found: Mapping[str, Any], *, runs: int) -> None:
    """Raise ConfigError where a certificate's protocol is not that of the published preset."""
    check(
        name,
        n=found["n"],
        extractor=found["extractor"],
        reference=found["reference"],
        quantisation=found["quantisation"],
        codec=found["codec"],
        metrics=found["evaluation"]["metrics"],
        ema=found["ema"] is not False,
        runs=runs,
    )


def certified_protocol(
    images: ImageSet,
    reference: Reference,
    extractor: Extractor,
    settings: MeasureSettings,
    preset: str | None = None,
    *,
    fitted: tuple[Reference, Extractor] | None = None,
) -> dict[str, Any]:
    """All that must agree before two certificates are compared."""
    meta = images.meta
    beside = {} if fitted is None else {"reference": fitted[0].protocol, "extractor": fitted[1].protocol}
    return {
        "preset": preset,
        "n": len(images.images),
        "seeds": images.seeds,
        "reference": reference.protocol,
        "extractor": extractor.protocol,
        "codec": images.codec,
        "quantisation": QUANTISATION if meta else UNKNOWN_BYTES,
        "ema": meta["model"]["ema"] if meta else None,
        "dtype": meta["dtype"] if meta else None,
        # of samples files that were written before there were any: none
        "conditions": meta.get("conditions") if meta else None,
        **({"fitted": beside} if beside else {}),
        "evaluation": {
            "metrics": list(settings.metrics),
            "level": settings.level,
            "resamples": settings.resamples,
            "seed": settings.seed,
        },
    }
