"""Drawing many images in parts, each of which is kept until all are there."""

import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.checks import DataError
from fewstep.data.prompts import split_column
from fewstep.diffusion.denoiser import Model
from fewstep.files import canonical_json, sha256_text
from fewstep.pipeline.conditions import identity_of
from fewstep.pipeline.devices import device_name
from fewstep.pipeline.environment import environment
from fewstep.pipeline.parts import Shard, part_ranges, say_idle, tiled
from fewstep.pipeline.recorded import Record, record
from fewstep.pipeline.samples import Samples, parse_seeds, read_samples, seeds_text, write_samples
from fewstep.pipeline.settings import DrawSettings
from fewstep.pipeline.stage.code import code_hash
from fewstep.progress import track
from fewstep.sampling.plan import Plan
from fewstep.sampling.quantised import integers_path
from fewstep.sampling.sample import Costs
from fewstep.sampling.sample import sample as sample_plan


@dataclass(frozen=True)
class Drawing:
    """Images of one model for the seeds of one command.

    Attributes: model_path: where the model was read. out: where the images will stand, in one file or one a plan.
        conditions_path: where the model's stored conditions were read, if it has some. call_path: the file of what a
            pipeline is called with.
    """

    model: Model
    seeds: range
    settings: DrawSettings
    model_path: Path
    out: Path
    force: bool = False
    conditions_path: Path | None = None
    call_path: Path | None = None

    @property
    def parts(self) -> Path:
        """The folder of parts, hidden beside the output."""
        return self.out.with_name(f".{self.out.name}.parts")

    @cached_property
    def _model_files(self) -> Record:
        return record(self.model_path, beside=self._beside)

    @cached_property
    def _condition_files(self) -> dict[str, Record]:
        files = {"conditions": self.conditions_path, "call": self.call_path}
        return {
            name: _recorded(path, beside=self._beside) for name, path in files.items() if path is not None
        }

    def _plan_files(self, plan: Plan, path: Path) -> dict[str, Record]:
        files = {"plan": path} if plan.integers is None else {"plan": path, "integers": integers_path(path)}
        return {role: record(file, beside=self._beside) for role, file in files.items() if file.is_file()}

    @property
    def _beside(self) -> Path:
        return self.out.parent if self.out.suffix == ".npz" else self.out

    def draw(self, plan: Plan, path: Path | None = None) -> Samples:
        """All images of a plan at once, in memory."""
        return self._drawn(plan, path, self.seeds, progress=track(plan.name or "sample", unit="batch"))

    def make(self, plan: Plan, path: Path, shard: Shard) -> None:
        """Draw the shard's parts of a plan that are missing; where nobody shares, a single part is left to `write`."""
        n, size = len(self.seeds), self.settings.batch_size
        ranges = list(part_ranges(n, batch_size=size, nfe=plan.nfe, shards=shard.count))
        say_idle(len(ranges), shard, plan.name)
        mine = [(self._part(plan, rows), rows) for rows in ranges if shard.takes_next()]
        if (len(ranges) == 1 and shard.is_whole) or self._parts_of(plan) is not None:
            return
        missing = [(part, rows) for part, rows in mine if not _is_sound(part)]
        for number, (part, rows) in enumerate(missing, 1):
            progress = track(f"{plan.name}, part {number} of {len(missing)}", unit="batch")
            write_samples(
                part, self._drawn(plan, path, self.seeds[rows[0] : rows[-1] + 1], progress=progress)
            )

    def write(self, file: Path, plan: Plan, path: Path) -> None:
        """Write the samples file of a plan: its parts put together, or drawn now where there are none."""
        parts = self._parts_of(plan)
        if parts is None or len(parts) == 1:
            write_samples(file, self.draw(plan, path) if parts is None else read_samples(parts[0][1]))
            return
        drawn = [read_samples(part) for _, part in parts]
        shape = (len(self.seeds), *drawn[0].images.shape[1:])
        # the parts are mapped, and so is the whole: neither has to fit into memory
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = np.lib.format.open_memmap(self.parts / "whole.npy", "w+", np.uint8, shape)
        for (rows, _), one in zip(parts, drawn, strict=True):
            whole[rows[0] : rows[-1] + 1] = one.images
        meta = {**drawn[0].meta, "seeds": seeds_text(self.seeds), "costs": _sum_of([d.meta for d in drawn])}
        write_samples(file, Samples(whole, np.array(self.seeds, np.int64), meta))

    def _parts_of(self, plan: Plan) -> list[tuple[range, Path]] | None:
        """The parts that make up a plan's images, with their rows; None where some are missing or damaged."""
        start, found = f"{self._stem(plan)}.", {}
        for part in self.parts.iterdir() if self.parts.is_dir() else ():
            if part.name.startswith(start) and part.suffix == ".npz" and _is_sound(part):
                seeds = parse_seeds(part.name[len(start) : -len(part.suffix)])
                if seeds[0] in self.seeds and seeds[-1] in self.seeds:
                    found[range(seeds.start - self.seeds.start, seeds.stop - self.seeds.start)] = part
        return tiled(found, len(self.seeds))

    def drop(self) -> None:
        """Delete the parts."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def _part(self, plan: Plan, rows: range) -> Path:
        return self.parts / f"{self._stem(plan)}.{seeds_text(self.seeds[rows[0] : rows[-1] + 1])}.npz"

    def _stem(self, plan: Plan) -> str:
        """How the names of a plan's parts begin: with all that its images depend on."""
        made_of = [
            self._model_files["sha256"],
            plan.to_json(),
            self._guidance(plan),
            self.settings.batch_size,
            code_hash((__name__,)),
        ]
        if self._conditions is not None:
            made_of.append(self._conditions)
        key = sha256_text(canonical_json(made_of))[:16]
        return f"{plan.name}.{key}"

    @property
    def _conditions(self) -> dict[str, Any] | None:
        return identity_of(self.model)

    def _guidance(self, plan: Plan) -> float:
        # a plan that was found for one guidance is drawn with it
        return self.settings.guidance if plan.guidance is None else plan.guidance

    def _drawn(self, plan: Plan, path: Path | None, seeds: range, progress: Any = iter) -> Samples:
        model, guidance, costs = self.model, self._guidance(plan), Costs()
        started = time.perf_counter()
        images = sample_plan(
            model,
            plan,
            seeds=seeds,
            batch_size=self.settings.batch_size,
            condition=model.condition_of(seeds),
            guidance=guidance,
            force=self.force,
            progress=progress,
            costs=costs,
        )
        wall = time.perf_counter() - started
        meta = {
            "model": {
                "fingerprint": model.fingerprint,
                "name": model.name,
                "ema": True,
                **({} if model.call is None else {"call": dict(model.call)}),
            },
            "plan": plan.to_json(),
            "plan_hash": plan.hash,
            "plan_name": plan.name,
            "nfe": plan.nfe,
            "seeds": seeds_text(seeds),
            "dtype": "float32",
            "guidance": guidance,
            "conditions": self._conditions,
            "batch_size": self.settings.batch_size,
            "costs": {
                "nfe": costs.nfe,
                "network_calls": costs.calls,
                "network_ms_per_image": 1000 * costs.network_seconds / costs.images,
                "wall_seconds": wall,
                "device": device_name(model.device),
            },
            "files": {
                "model": self._model_files,
                **self._condition_files,
                **({} if path is None else self._plan_files(plan, path)),
            },
            "environment": environment(),
        }
        array = np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1))
        return Samples(array, np.array(seeds, np.int64), meta)


def _recorded(path: Path, *, beside: Path) -> Record:
    """A file or folder; of a table of prompts also the column."""
    file, column = split_column(path)
    return {**record(file, beside=beside), **({} if column is None else {"column": column})}


def _is_sound(part: Path) -> bool:
    """Whether a part is there and holds what it says; a damaged one is drawn again."""
    try:
        samples = read_samples(part)
    except DataError:
        return False
    return bool(samples.sha256 == samples.meta["images_sha256"])


def _sum_of(metas: list[dict[str, Any]]) -> dict[str, Any]:
    """Costs of the whole: seconds add up, milliseconds an image are the mean over all images."""
    costs = [meta["costs"] for meta in metas]
    counts = [int(last) - int(first) + 1 for first, last in (meta["seeds"].split("-") for meta in metas)]
    mean = sum(c["network_ms_per_image"] * n for c, n in zip(costs, counts, strict=True)) / sum(counts)
    return {
        **costs[0],
        "device": " and ".join(sorted({c["device"] for c in costs})),
        "network_ms_per_image": mean,
        "wall_seconds": sum(c["wall_seconds"] for c in costs),
    }
