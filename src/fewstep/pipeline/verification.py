"""Everything of a certificate that can be derived again, line by line: files, facts, metrics, images."""

import os
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from fewstep.checks import ConfigError, DataError, UserError
from fewstep.files import sha256_file
from fewstep.metrics.extractor import Extractor, load_extractor
from fewstep.metrics.protocols import find_protocol
from fewstep.metrics.reference import Reference, load_reference
from fewstep.pipeline.agreement import SAME_IMAGES, Line, Outcome, agreement, compared
from fewstep.pipeline.conditions import identity_of, with_conditions
from fewstep.pipeline.drawing import Drawing
from fewstep.pipeline.evaluation import certified_protocol, measured_in_both, require_preset
from fewstep.pipeline.features import FeatureStore
from fewstep.pipeline.images import ImageSet, open_images
from fewstep.pipeline.samples import parse_seeds, require_facts
from fewstep.pipeline.seeds import require_unseen, require_unseen_rows
from fewstep.pipeline.settings import DrawSettings, MeasureSettings
from fewstep.sampling.plan import plan_from_json
from fewstep.sampling.quantised import with_integers

S = TypeVar("S", MeasureSettings, DrawSettings)
Instruments = list[tuple[Reference, Extractor]]
"""The space that is reported and, where there is one, the one that plans were fitted in."""


