"""Inpainting: times per pixel against replacement and RePaint, by network calls, over several trainings.

Run: inpainting.py DATA --extractor E --reference STATS [--seeds 0,1,2] [--steps 2500] [--rad-steps 1500]
     [--variants "rad;rad, rank 8"] [--search 3,5,10] [--heldout 360] [--masks box,half,lines] [--keep FOLDER]
Writes benchmarks/results/inpainting_{NAME}.md. For each seed a model of whole images is trained, and from it one with
times per pixel in full (rad), one by low-rank factors (rad, rank 8) and one with the loss of all pixels as published;
the first is also used as it is, told times per pixel that it never saw. What is in the folder already is not made
again, so that an interrupted run resumes.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from fewstep import process
from fewstep.app.cli import main as fewstep
from fewstep.data.packed import load_dataset
from fewstep.diffusion.denoiser import Model
from fewstep.files import atomic_file, read_json, write_json
from fewstep.interop.load import load_model
from fewstep.methods.rad.stage.run import Filling
from fewstep.methods.rad.stage.settings import InpaintSettings
from fewstep.metrics.extractor import load_extractor
from fewstep.metrics.reference import load_reference
from fewstep.pipeline.environment import environment
from fewstep.progress import track

RESULTS = Path(__file__).parent / "results"
NFE = (3, 5, 10, 20, 50)
PRESETS = ("ddpm", "ddim", "unipc-2")
SEARCH = {
    "trials": 12,
    "polish-iterations": 20,
    "frechet-iterations": 150,
    "finalist-images": 2000,
}
VARIANTS: dict[str, tuple[object, ...]] = {
    "rad": ("--objective", "rad"),
    "rad, rank 8": ("--objective", "rad", "--lora-rank", 8),
    "rad, loss of all pixels": ("--objective", "rad-all-pixels"),
}


def command(*words: object) -> None:
    """A command of fewstep in this process, where it ends well."""
    import sys
    from unittest import mock

    with mock.patch.object(sys, "argv", ["fewstep", *map(str, words)]):
        try:
            fewstep()
        except SystemExit as ended:
            if ended.code:
                raise


def trained(options: argparse.Namespace, seed: int, variant: str | None) -> Path:
    """The folder of a model, trained where it is not there: None is the one of whole images."""
    name = "base" if variant is None else variant.replace(", ", "-").replace(" ", "-")
    steps = options.steps if variant is None else options.rad_steps
    place = options.keep / f"{name}-{seed}"
    if place.exists():
        return place
    words: list[object] = (
        [] if variant is None else ["--start", trained(options, seed, None), *VARIANTS[variant]]
    )
    lr = 2e-3 if variant is None else options.rad_lr
    started = time.process_time()
    command("train", "--data", options.data, *words, "--steps", steps, "--batch-size", 64, "--lr", lr, "--seed", seed,
            "--warmup", min(100, steps // 10), "--threads", 1, "--out", place, "--checkpoints",
            options.keep / "ck" / place.name)  # fmt: skip
    write_json(options.keep / f"{place.name}.seconds.json", time.process_time() - started)
    return place


def known_plans(options: argparse.Namespace, model: Path) -> list[Path]:
    """The folder of known plans."""
    place = options.keep / f"plans-{model.name}"
    for nfe in NFE:
        if not (place / f"nfe{nfe}").exists():
            command("plans", "--model", model, "--nfe", nfe, "--presets", ",".join(PRESETS), "--grids", "uniform-t",
                    "--out", place / f"nfe{nfe}")  # fmt: skip
    return [place]


def searched_plans(options: argparse.Namespace, model: Path) -> list[Path]:
    """Folders of the plans that are searched for a model, by the images that it makes of noise alone."""
    found = options.keep / f"searched-{model.name}"
    settings = [word for name, value in SEARCH.items() for word in (f"--{name}", value)]
    for nfe in options.search:
        if not (found / f"nfe{nfe}").exists():
            command("search", "--model", model, "--nfe", nfe, "--extractor", options.extractor, "--reference",
                    options.reference, *settings, "--out", found / f"nfe{nfe}")  # fmt: skip
    return [found / f"nfe{nfe}" for nfe in options.search]


def measured(
    options: argparse.Namespace, name: str, model: Model, base: Model, paths: list[Path], **changes: Any
) -> list[dict[str, Any]]:
    """The rows of a model's fillings, from disk where they are there."""
    file = options.keep / f"{name.replace(', ', '-').replace(' ', '-')}.json"
    if not file.exists():
        settings = InpaintSettings(heldout=options.heldout, masks=options.masks, resamples=20, **changes)
        network = load_extractor(options.extractor)
        reference = load_reference(options.reference, extractor=network)
        record, _ = Filling(model, base, options.data, reference, network, settings).all(paths, track)
        write_json(
            file, [*record["results"], {"mask": "none", "name": "no hole", "nfe": 0, **record["real"]}]
        )
    rows: list[dict[str, Any]] = read_json(file)
    return rows


