"""Images of patches: collage, fixed shift of pixels, patches alone and whole images; memory of training and sampling.

Run: patches.py DATA --extractor E --reference STATS [--seeds 0,1,2] [--steps 1500] [--images 500] [--nfe 20]
     [--keep FOLDER]
Writes benchmarks/results/patches_{NAME}.md. For each seed three networks are trained: of patches with the collage, of
patches with shifts of pixels, and a U-Net of whole images of the same widths for as many processor seconds as the
first. What is in the folder already is not made again. Memory is that of a process of its own: the most that was
resident, less what was before the step.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest import mock

import torch

from fewstep import process
from fewstep.app.cli import main as fewstep
from fewstep.data.packed import load_dataset
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import DDPMTable
from fewstep.files import atomic_file, read_json, write_json
from fewstep.interop.load import load_model
from fewstep.methods.patchdm.enlarge import COLLAGE, PLAIN, SHIFT, decoded_by, enlarged
from fewstep.methods.patchdm.objective import Patches
from fewstep.methods.patchdm.seams import ALIGNED, GRID, seam
from fewstep.metrics.extractor import extract, load_extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import load_reference
from fewstep.metrics.statistics import Statistics
from fewstep.nets.folder import as_model
from fewstep.nets.patched import PatchedUNet
from fewstep.nets.unet import UNet
from fewstep.pipeline.environment import environment
from fewstep.rng import generator, initial_weights
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import sample
from fewstep.train.losses import denoising_loss, noised

RESULTS = Path(__file__).parent / "results"
TILE, BATCH = 8, 16
VARIANTS: dict[str, tuple[object, ...]] = {
    "patchdm": ("--objective", "patchdm", "--tile", TILE),
    "pixels": ("--objective", "patchdm-pixels", "--tile", TILE),
    "whole": ("--attention", 8),  # on the same level
}
ROWS = (
    ("patchdm", COLLAGE, "collage"),
    ("patchdm", PLAIN, "same weights, no collage"),
    ("pixels", SHIFT, "fixed shift of pixels, trained for it"),
    ("pixels", PLAIN, "same weights, no shift"),
    ("whole", None, "whole images, about equal training time"),
)
SIDES = (32, 64, 128)
LARGE = 512
"""Side of the image whose sampling is measured."""
MEBI = 2**20


def command(*words: object) -> None:
    """A command of fewstep in this process, where it ends well."""
    with mock.patch.object(sys, "argv", ["fewstep", *map(str, words)]):
        try:
            fewstep()
        except SystemExit as ended:
            if ended.code:
                raise


def timed(options: argparse.Namespace, variant: str, seed: int, steps: int, place: Path) -> float:
    """Train a model; returns processor seconds."""
    file = place.with_name(f"{place.name}.seconds.json")
    if not place.exists():
        started = time.process_time()
        command("train", "--data", options.data, *VARIANTS[variant], "--class-conditional", "true", "--steps", steps,
                "--batch-size", BATCH, "--lr", 2e-3, "--seed", seed, "--warmup", min(100, steps // 10), "--threads", 1,
                "--out", place, "--checkpoints", options.keep / "ck" / place.name)  # fmt: skip
        write_json(file, time.process_time() - started)
    seconds: float = read_json(file)
    return seconds


def steps_of(options: argparse.Namespace, variant: str) -> int:
    """Steps of a training, those of whole images in as much time as those of the collage."""
    if variant != "whole":
        steps: int = options.steps
        return steps
    short, long = 20, 80
    pace = {
        one: timed(options, one, 0, long, options.keep / f"pace-{one}-{long}")
        - timed(options, one, 0, short, options.keep / f"pace-{one}-{short}")
        for one in ("patchdm", "whole")
    }
    return round(options.steps * pace["patchdm"] / pace["whole"])


def measured(options: argparse.Namespace, model: Model, decode: str | None, file: Path) -> dict[str, Any]:
    """Distance, share of the right class and seams, from disk where they are there."""
    if not file.exists():
        extractor = load_extractor(options.extractor)
        assert extractor.head is not None
        reference = load_reference(options.reference, extractor=extractor)
        plan = PRESETS["ddim"](model.schedule, options.nfe, grid="uniform-t", to_zero=True)
        seeds = range(3_000_000_000, 3_000_000_000 + options.images)
        condition = model.condition_of(seeds)
        assert condition is not None
        select = None if decode is None else decoded_by(model, plan, decode)
        started = time.process_time()
        images = sample(model, plan, seeds=seeds, batch_size=250, condition=condition, select=select)
        seconds = time.process_time() - started
        features = extract(images, extractor)
        hits = extractor.head.logits(features).argmax(1) == condition.values["label"].numpy()
        write_json(
            file,
            {
                "fd": frechet(Statistics.from_features(features), reference.statistics).value,
                "accuracy": float(hits.mean()),
                "ms": 1000 * seconds / len(seeds),
                **seams(images),
            },
        )
    found: dict[str, Any] = read_json(file)
    return found


def seams(images: torch.Tensor) -> dict[str, float]:
    """The contrast at both kinds of lines."""
    found = {kind: seam(images, TILE, kind) for kind in (ALIGNED, GRID)}
    return {kind: one.value for kind, one in found.items() if one is not None}


def peak(what: str, side: int) -> float:
    """Mebibytes that one step or one network call takes beside what was there before, in a process of its own."""
    run = [sys.executable, __file__, "--probe", what, str(side)]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def probe(what: str, side: int) -> None:
    """Print the most that was resident, less what was before, in mebibytes."""
    torch.set_num_threads(1)
    values: dict[str, Any] = {"image_size": TILE, "in_channels": 3, "channels": 32, "multipliers": [1, 2]}
    with initial_weights(0):
        net = UNet(**values | {"image_size": side}) if "whole" in what else PatchedUNet(values)
    schedule, rng = DDPMTable.linear(), generator(0, "probe")
    n = 8 if "train" in what else 1
    x0, eps = torch.randn(2, n, 3, side, side, generator=rng).unbind()
    small = torch.randn(2, 1, 3, 16, 16, generator=rng).unbind()  # so that libraries are loaded before
    resident: list[int] = []
    for given in (small, (x0, eps)):
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
        if "train" in what:
            t = torch.full((len(given[0]),), 0.5, dtype=torch.float64)
            batch = noised(*given, t, schedule=schedule, prediction="eps")
            loss = denoising_loss if "whole" in what else Patches(TILE)(rng, len(t))
            loss(net, batch, None).sum().backward()
        else:
            model = as_model(net, schedule=schedule, prediction="eps", shape=tuple(given[0].shape[1:]))
            if "whole" not in what:
                model = enlarged(model, *given[0].shape[2:], rows=1 if "rows" in what else None)
            with torch.inference_mode():
                model.fn(given[1], torch.tensor([0.5]))
    # not of getrusage, which starts with the most of the process that started this one
    most = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    print(int(most.split()[1]) / 1024 - resident[-1] / MEBI)


def lines(options: argparse.Namespace, rows: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """The table of quality."""
    real = seams(load_dataset(options.data, "train").batch(range(1000)))
    yield "| decoded | FD | of the class | seams of shifted patches | of grid patches | worst over real | ms an image |"
    yield "|---|---|---|---|---|---|---|"
    for name, own in rows.items():
        cells = [_spread([row[key] for row in own], digits) for key, digits in
                 (("fd", 1), ("accuracy", 3), (ALIGNED, 2), (GRID, 2))]  # fmt: skip
        worst = _spread([max(row[kind] / real[kind] for kind in real) for row in own], 2)
        yield f"| {name} | {' | '.join(cells)} | {worst} | {mean(row['ms'] for row in own):.1f} |"
    yield f"| real images | – | – | {real[ALIGNED]:.2f} | {real[GRID]:.2f} | 1 | – |"


def _spread(values: list[float], digits: int) -> str:
    off = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{off}"


def memory(options: argparse.Namespace) -> Iterator[str]:
    """The table of memory."""
    file = options.keep / "memory.json"
    if not file.exists():
        train = {side: [peak(f"train-{one}", side) for one in ("patches", "whole")] for side in SIDES}
        draw = {one: peak(f"draw-{one}", LARGE) for one in ("patches-rows", "patches", "whole")}
        write_json(file, {"train": train, "draw": draw})
    found = read_json(file)
    yield "| training on 8 images of | patches of 8 | whole images |"
    yield "|---|---|---|"
    for side, (patches, whole) in found["train"].items():
        yield f"| {side} x {side} | {patches:.0f} MiB | {whole:.0f} MiB |"
    yield ""
    draw = found["draw"]
    yield (
        f"One network call on an image of {LARGE} x {LARGE}: {draw['patches-rows']:.0f} MiB one row of patches at a "
        f"time, {draw['patches']:.0f} MiB all at once, {draw['whole']:.0f} MiB by the U-Net of whole images."
    )


def main() -> None:
    if "--probe" in sys.argv:
        probe(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--extractor", required=True, help="folder of a classifier")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--keep", type=Path, default=Path("patches"))
    options = parser.parse_args()
    process.set_up()
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for _, _, name in ROWS}
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for seed in options.seeds:
        for variant in VARIANTS:
            place = options.keep / f"{variant}-{seed}"
            seconds[variant].append(timed(options, variant, seed, steps_of(options, variant), place))
            model = load_model(place)
            for of, decode, name in ROWS:
                if of == variant:
                    file = options.keep / f"{place.name}-{decode}-{options.nfe}-{options.images}.json"
                    rows[name].append(measured(options, model, decode, file))
    facts, name = environment(), load_dataset(options.data).name
    text = "\n".join(
        [
            f"# Patches on {name} of {load_dataset(options.data).shape[1]} pixels",
            "",
            f"Patches of {TILE} pixels, {options.images} images by DDIM in {options.nfe} calls, the same noises in "
            f"each row; FD in the features of {load_extractor(options.extractor).id}.",
            f"Means over {len(options.seeds)} trainings of {options.steps} steps of {BATCH} images "
            f"({steps_of(options, 'whole')} of whole images), ± standard deviation over trainings.",
            "Seams: contrast across the lines where patches meet over that beside them. Processor seconds of a "
            "training: " + ", ".join(f"{one} {mean(values):.0f}" for one, values in seconds.items()) + ".",
            "",
            *lines(options, rows),
            "",
            *memory(options),
            "",
            f"Made by `benchmarks/patches.py` at {facts['git_commit']}, torch {facts['torch']}, one thread.",
            "",
        ]
    )
    file = RESULTS / f"patches_{name}.md"
    with atomic_file(file) as temporary:
        temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