@dataclass(frozen=True)
class Verifier:
    """Looks at all that a certificate names.

    Attributes: certificate: its content, already found to have the hash that it states. folder: where it stands; its
        paths are relative to that. places: role -> path to use instead. device: of networks. features: a folder in
        which fewstep evaluate kept features, or None to extract them again. max_pixels: as in `open_images`.
    """

    certificate: Mapping[str, Any]
    folder: Path
    places: Mapping[str, Path]
    device: str = "cpu"
    features: Path | None = None
    max_pixels: int | None = None

    def lines(self, *, resample: bool = False) -> Iterator[Line]:
        """Each line as soon as it is known; files come first, metrics after them."""
        yield Line("certificate", "held", "its content has the hash that it states")
        yield from self._plan()
        outcomes: dict[str, set[Outcome]] = {}
        for role in sorted(self.certificate["files"]):
            found = list(self._files(role))
            outcomes[role] = {line.outcome for line in found}
            yield from found
        images = yield from self._images(same_file=outcomes.get("images") == {"held"})
        measured = yield from self._instruments()
        if measured is not None and images is not None:
            yield from self._protocol(images, measured)
            yield from self._metrics(images, measured, what="metrics of these images", tolerance=SAME_IMAGES)
        if resample:
            yield from self._resampled(images, measured, changed="failed" in outcomes.get("model", ()))

    def _plan(self) -> Iterator[Line]:
        """What the certificate tells of its plan, for tables, is what the plan itself says."""
        stated = self.certificate["subject"]["plan"]
        if stated is None:
            return
        try:
            plan = plan_from_json(stated["steps"])
        except UserError as error:
            yield Line("plan", "failed", str(error))
            return
        found = {
            "hash": plan.hash,
            "name": plan.name,
            "sampler": plan.sampler,
            "grid": plan.provenance.get("grid", ""),
            "nfe": plan.nfe,
        }
        yield compared("plan", {name: stated[name] for name in found}, found, "as its nodes and steps say")
        try:
            seeds = parse_seeds(self.certificate["protocol"]["seeds"])
            require_unseen(plan, seeds)
            require_unseen_rows(plan, seeds, self.certificate["protocol"].get("conditions"))
        except UserError as error:
            yield Line("seeds", "failed", str(error))

    def _place(self, role: str) -> Path | None:
        if role in self.places:
            return self.places[role]
        recorded = self.certificate["files"].get(role)
        return None if recorded is None else self.folder / recorded["path"]

    def _hashes(self, role: str, place: Path) -> dict[Path, str]:
        """Each file of a role, and the hash that it should have."""
        recorded = self.certificate["files"].get(role, {"sha256": {}})["sha256"]
        # some files of a model of diffusers stand beside the folder of its network
        return {Path(os.path.normpath(place / name)): digest for name, digest in sorted(recorded.items())}

    def _missing(self, role: str) -> str | None:
        """Why a role cannot be reached, or None."""
        place = self._place(role)
        if place is None:
            return "the certificate does not say where it stands"
        absent = next((path for path in (place, *self._hashes(role, place)) if not path.exists()), None)
        return None if absent is None else f"there is no {absent}"

    def _files(self, role: str) -> Iterator[Line]:
        place = self._place(role)
        assert place is not None
        for path, digest in self._hashes(role, place).items():
            what = f"{role}: {path.name}"
            if not path.is_file():
                yield Line(what, "not reached", f"there is no {path}")
            elif (found := sha256_file(path)) == digest:
                yield Line(what, "held", "the bytes are those it names")
            elif role == "images" and role in self.places:
                yield Line(what, "not reached", "another file; its images and facts are looked at below")
            else:
                yield Line(
                    what, "failed", f"{path} has the sha256 {found[:12]}..., not {digest[:12]}...: changed"
                )

    def _images(self, *, same_file: bool) -> Generator[Line, None, ImageSet | None]:
        """Yields lines, returns the images or None."""
        place, missing = self._place("images"), self._missing("images")
        if place is None or missing is not None:
            yield Line("images", "not reached", missing or "")
            return None
        try:
            images = open_images(place, max_pixels=self.max_pixels)
            require_facts(place, images.meta or {})
        except UserError as error:
            yield Line("images", "failed", str(error))
            return None
        if images.sha256 != self.certificate["subject"]["images_sha256"]:
            yield Line("images", "failed", f"{place} holds other images than those that were measured")
            return None
        yield Line("images", "held", f"{len(images.images)} images, seeds {images.seeds}")
        yield self._facts(images.meta, timed=same_file)
        return images

    def _facts(self, meta: Mapping[str, Any] | None, *, timed: bool) -> Line:
        """What the certificate tells of how the images were made; times only where they are of this very run."""
        subject, costs = self.certificate["subject"], self.certificate["costs"]
        certified = {
            "model": subject["model"],
            "plan": subject["plan"] and subject["plan"]["steps"],
            "draw": subject["draw"],
            "costs": _counts(costs, timed=timed),
        }
        found: dict[str, Any] = dict.fromkeys(certified)
        if meta is not None:
            found = {
                "model": {"fingerprint": meta["model"]["fingerprint"], "name": meta["model"]["name"]},
                "plan": meta["plan"],
                "draw": {"guidance": meta["guidance"], "batch_size": meta["batch_size"]},
                "costs": _counts(meta["costs"], timed=timed),
            }
        return compared("facts of the images", certified, found, "model, plan, draw and costs")

    def _instruments(self) -> Generator[Line, None, Instruments | None]:
        """Yields lines, returns reference and extractor of each space, the reported one first, or None."""
        found: Instruments = []
        for prefix in ("", *(["fitted_"] if self.certificate["protocol"].get("fitted") else [])):
            extractor = yield from self._extractor(prefix)
            reference = yield from self._reference(prefix)
            if reference is not None and extractor is not None:
                found.append((reference, extractor))
            else:
                return None
        return found

    def _measured_by(self, prefix: str) -> Mapping[str, Any]:
        """What the certificate says of a space."""
        protocol = self.certificate["protocol"]
        space: Mapping[str, Any] = protocol["fitted"] if prefix else protocol
        return space

    def _extractor(self, prefix: str) -> Generator[Line, None, Extractor | None]:
        role = f"{prefix}extractor"
        certified, folder = self._measured_by(prefix)["extractor"], self._place(role)
        missing = None if folder is None else self._missing(role)
        if missing is not None:
            yield Line(role, "not reached", missing)
            return None
        in_openvino = certified["dtype"].endswith("/openvino")
        try:
            extractor = load_extractor(
                certified["id"] if folder is None else folder,
                device="cpu" if in_openvino else self.device,
                backend="openvino" if in_openvino else "torch",
            )
        except UserError as error:
            # public weights or OpenVINO that this machine does not have; damaged ones are a DataError
            yield Line(role, "not reached" if isinstance(error, ConfigError) else "failed", str(error))
            return None
        line = compared(role, certified, extractor.protocol, "its weights have the hash it names")
        yield line
        return extractor if line.outcome == "held" else None

    def _reference(self, prefix: str) -> Generator[Line, None, Reference | None]:
        role = f"{prefix}reference"
        certified, place, missing = self._measured_by(prefix), self._place(role), self._missing(role)
        if place is None or missing is not None:
            yield Line(role, "not reached", missing or "")
            return None
        try:
            reference = load_reference(place)
        except UserError as error:
            yield Line(role, "failed", str(error))
            return None
        data = {name: reference.meta["dataset"][name] for name in ("name", "fingerprint")}
        line = compared(
            role,
            {
                "reference": certified["reference"],
                "extractor": certified["extractor"],
                "data": self.certificate["subject"]["data"],
            },
            {"reference": reference.protocol, "extractor": reference.meta["extractor"], "data": data},
            "its numbers have the hash it names",
        )
        yield line
        return reference if line.outcome == "held" else None

    def _protocol(self, images: ImageSet, measured: Instruments) -> Iterator[Line]:
        certified, (reported, *fitted) = self.certificate["protocol"], measured
        try:
            found = certified_protocol(
                images, *reported, self._settings(), certified["preset"], fitted=next(iter(fitted), None)
            )
        except UserError as error:
            yield Line("protocol", "failed", str(error))
            return
        yield compared("protocol", {"protocol": certified}, {"protocol": found}, "as these files give it")
        if certified["preset"] is not None:
            try:
                require_preset(certified["preset"], certified, runs=find_protocol(certified["preset"]).runs)
                yield Line("preset", "held", f"this certificate keeps to {certified['preset']}")
            except UserError as error:
                yield Line("preset", "failed", str(error))

    def _settings(self) -> MeasureSettings:
        return _section(MeasureSettings, self.certificate["protocol"]["evaluation"])

    def _metrics(
        self,
        images: ImageSet,
        measured: Instruments,
        *,
        what: str,
        tolerance: float | None,
    ) -> Iterator[Line]:
        """One line a metric; a tolerance of None asks for a value within the certified interval."""
        store = None if self.features is None else FeatureStore(self.features)
        try:
            reported, *fitted = measured
            found = measured_in_both(
                lambda extractor: _features(images, extractor, store),
                reported,
                next(iter(fitted), None),
                self._settings(),
            )
        except UserError as error:
            yield Line(what, "failed", str(error))
            return
        certified = self.certificate["results"]
        for name in [*certified, *(name for name in found if name not in certified)]:
            yield agreement(name, certified.get(name), found.get(name), tolerance)

    def _resampled(
        self, images: ImageSet | None, measured: Instruments | None, *, changed: bool
    ) -> Iterator[Line]:
        """Args: changed: whether a file of the model is not as it was; no images are drawn then."""
        drawn = yield from self._drawn(changed=changed)
        if drawn is None:
            return
        again = "images drawn again"
        yield self._facts(drawn.meta, timed=False)
        if images is None and measured is not None:
            yield from self._protocol(drawn, measured)
        if drawn.sha256 == self.certificate["subject"]["images_sha256"]:
            yield Line(again, "held", "the same, to the byte")
            if images is not None or measured is None:
                return  # their metrics have been looked at, or cannot be
            yield from self._metrics(drawn, measured, what="metrics", tolerance=SAME_IMAGES)
            return
        detail = "not the same bytes, as on another machine"
        if images is not None:
            one, other = np.asarray(drawn.images[:], np.int16), np.asarray(images.images[:], np.int16)
            if one.shape != other.shape:
                yield Line(again, "failed", f"they are {one.shape}, those that were measured {other.shape}")
                return
            apart = np.abs(one - other)
            detail = f"{(apart > 0).mean():.2%} of the values differ, by up to {int(apart.max())} levels"
        if measured is None:
            yield Line(
                again, "not reached", f"{detail}; without reference and extractor that cannot be judged"
            )
            return
        yield Line(again, "held", f"{detail}; their metrics decide")
        yield from self._metrics(drawn, measured, what="metrics of new images", tolerance=None)

    def _drawn(self, *, changed: bool) -> Generator[Line, None, ImageSet | None]:
        """Yields lines, returns the images that model, plan and seeds give, or None."""
        from fewstep.interop.load import load_model

        what, subject = "images drawn again", self.certificate["subject"]
        place, missing = self._place("model"), self._missing("model")
        if None in (subject["model"], subject["plan"], subject["draw"]):
            missing = "the certificate does not say how they were made"
        if place is None or missing is not None:
            yield Line(what, "not reached", missing or "")
            return None
        try:
            model = None if changed else load_model(place, call=self._place("call"), device=self.device)
            if model is None or model.fingerprint != subject["model"]["fingerprint"]:
                yield Line(what, "failed", f"{place} is another model; nothing was drawn")
                return None
            conditions = self._place("conditions")
            column = self.certificate["files"].get("conditions", {}).get("column")
            if conditions is not None and column is not None:
                conditions = conditions.with_name(f"{conditions.name}:{column}")
            model = with_conditions(model, conditions)
            if identity_of(model) != self.certificate["protocol"].get("conditions"):
                yield Line(what, "failed", f"{conditions} holds other conditions; nothing was drawn")
                return None
            plan = plan_from_json(subject["plan"]["steps"])
            if (integers := self._place("integers")) is not None:
                model = with_integers(model, [(integers, plan)])
            settings = _section(DrawSettings, subject["draw"])
            seeds = parse_seeds(self.certificate["protocol"]["seeds"])
            # what was drawn by force is drawn again: nothing new is reported
            drawing = Drawing(
                model,
                seeds,
                settings,
                place,
                self.folder / "drawn.npz",
                True,
                conditions,
                self._place("call"),
            )
            samples = drawing.draw(plan)
        except UserError as error:
            yield Line(what, "failed", str(error))
            return None
        return ImageSet(
            samples.images,
            plan.name,
            place,
            seeds=samples.meta["seeds"],
            meta=samples.meta,
            stated_sha256=samples.sha256,
        )


def _features(images: ImageSet, extractor: Extractor, store: FeatureStore | None) -> Any:
    from fewstep.metrics.extractor import extract
    from fewstep.progress import track

    if store is not None and store.holds(images, extractor):
        return store.read(images, extractor)
    return extract(images.images, extractor, progress=track("features", unit="batch"))


def _section(kind: type[S], values: Mapping[str, Any]) -> S:
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}; got {first['input']!r:.60}."
        ) from None


def _counts(costs: Mapping[str, Any] | None, *, timed: bool) -> Mapping[str, Any] | None:
    """Costs that are the same on every machine, or all of them."""
    if costs is None or timed:
        return costs
    return {name: costs[name] for name in ("nfe", "network_calls")}
