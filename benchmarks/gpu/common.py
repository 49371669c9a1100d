"""What the jobs of one lease of a GPU share: a time limit, a working folder to resume from, few and small files back.

Only the core's dependencies are needed: torch, numpy, pillow, safetensors and tqdm.
"""

import argparse
import io
import math
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewstep import process
from fewstep.checks import ConfigError, UserError
from fewstep.data.packed import load_dataset
from fewstep.data.prepare import prepare
from fewstep.files import object_or_empty, write_json
from fewstep.interop.load import load_model
from fewstep.interop.zoo import find_reference
from fewstep.metrics.extractor import Extractor, load_extractor
from fewstep.metrics.reference import Reference, build_reference, load_reference
from fewstep.pipeline.devices import chosen_device, device_name
from fewstep.pipeline.environment import environment
from fewstep.pipeline.measure import features_of
from fewstep.sampling.plan import Plan
from fewstep.sampling.task import Task

MOST_FILES, MOST_BYTES = 8, 16 * 2**20
"""What comes back from a lease."""


def parser(description: str) -> argparse.ArgumentParser:
    """The options of every job."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--seconds", type=float, default=540.0, help="time limit of the whole command")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument(
        "--work", type=Path, default=Path("gpu-work"), help="kept between commands of one lease"
    )
    made.add_argument("--out", type=Path, required=True, help="folder of what comes back")
    return made


def with_data(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options of jobs that measure images."""
    made.add_argument(
        "--data", type=Path, default=None, help="archive or folder of images, in train/ and test/ by class"
    )
    made.add_argument("--name", default="cifar10-jpeg", help="of the data, in cards and results")
    made.add_argument("--extractor", default="effnet-lite0-p320", help="name, or folder of a classifier")
    made.add_argument(
        "--reference", default=None, help="statistics file or name in the zoo; else made of --data"
    )
    return made


@dataclass
class Lease:
    """The clock and the folders of one command.

    Attributes:
        seconds: of the whole command, from its start.
    """

    seconds: float
    device: str
    work: Path
    out: Path
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, options: argparse.Namespace, *, exact: bool) -> "Lease":
        """Folders made, device chosen; exact: whether float32 is float32, and not TF32."""
        started = time.monotonic()
        device = chosen_device(options.device, exact=exact)
        torch.backends.cuda.matmul.allow_tf32 = not exact
        for folder in (options.work, options.out):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(options.seconds, device, options.work, options.out, started)

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self.started + self.seconds - time.monotonic()

    def until(self, left: float, *, least: int = 1) -> Callable[[Iterable[int]], Iterator[int]]:
        """What ends an iteration once fewer seconds are left, after some items at the least."""

        def wrap(items: Iterable[int]) -> Iterator[int]:
            for k, item in enumerate(items):
                if k >= least and self.left < left:
                    return
                yield item

        return wrap

    def say(self, text: str) -> None:
        """A line with the time since the start."""
        print(f"{self.seconds - self.left:6.1f} s  {text}", flush=True)

    def facts(self) -> dict[str, Any]:
        """What results say about where they were made."""
        return {"device": device_name(torch.device(self.device)), "environment": environment()}


def packed(lease: Lease, options: argparse.Namespace) -> Path:
    """The packed dataset of `--data`, made where it is not there yet."""
    folder: Path = lease.work / "data"
    if not (folder / "manifest.json").exists():
        if options.data is None:
            raise ConfigError("--data must name an archive or a folder of images, but there is none.")
        prepare("folder", folder, name=options.name, source=options.data, workers=workers(lease))
        lease.say(f"data: {len(load_dataset(folder, 'train')):,} training images")
    return folder


def workers(lease: Lease) -> int:
    """Processes that decode images."""
    return 1 if torch.device(lease.device).type == "cpu" else 8


def judge(lease: Lease, options: argparse.Namespace) -> tuple[Reference, Extractor]:
    """The reference and the extractor, the former named, or made of the data once."""
    extractor = load_extractor(options.extractor, device=lease.device)
    if options.reference is not None:
        return load_reference(find_reference(options.reference), extractor=extractor), extractor
    return build_reference(packed(lease, options), extractor), extractor


def task_of(folder: Path, lease: Lease, *, batch_size: int) -> Task:
    """The model of a folder on the device."""
    return Task(load_model(folder, device=lease.device), batch_size=batch_size)


def features(task: Task, plan: Plan, seeds: range, extractor: Extractor) -> tuple[np.ndarray, float]:
    """Features of the images of some seeds, and the seconds that they took."""
    started = time.perf_counter()
    made = features_of(task, plan, seeds, extractor)
    return made, time.perf_counter() - started


def synchronised(device: str) -> float:
    """The time now, with all that was asked of the device done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def save_grid(path: Path, images: torch.Tensor) -> None:
    """Write uint8 images (N, C, H, W) as one square picture."""
    side = math.isqrt(len(images))
    n, c, h, w = images[: side * side].shape
    rows = images[:n].reshape(side, side, c, h, w).permute(0, 3, 1, 4, 2).reshape(side * h, side * w, c)
    Image.fromarray(rows.squeeze(-1).numpy() if c == 1 else rows.numpy()).save(path)


def bring_back(lease: Lease, files: Iterable[Path]) -> None:
    """Copy files to `--out`; a folder as one archive, and what is over 16 MiB in pieces.

    `cat NAME.* > NAME` joins the pieces NAME.0, NAME.1, ..., and `cat model.tar* | tar x` unpacks a folder.

    Raises: ConfigError: more files than come back.
    """
    for path in files:
        name, content = path.name, packed_folder(path) if path.is_dir() else path.read_bytes()
        name += ".tar" if path.is_dir() else ""
        pieces = math.ceil(len(content) / MOST_BYTES)
        for k in range(pieces):
            place = lease.out / (name if pieces == 1 else f"{name}.{k}")
            place.write_bytes(content[k * MOST_BYTES : (k + 1) * MOST_BYTES])
    there = [file.name for file in lease.out.iterdir()]
    if len(there) > MOST_FILES:
        raise ConfigError(f"At most {MOST_FILES} files come back; {lease.out} has {len(there)}.")


def packed_folder(folder: Path) -> bytes:
    """A folder as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, folder.name)
    return buffer.getvalue()


def record(lease: Lease, name: str, values: dict[str, Any]) -> None:
    """Write results as JSON to `--out`."""
    write_json(lease.out / name, {**values, **lease.facts(), "seconds": round(lease.seconds - lease.left, 1)})


def kept_results(lease: Lease, name: str) -> dict[str, Any]:
    """What an earlier command of the lease has measured."""
    return object_or_empty(lease.work / name)


def keep_results(lease: Lease, name: str, values: dict[str, Any]) -> None:
    """For a later command of the lease."""
    write_json(lease.work / name, values)


def run(main: Callable[[], None]) -> None:
    """Run a job as a program: what is the user's mistake is one sentence, with exit status 2."""
    process.set_up()
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
