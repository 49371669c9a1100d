"""Trainings of several generators at one budget, from several seeds each: what claims about training are judged by."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fewstep.checks import DataError
from fewstep.data.packed import Dataset
from fewstep.files import canonical_json, read_json, sha256_text, write_json
from fewstep.metrics.extractor import extract
from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import Interval, student_quantile
from fewstep.nets import CURVE
from fewstep.nets.generator import Generator
from fewstep.pipeline.claims import LEVEL, Measurement
from fewstep.pipeline.gan.curve import cost_columns
from fewstep.pipeline.gan.monitor import Measure, Monitor, images_of
from fewstep.pipeline.gan.settings import GanSettings
from fewstep.pipeline.gan.training import train_pair, untrained
from fewstep.pipeline.record import curve_rows
from fewstep.progress import Track
from fewstep.train.adversarial import GENERATOR
from fewstep.train.loop import Diverged, Probe, State

FRESH_SEED = 1_900_000_000
"""First seed of the images that results are measured on; nothing is chosen by them."""


class Outcome(NamedTuple):
    """One training.

    Attributes: arm: what was trained. seed: of the training. fd: of fresh images of its end; infinite where it was
        stopped. stopped: why it was. curve: its rows, with minutes and discriminator steps.
    """

    arm: str
    seed: int
    fd: float
    stopped: str
    curve: pd.DataFrame


@dataclass(frozen=True)
class Comparison:
    """What all trainings share.

    Attributes: work: folder in which finished trainings are kept, and checkpoints of the one that runs. images: of each
        measurement, on the way and at the end. device: of the networks.
    """

    dataset: Dataset
    measure: Measure
    work: Path
    images: int
    device: str
    first_seed: int
    track: Track

    def train(
        self, name: str, settings: GanSettings, *, watch: Callable[[float], None] | None = None
    ) -> Outcome:
        """Train one generator and measure it; what is finished is read, what was interrupted resumes.

        Args:
            name: of the arm.
            settings: of the training, its seed among them.
            watch: gets the distance of each measurement on the way, and may raise to end the training; such a training
                leaves nothing.
        """
        key = sha256_text(canonical_json(settings.result_settings()))[:16]
        done, folder = self.work / f"{key}.json", self.work / key
        finished = done.exists()
        if not finished:
            write_json(done, self._trained(name, settings, folder, watch))
        result = read_json(done)
        rows = list(curve_rows(folder / CURVE)) if (folder / CURVE).exists() else []
        curve = cost_columns(rows, d_steps=settings.d_steps) if rows else pd.DataFrame()
        if finished and watch is not None and "fd" in curve:
            for fd in curve["fd"].dropna():
                watch(float(fd))  # as it was told while the training ran
        fd = math.inf if result["fd"] is None else float(result["fd"])
        return Outcome(name, settings.seed, fd, result["stopped"], curve)

    def _trained(
        self, name: str, settings: GanSettings, folder: Path, watch: Callable[[float], None] | None
    ) -> dict[str, Any]:
        pair = untrained(settings, self.dataset.shape)
        for net in pair:
            net.to(self.device)
        seeds = range(self.first_seed, self.first_seed + self.images)
        monitor = Monitor(self.dataset, settings.steps, seeds, self.measure)

        def measured(state: State) -> Mapping[str, float]:
            found = monitor(state)
            if watch is not None:
                watch(found["fd"])
            return found

        try:
            state = train_pair(
                pair,
                self.dataset,
                settings,
                measure=Probe(settings.probe_every, measured),
                checkpoints=folder if watch is None else None,
                metrics=folder / CURVE,
                progress=self.track(f"{name}, seed {settings.seed}", unit="step"),
            )
        except Diverged as reason:
            return {"fd": None, "stopped": str(reason)}
        generator = state.ema[GENERATOR].net
        assert isinstance(generator, Generator)
        images = images_of(generator, range(FRESH_SEED, FRESH_SEED + self.images))
        features = Statistics.from_features(extract(images, self.measure.extractor))
        return {"fd": frechet(features, self.measure.reference.statistics).value, "stopped": ""}


def table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """A row per training: arm, seed, fd, minutes, d_updates, images, stopped."""
    rows = []
    for one in outcomes:
        last = {} if one.curve.empty else one.curve.iloc[-1].to_dict()
        costs = {name: last.get(name, math.nan) for name in ("minutes", "d_updates", "images")}
        rows.append({"arm": one.arm, "seed": one.seed, "fd": one.fd, **costs, "stopped": one.stopped})
    return pd.DataFrame(rows)


def curves(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """The measured rows of all trainings: arm, seed, step, minutes, d_updates, images, fd, gap, spread."""
    columns = ("step", "minutes", "d_updates", "images", "fd", "gap", "spread")
    parts = [
        one.curve.dropna(subset="fd")[list(columns)].assign(arm=one.arm, seed=one.seed)
        for one in outcomes
        if "fd" in one.curve
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["arm", "seed", *columns])


def read_table(path: Path) -> pd.DataFrame:
    """A table that was written as a file of comma-separated values.
    Raises: DataError: it is missing or damaged.
    """
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} must be a table of trainings, but {error!r} came up; make it again."
        ) from error
    if "stopped" in frame:  # of no text pandas makes not a number
        frame["stopped"] = frame["stopped"].astype(object).where(frame["stopped"].notna(), "")
    return frame


def summary(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per arm of `table`, best first: trainings, stopped ones, geometric mean of FD and its range, minutes."""
    rows = []
    for arm, part in frame.groupby("arm", sort=False):
        ended = part[part["stopped"] == ""]
        fds = [float(fd) for fd in ended["fd"]]
        rows.append(
            {
                "arm": str(arm),
                "n": len(part),
                "stopped": len(part) - len(ended),
                "fd": statistics.geometric_mean(fds) if fds else math.inf,
                "low": min(fds, default=math.inf),
                "high": max(fds, default=math.inf),
                "minutes": float(part["minutes"].mean()),
                "d_updates": float(part["d_updates"].mean()),
            }
        )
    return sorted(rows, key=lambda row: row["fd"])


def fd_ratio(frame: pd.DataFrame, of: str, to: str, level: float = LEVEL) -> Measurement:
    """FD of one arm over that of another: geometric mean over the seeds that both have, by Student's t.

    Trainings of one seed start from the same weights and see the same images, so that they are compared as pairs. Where
    fewer than two seeds of both have ended there is no number, which leaves a claim open.
    """
    ended = frame[frame["stopped"] == ""].pivot(index="seed", columns="arm", values="fd")
    pairs = ended[[of, to]].dropna() if {of, to} <= set(ended.columns) else ended.iloc[:0]
    if len(pairs) < 2:
        what = f"{of} against {to}: {len(pairs)} trainings of both have ended, two are needed"
        return Measurement(what, math.nan, math.nan, math.nan)
    logs = [math.log(a / b) for a, b in pairs[[of, to]].itertuples(index=False)]
    mean = statistics.fmean(logs)
    half = student_quantile((1 + level) / 2, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    found = Interval(math.exp(mean - half), math.exp(mean + half))
    return Measurement(f"{of} against {to}, {len(logs)} trainings each", math.exp(mean), *found)
