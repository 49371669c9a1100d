"""Boundaries of some attributes: the mixing step, planes in both spaces, and the choice of C."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.data.packed import Dataset, load_dataset
from fewstep.data.pixels import to_unit
from fewstep.diffusion.denoiser import Model
from fewstep.files import read_json, write_json
from fewstep.methods.boundary.attribute import WITH, WITHOUT, Attribute, Judge
from fewstep.methods.boundary.boundary import LEAST_ACCURACY, Boundary, save_boundary
from fewstep.methods.boundary.choice import Curve, best, scores
from fewstep.methods.boundary.edit import Start, generated
from fewstep.methods.boundary.latents import SPACES, Latents, inverted, plan_from, plan_to, require_editable
from fewstep.methods.boundary.mixing import Point, curves, mixing_step
from fewstep.methods.boundary.plane import FEW, Plane, fit_plane, require_both
from fewstep.methods.boundary.stage.fit.settings import BoundarySettings
from fewstep.metrics.extractor import Extractor
from fewstep.progress import Track
from fewstep.rng import generator
from fewstep.sampling.plan import Plan

log = logging.getLogger(__name__)
SCHEMA = "fewstep.boundaries/1"
RECORD = "boundary.json"
PUBLISHED_C = 1.0
"""Of the planes behind the curve of accuracy."""

Record = dict[str, Any]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Training images of an attribute.

    Attributes: fit: rows that planes are fitted to. positive: which of them have it. choice: further rows.
        choice_positive: which of those have it.
    """

    fit: NDArray[np.int64]
    positive: Bools
    choice: NDArray[np.int64]
    choice_positive: Bools


