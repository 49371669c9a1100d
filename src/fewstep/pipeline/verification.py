"""Everything of a certificate that can be derived again, line by line: files, facts, metrics, images."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fewstep.checks import UserError
from fewstep.files import sha256_file
from fewstep.metrics.certificate import protocol_difference
from fewstep.metrics.evaluate import evaluate_samples
from fewstep.metrics.extractor import Extractor, load_extractor
from fewstep.metrics.protocols import find_protocol
from fewstep.metrics.reference import Reference, load_reference
from fewstep.pipeline.config import EvaluateSettings, SampleSettings
from fewstep.pipeline.drawing import Drawing
from fewstep.pipeline.evaluation import certified_protocol, require_preset
from fewstep.pipeline.features import FeatureStore
from fewstep.pipeline.images import ImageSet, open_images
from fewstep.pipeline.samples import parse_seeds

Outcome = Literal["held", "failed", "not reached"]

SAME_IMAGES = 1e-4
"""Relative difference of a metric on the same images that another machine's rounding may cause: features of two
processors differ by about 1e-6."""


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    what: str
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Verifier:
    """Looks at all that a certificate names.

    Attributes: certificate: its content, already found to be signed by its own hash. folder: where it stands; its
        paths are relative to that. places: role -> path to use instead. device: of networks. features: a folder in
        which fewstep evaluate kept features, or None to extract them again.
    """

    certificate: Mapping[str, Any]
    folder: Path
    places: Mapping[str, Path]
    device: str = "cpu"
    features: Path | None = None

    def lines(self, *, resample: bool = False) -> Iterator[Line]:
        """Each line as soon as it is known; files come first, metrics after them."""
        yield Line("certificate", "held", "its content has the hash that it states")
        for role in sorted(self.certificate["files"]):
            yield from self._files(role)
        images = yield from self._images()
        measured = yield from self._instruments()
        if measured is not None and images is not None:
            yield from self._protocol(images, *measured)
            yield from self._metrics(images, *measured, what="metrics of these images", tolerance=SAME_IMAGES)
        if resample:
            yield from self._resampled(images, measured)

    def _place(self, role: str) -> Path | None:
        if role in self.places:
            return self.places[role]
        recorded = self.certificate["files"].get(role)
        return None if recorded is None else self.folder / recorded["path"]

    def _files(self, role: str) -> Iterator[Line]:
        place = self._place(role)
        assert place is not None
        for name, digest in sorted(self.certificate["files"][role]["sha256"].items()):
            path = place / name if name else place
            what = f"{role}: {path.name}"
            if not path.is_file():
                yield Line(what, "not reached", f"there is no {path}")
            elif (found := sha256_file(path)) == digest:
                yield Line(what, "held", "the bytes are those it names")
            elif role == "images":
                yield Line(what, "not reached", "another file; its images and facts are looked at below")
            else:
                yield Line(
                    what, "failed", f"{path} has the sha256 {found[:12]}..., not {digest[:12]}...: changed"
                )

    def _images(self) -> Generator[Line, None, ImageSet | None]:
        """Yields lines, returns the images or None."""
        place, subject = self._place("images"), self.certificate["subject"]
        if place is None or not place.exists():
            yield Line("images", "not reached", f"there is no {place}")
            return None
        try:
            images = open_images(place)
        except UserError as error:
            yield Line("images", "failed", str(error))
            return None
        if images.sha256 != subject["images_sha256"]:
            yield Line("images", "failed", f"{place} holds other images than those that were measured")
            return None
        yield Line("images", "held", f"{len(images.images)} images, seeds {images.seeds}")
        wrong = None if images.meta is None else _other_facts(subject, images.meta)
        if wrong is not None:
            yield Line("facts of the images", "failed", wrong)
        return images

    def _instruments(self) -> Generator[Line, None, tuple[Reference, Extractor] | None]:
        """Yields lines, returns the reference and the extractor, or None."""
        protocol = self.certificate["protocol"]
        place, folder = self._place("reference"), self._place("extractor")
        name = protocol["extractor"]["id"] if folder is None else folder
        if place is None or not place.exists():
            yield Line("reference", "not reached", f"there is no {place}")
            return None
        try:
            backend = "openvino" if protocol["extractor"]["dtype"].endswith("/openvino") else "torch"
            extractor = load_extractor(name, device=self.device, backend=backend)
            reference = load_reference(place, extractor=extractor)
        except UserError as error:
            yield Line("reference and extractor", "failed", str(error))
            return None
        for what, found in (("reference", reference.protocol), ("extractor", extractor.protocol)):
            problem = protocol_difference({"protocol": protocol[what]}, {"protocol": found})
            if problem is not None:
                yield Line(what, "failed", f"certified and found: {problem.removeprefix('protocol.')}")
                return None
            yield Line(what, "held", "its numbers and weights have the hashes it names")
        return reference, extractor

    def _protocol(self, images: ImageSet, reference: Reference, extractor: Extractor) -> Iterator[Line]:
        certified = self.certificate["protocol"]
        found = certified_protocol(images, reference, extractor, self._settings(), certified["preset"])
        problem = protocol_difference(self.certificate, {"protocol": found})
        if problem is None:
            yield Line("protocol", "held", "as these files give it")
        else:
            yield Line("protocol", "failed", f"certified and found: {problem}")
        if certified["preset"] is not None:
            try:
                require_preset(certified["preset"], certified, runs=find_protocol(certified["preset"]).runs)
                yield Line("preset", "held", f"this certificate keeps to {certified['preset']}")
            except UserError as error:
                yield Line("preset", "failed", str(error))

    def _settings(self) -> EvaluateSettings:
        return EvaluateSettings(**self.certificate["protocol"]["evaluation"])

    def _metrics(
        self,
        images: ImageSet,
        reference: Reference,
        extractor: Extractor,
        *,
        what: str,
        tolerance: float | None,
    ) -> Iterator[Line]:
        """One line a metric; a tolerance of None asks for a value within the certified interval."""
        store = None if self.features is None else FeatureStore(self.features)
        try:
            features = _features(images, extractor, store)
        except UserError as error:
            yield Line(what, "failed", str(error))
            return
        settings = self._settings()
        found = evaluate_samples(
            features,
            reference,
            extractor,
            metrics=settings.metrics,
            level=settings.level,
            resamples=settings.resamples,
            seed=settings.seed,
        )
        for name, record in self.certificate["results"].items():
            yield _agreement(name, record, found.get(name), tolerance)

    def _resampled(
        self, images: ImageSet | None, measured: tuple[Reference, Extractor] | None
    ) -> Iterator[Line]:
        drawn = yield from self._drawn()
        if drawn is None:
            return
        subject = self.certificate["subject"]
        if drawn.sha256 == subject["images_sha256"]:
            yield Line("images drawn again", "held", "the same, to the byte")
            if images is not None or measured is None:
                return  # their metrics have been looked at, or cannot be
            yield from self._metrics(drawn, *measured, what="metrics", tolerance=SAME_IMAGES)
            return
        detail = "not the same bytes, as on another machine"
        if images is not None:
            apart = np.abs(np.asarray(drawn.images, np.int16) - np.asarray(images.images, np.int16))
            detail = f"{(apart > 0).mean():.2%} of the values differ, by up to {int(apart.max())} levels"
        if measured is None:
            yield Line("images drawn again", "failed", f"{detail}; without a reference that cannot be judged")
            return
        yield Line("images drawn again", "held", f"{detail}; their metrics decide")
        yield from self._metrics(drawn, *measured, what="metrics of new images", tolerance=None)

    def _drawn(self) -> Generator[Line, None, ImageSet | None]:
        """Yields lines, returns the images that model, plan and seeds give, or None."""
        from fewstep.interop.load import load_model
        from fewstep.sampling.plan import plan_from_json

        subject, place = self.certificate["subject"], self._place("model")
        if subject["plan"] is None or place is None or not place.exists():
            yield Line("images drawn again", "not reached", f"there is no model at {place}")
            return None
        try:
            model = load_model(place, device=self.device)
            if model.fingerprint != subject["model"]["fingerprint"]:
                yield Line("images drawn again", "failed", f"{place} is another model")
                return None
            plan = plan_from_json(subject["plan"]["steps"])
            settings = SampleSettings(**subject["draw"])
            seeds = parse_seeds(self.certificate["protocol"]["seeds"])
            samples = Drawing(model, seeds, settings, place, self.folder / "drawn.npz").draw(plan)
        except UserError as error:
            yield Line("images drawn again", "failed", str(error))
            return None
        return ImageSet(
            samples.images, plan.name, place, seeds=samples.meta["seeds"], stated_sha256=samples.sha256
        )


def _features(images: ImageSet, extractor: Extractor, store: FeatureStore | None) -> Any:
    from fewstep.metrics.extractor import extract
    from fewstep.progress import track

    if store is not None and store.holds(images, extractor):
        return store.read(images, extractor)
    return extract(images.images, extractor, progress=track("features", unit="batch"))


def _other_facts(subject: Mapping[str, Any], meta: Mapping[str, Any]) -> str | None:
    """The first fact about the images that the certificate tells otherwise."""
    pairs = {
        "model": (subject["model"] and subject["model"]["fingerprint"], meta["model"]["fingerprint"]),
        "plan": (subject["plan"] and subject["plan"]["steps"], meta["plan"]),
        "guidance": (subject["draw"] and subject["draw"]["guidance"], meta["guidance"]),
    }
    for name, (certified, found) in pairs.items():
        if certified != found:
            return f"the {name} is {certified!r:.60} in the certificate and {found!r:.60} beside the images"
    return None


def _agreement(
    name: str, certified: Mapping[str, Any], found: Mapping[str, Any] | None, tolerance: float | None
) -> Line:
    if found is None:
        return Line(name, "failed", "certified, but this measurement does not give it")
    value, again = certified["value"], found["value"]
    interval = certified.get("interval")
    detail = f"certified {value:.6g}, found {again:.6g}"
    if tolerance is not None:
        same = abs(again - value) <= tolerance * max(abs(value), 1e-3)
        parts = same and _intervals_agree(interval, found.get("interval"), tolerance)
        return Line(name, "held" if parts else "failed", detail)
    inside = interval is not None and interval[0] <= again <= interval[1]
    return Line(name, "held" if inside else "failed", f"{detail}, interval {interval}")


def _intervals_agree(certified: list[float] | None, found: list[float] | None, tolerance: float) -> bool:
    if certified is None or found is None:
        return certified == found
    width = max(abs(certified[1] - certified[0]), abs(certified[1]), 1e-3)
    # a spread of replicates is a difference of like numbers: its rounding is larger than theirs
    return all(abs(a - b) <= 10 * tolerance * width for a, b in zip(certified, found, strict=True))