def of_seed(options: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """The rows of one training, by what they are called in the table."""
    folder = trained(options, seed, None)
    base = load_model(folder)
    for variant in options.variants:
        place = trained(options, seed, variant)
        model = load_model(place)
        whole = variant == "rad"
        changes: dict[str, Any] = {"replacement": [20, 50]} if whole else {"replacement": [], "repaint": []}
        match = ["*"] if whole else ["ddpm*nfe10"]
        known = known_plans(options, place)
        rows = measured(options, f"{variant}-{seed}", model, base, known, match=match, **changes)
        if whole and options.search:
            name = f"{variant}-{seed}-searched-{'-'.join(map(str, options.search))}"
            paths = searched_plans(options, place)
            found = measured(options, name, model, base, paths, replacement=[], repaint=[])
            rows = [*rows, *(row for row in found if row.get("method") == "region-aware")]
        for row in rows:
            aware = row.get("method") == "region-aware"
            if whole or aware:
                yield {**row, "name": f"{variant}, {row['sampler']}" if aware else row["name"]}
    told = replace(base, pixel_times=True)
    match = ["ddpm*nfe10"]
    for row in measured(
        options,
        f"untrained-{seed}",
        told,
        base,
        known_plans(options, folder),
        match=match,
        replacement=[],
        repaint=[],
    ):
        if row.get("method") == "region-aware":
            yield {**row, "name": "no fine-tuning, ddpm"}


def cell(rows: list[dict[str, Any]]) -> str:
    """Accuracy, distance and error, means over trainings; of the accuracy also its standard deviation."""
    hits = [row["accuracy"]["value"] for row in rows]
    off = f" ± {stdev(hits):.3f}" if len(rows) > 1 else ""
    return f"{mean(hits):.3f}{off} / {mean(row['fd'] for row in rows):.1f} / {mean(row['error'] for row in rows):.2f}"


def table(options: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of the table."""
    yield f"| filled by | calls | {' | '.join(options.masks)} | accuracy over masks | ms an image |"
    yield f"|---|---|{'---|' * len(options.masks)}---|---|"
    for name, nfe in dict.fromkeys((row["name"], row["nfe"]) for row in rows if row["mask"] != "none"):
        own = [row for row in rows if (row["name"], row["nfe"]) == (name, nfe)]
        cells = [cell([row for row in own if row["mask"] == kind]) for kind in options.masks]
        each = mean(row["accuracy"]["value"] for row in own)
        ms = mean(row["ms"] for row in own)
        yield f"| {name} | {nfe} | {' | '.join(cells)} | {each:.3f} | {ms:.2f} |"
    real = [row for row in rows if row["mask"] == "none"]
    yield f"| no hole | 0 | {' | '.join([cell(real)] * len(options.masks))} | – | – |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = lambda text: [int(one) for one in text.split(",")] if text else []  # noqa: E731
    parser.add_argument("data", type=Path)
    parser.add_argument("--extractor", required=True, help="folder of a classifier")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--rad-steps", type=int, default=1500)
    parser.add_argument("--rad-lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--variants", type=lambda text: text.split(";"), default=list(VARIANTS))
    parser.add_argument("--search", type=numbers, default=[3, 5, 10])
    parser.add_argument("--heldout", type=int, default=360)
    parser.add_argument("--masks", type=lambda text: text.split(","), default=["box", "half", "lines"])
    parser.add_argument("--keep", type=Path, default=Path("inpainting"))
    options = parser.parse_args()
    process.set_up()
    torch.set_num_threads(1)
    rows = [row for seed in options.seeds for row in of_seed(options, seed)]
    dataset = load_dataset(options.data)
    seconds = {
        variant: mean(
            read_json(options.keep / f"{trained(options, seed, variant).name}.seconds.json")
            for seed in options.seeds
        )
        for variant in (None, *options.variants)
    }
    facts, shown = environment(), len(load_dataset(options.data, dataset.heldout_split))
    text = "\n".join(
        [
            f"# Inpainting on {dataset.name}",
            "",
            "Cells: share of filled images of the right class / FD / squared error in the hole, in the features of",
            f"{load_extractor(options.extractor).id} on {min(options.heldout, shown)} held-out images; means over "
            f"{len(options.seeds)} trainings of {options.steps} steps, then {options.rad_steps} with times per pixel,",
            "± standard deviation over trainings. Processor seconds of a training: "
            + ", ".join(f"{variant or 'base'} {value:.0f}" for variant, value in seconds.items())
            + ".",
            "",
            *table(options, rows),
            "",
            f"Made by `benchmarks/inpainting.py` at {facts['git_commit']}, torch {facts['torch']}, one thread.",
            "",
        ]
    )
    file = RESULTS / f"inpainting_{dataset.name}.md"
    with atomic_file(file) as temporary:
        temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