@dataclass(frozen=True)
class Fitting:
    """A model, images, and what edits are judged by where that is no measure of pixels."""

    model: Model
    data: Path
    settings: BoundarySettings
    extractor: Extractor | None = None
    plan: Plan | None = None

    def all(self, track: Track) -> tuple[Record, dict[str, Boundary]]:
        """The record, and the boundaries by the names of their files.

        Raises: ConfigError: the model cannot be edited, or an attribute, step, plan or C that cannot be.
            DataError: too few images on a side of an attribute.
        """
        require_editable(self.model)
        if self._dataset.shape != self.model.shape:
            raise DataError(
                f"Images must be of the model's shape, {self.model.shape}; those of {self.data} are "
                f"{self._dataset.shape}."
            )
        attributes = [Attribute(name) for name in self.settings.attribute]
        files = [attribute.file for attribute in attributes]
        if both := next((file for file in files if files.count(file) > 1), None):
            raise ConfigError(f"Attributes must differ in the names of their files; two are called {both}.")
        rows = {attribute: self._rows(attribute) for attribute in attributes}
        judges = {attribute: self._judge(attribute) for attribute in attributes}
        seconds: dict[str, float] = {}
        started = time.perf_counter()
        chosen, within, points = self._mixing_step(rows, track)
        seconds["curves"] = time.perf_counter() - started
        boundaries: dict[str, Boundary] = {}
        entries: list[Record] = []
        plans = {plan.nodes[0].t: plan for plan in map(self.plan_at, (chosen, *self.settings.further))}
        for t, plan in plans.items():
            for attribute in track(f"fit at {t:g}", unit="attribute")(attributes):
                own = rows[attribute]
                boundary, entry = self._fitted(attribute, own, judges[attribute], plan, t != chosen)
                file = attribute.file if t == chosen else f"{attribute.file}.t{t:g}"
                boundaries[file] = boundary
                entries.append({"file": file, **entry})
        record = {
            "schema": SCHEMA,
            "protocol": {
                "model": {"name": self.model.name, "fingerprint": self.model.fingerprint},
                "data": {"name": self._dataset.name, "fingerprint": self._dataset.fingerprint},
                "plan": None if self.plan is None else self.plan.hash,
                "calls": self.settings.calls,
                "judged_by": None if self.extractor is None else self.extractor.protocol,
                "limits": {"gap": self.settings.gap, "error": self.settings.error},
            },
            "chosen": {"t": chosen, "within": within, "found": self.settings.t is None},
            "points": [_as_json(point) for point in points],
            "boundaries": entries,
            "seconds": seconds,
        }
        return record, boundaries

    def plan_at(self, t: float) -> Plan:
        """From a step to data."""
        if self.plan is not None:
            return plan_from(self.plan, self.model.schedule, t)
        return plan_to(self.model.schedule, t, self.settings.calls)

    @cached_property
    def _dataset(self) -> Dataset:
        return load_dataset(self.data, "train")

    def _judge(self, attribute: Attribute) -> Judge | None:
        judge = attribute.judge(self.data, self.extractor)
        if judge is None and len(self.settings.c) > 1:
            raise ConfigError(
                f"--extractor must be given, with which edits of {attribute.name} are judged and C is chosen among "
                f"{', '.join(f'{c:g}' for c in self.settings.c)}; or name one --c."
            )
        return judge

    def _rows(self, attribute: Attribute) -> Rows:
        sides = attribute.sides(self.data, "train")
        require_both(sides[sides >= 0] == WITH, f"A boundary for {attribute.name}")
        fit, choice = [], []
        for side in (WITH, WITHOUT):
            found = np.flatnonzero(sides == side)
            order = torch.randperm(
                len(found), generator=generator(self.settings.seed, "images", attribute.name, side)
            )
            found = found[order.numpy()]
            whole = self.settings.per_side + self.settings.choice
            for_fit = min(self.settings.per_side, max(10, len(found) * self.settings.per_side // whole))
            fit.append(found[:for_fit])
            choice.append(found[for_fit : for_fit + self.settings.choice])
        if min(map(len, choice)) == 0:
            raise DataError(
                f"A boundary for {attribute.name} needs more than 10 images on each side, some of which it is not "
                f"fitted to; got {len(fit[0]) + len(choice[0])} and {len(fit[1]) + len(choice[1])}."
            )
        if min(map(len, fit)) < FEW:
            log.warning(
                "%s: %d images of a side are few for a boundary; %d or more are better",
                attribute.name,
                min(map(len, fit)),
                FEW,
            )
        return Rows(np.concatenate(fit), _is_first(fit), np.concatenate(choice), _is_first(choice))

    def _latents(self, rows: NDArray[np.int64], plan: Plan) -> Latents:
        return inverted(self.model, plan, self._dataset.batch(rows), batch_size=self.settings.batch_size)

    def _mixing_step(self, rows: Mapping[Attribute, Rows], track: Track) -> tuple[float, bool, list[Point]]:
        """The step, whether it is within the limits, and the curves of all steps that were looked at."""
        settings = self.settings
        ts = sorted({*(settings.times if settings.t is None else [settings.t]), *settings.further})
        for t in ts:
            self.plan_at(t)  # fails before work
        some = max(10, settings.curve_images // (3 * len(rows)))
        chosen: list[NDArray[np.int64]] = []
        parts: dict[str, tuple[slice, Bools, slice, Bools]] = {}
        at = 0
        for attribute, own in rows.items():
            fit, test = (
                _some_of_each(own.positive, some),
                _some_of_each(own.choice_positive, max(5, some // 2)),
            )
            first, middle, last = at, at + len(fit), at + len(fit) + len(test)
            parts[attribute.name] = (
                slice(first, middle), own.positive[fit], slice(middle, last), own.choice_positive[test]
            )  # fmt: skip
            chosen += [own.fit[fit], own.choice[test]]
            at = last

        def accuracy(latents: Latents) -> dict[str, dict[str, float]]:
            found: dict[str, dict[str, float]] = {}
            for name, (fit, positive, test, test_positive) in parts.items():
                planes = {space: fit_plane(latents.of(space)[fit], positive, PUBLISHED_C) for space in SPACES}
                found[name] = {
                    space: plane.accuracy(latents.of(space)[test], test_positive)
                    for space, plane in planes.items()
                }
            return found

        points = curves(
            self.model,
            self._dataset.batch(np.concatenate(chosen)),
            ts,
            plan_at=self.plan_at,
            accuracy=accuracy,
            seeds=range(settings.seed, settings.seed + settings.curve_images),
            batch_size=settings.batch_size,
            progress=track("mixing step", unit="step"),
        )
        if settings.t is not None:
            t = self.plan_at(settings.t).nodes[0].t
            point = next(point for point in points if point.t == t)
            return t, point.gap <= settings.gap and point.error <= settings.error, points
        candidates = [point for point, t in zip(points, ts, strict=True) if t in settings.times]
        point, within = mixing_step(candidates, most_gap=settings.gap, most_error=settings.error)
        if not within:
            log.warning(
                "no step has a gap of %.2g or less and an error of %.2g or less; %.3g, with the smallest gap, is taken",
                settings.gap, settings.error, point.t,
            )  # fmt: skip
        return point.t, within, points

    def _fitted(
        self, attribute: Attribute, rows: Rows, judge: Judge | None, plan: Plan, further_step: bool
    ) -> tuple[Boundary, Record]:
        """A boundary at the first node of a plan, and what is recorded of it."""
        started = time.perf_counter()
        latents, further = self._latents(rows.fit, plan), self._latents(rows.choice, plan)
        inverting = time.perf_counter() - started
        source = torch.from_numpy(~rows.choice_positive)
        images = self._dataset.batch(rows.choice[~rows.choice_positive])
        planes: dict[str, Plane] = {}
        spaces: dict[str, Record] = {}
        fitting = choosing = 0.0
        for space in SPACES:
            x, held = latents.of(space), further.of(space)
            started = time.perf_counter()
            fitted = {c: fit_plane(x, rows.positive, c) for c in self.settings.c}
            fitting += time.perf_counter() - started
            accuracy = {c: plane.accuracy(held, rows.choice_positive) for c, plane in fitted.items()}
            usable = {c: plane for c, plane in fitted.items() if accuracy[c] >= LEAST_ACCURACY} or fitted
            started = time.perf_counter()
            found = {} if judge is None or len(self.settings.c) == 1 else {
                c: self._sweep(plan, further[source], images, space, plane, judge) for c, plane in usable.items()
            }  # fmt: skip
            choosing += time.perf_counter() - started
            c = best(found) if found else self.settings.c[0]
            planes[space] = fitted[c]
            means = x[torch.from_numpy(rows.positive)].mean(0) - x[torch.from_numpy(~rows.positive)].mean(0)
            spaces[space] = {
                "c": c,
                "accuracy": accuracy[c],
                "scores": {f"{c:g}": score for c, score in scores(found).items()} if found else {},
                "accuracies": {f"{c:g}": value for c, value in accuracy.items()},
                "cosine": _cosine(fitted[c].normal, means),
            }
            if accuracy[c] < LEAST_ACCURACY:
                log.warning(
                    "%s: no boundary in %s-space at the step %.3g, where %.0f %% of further images are on their side",
                    attribute.name, space, plan.nodes[0].t, 100 * accuracy[c],
                )  # fmt: skip
        assert self.model.fingerprint is not None
        entry = {
            "attribute": attribute.name,
            "further": further_step,
            "t": plan.nodes[0].t,
            "images": [int(rows.positive.sum()), int((~rows.positive).sum())],
            "choice_images": [int(rows.choice_positive.sum()), int((~rows.choice_positive).sum())],
            "spaces": spaces,
            "seconds": {"inversion": inverting, "planes": fitting, "choice": choosing},
        }
        facts = {
            "further": further_step,
            "data": self._dataset.fingerprint,
            "images": entry["images"],
            "schedule": self.model.schedule.config(),
        }
        boundary = Boundary(
            attribute.name,
            self.model.fingerprint,
            plan,
            planes,
            {space: spaces[space]["accuracy"] for space in SPACES},
            facts,
        )
        return boundary, entry

    def _sweep(
        self, plan: Plan, latents: Latents, images: Tensor, space: str, plane: Plane, judge: Judge
    ) -> Curve:
        """Content distance and success of edits in one space."""
        distances, success = [], []
        for zeta in self.settings.sweep:
            moved = plane.to(latents.of(space), zeta)
            start = Start(moved) if space == "eps" else Start(latents.eps, moved)
            edited = generated(self.model, plan, start, batch_size=self.settings.batch_size)
            distances.append(content_distance(edited, images).mean())
            success.append(judge(edited).mean())
        return np.array(distances), np.array(success)


def content_distance(edited: Tensor, images: Tensor) -> NDArray[np.float64]:
    """Mean squared difference of the pixels of each image, in [-1, 1], (N,)."""
    found: NDArray[np.float64] = (
        (to_unit(edited) - to_unit(images)).double().square().flatten(1).mean(1).numpy()
    )
    return found


def save(record: Record, boundaries: Mapping[str, Boundary], folder: Path) -> None:
    """Write the record and the boundaries into a folder."""
    write_json(folder / RECORD, record)
    for name, boundary in boundaries.items():
        save_boundary(folder / f"{name}.npz", boundary)


def read_record(folder: Path) -> Record:
    """The content of `boundary.json`.
    Raises: DataError: it is missing, damaged or of another program.
    """
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise DataError(f"{folder / RECORD} must be of fewstep boundary fit ({SCHEMA}); make it again.")
    return record


def _is_first(parts: list[NDArray[np.int64]]) -> Bools:
    return np.repeat([True, False], [len(part) for part in parts])


def _some_of_each(positive: Bools, n: int) -> NDArray[np.int64]:
    """The first n places of each side."""
    return np.concatenate([np.flatnonzero(positive == side)[:n] for side in (True, False)])


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().flatten(), b.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))


def _as_json(point: Point) -> Record:
    return {**asdict(point), "gap": point.gap, "limit_gap": point.limit_gap, "limit_mean": point.limit_mean}
