"""Flows against noise prediction, on latents and on pixels: the same network, steps and batches, several trainings.

Run: latent_flow.py DATA --extractor E --reference STATS [--steps 2500] [--seeds 0,1,2] [--images 1000] [--keep FOLDER]
Writes benchmarks/results/latent_flow_{NAME}.md. Models that are in the folder already are not trained again, so that an
interrupted run resumes. Milliseconds are of a whole image, the decoder included.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch

from fewstep import process
from fewstep.app.cli import main as fewstep
from fewstep.data.packed import load_dataset
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import Flow
from fewstep.files import atomic_file
from fewstep.interop.load import load_model
from fewstep.interop.zoo import find_reference
from fewstep.metrics.extractor import Extractor, extract, load_extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import load_reference
from fewstep.metrics.statistics import Statistics
from fewstep.pipeline.environment import environment
from fewstep.progress import track
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import sample

RESULTS = Path(__file__).parent / "results"
FIRST = 20_000_000  # seed of the reported images
NFE = (1, 2, 3, 5, 10, 20, 50)
GUIDANCES = (0.0, 1.0, 1.5, 2.0, 3.0)
GUIDED_NFE = 20
OBJECTIVES = {"flow": ("flow", "u"), "eps": ("ddpm", "eps")}
SPACES = ("latent", "pixel")


class Cell(NamedTuple):
    """One model at one setting: distance, share of the class asked for, milliseconds an image."""

    fd: float
    accuracy: float
    ms: float


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


def trained(data: Path, keep: Path, space: str, objective: str, seed: int, steps: int) -> Path:
    """The folder of a model, trained where it is not there."""
    place = keep / f"{space}-{objective}-{steps}-{seed}"
    if place.exists():
        return place
    schedule, prediction = OBJECTIVES[objective]
    words: list[object] = ["--data", data]
    if space == "latent":
        autoencoder, latents = keep / f"autoencoder-{seed}", keep / f"latents-{seed}"
        if not latents.exists():
            command("autoencoder", "--data", data, "--factor", 2, "--seed", seed, "--out", autoencoder,
                    "--checkpoints", keep / "ck" / f"ae-{seed}")  # fmt: skip
            command("latents", "--data", data, "--autoencoder", autoencoder, "--out", latents)
        words = ["--data", latents, "--autoencoder", autoencoder]
    command("train", *words, "--class-conditional", "true", "--label-dropout", 0.1, "--schedule", schedule,
            "--prediction", prediction, "--steps", steps, "--batch-size", 64, "--seed", seed, "--out", place,
            "--checkpoints", keep / "ck" / place.name)  # fmt: skip
    return place


def measured(
    model: Model, nfe: int, guidance: float, n: int, reference: Statistics, extractor: Extractor
) -> Cell:
    """DDIM on uniform times, which is Euler's method for a flow, whose last call is at 1 / nfe."""
    grid = "shifted" if isinstance(model.schedule, Flow) else "uniform-t"
    plan = PRESETS["ddim"](model.schedule, nfe, grid=grid, to_zero=True)
    seeds = range(FIRST, FIRST + n)
    condition = model.condition_of(seeds)
    start = time.perf_counter()
    images = sample(model, plan, seeds=seeds, batch_size=250, condition=condition, guidance=guidance)
    ms = 1000 * (time.perf_counter() - start) / n
    features = extract(images, extractor)
    assert condition is not None and extractor.head is not None
    right = extractor.head.logits(features).argmax(1) == condition.values["label"].numpy()
    return Cell(frechet(Statistics.from_features(features), reference).value, float(right.mean()), ms)


def over_seeds(cells: Sequence[Cell]) -> str:
    """Mean of the distances with their standard deviation over trainings, and the mean accuracy."""
    values = [cell.fd for cell in cells]
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread} ({mean(cell.accuracy for cell in cells):.2f})"


def rows(options: argparse.Namespace, reference: Statistics, extractor: Extractor) -> Iterator[str]:
    """The lines of both tables."""
    kinds = [(space, objective) for space in SPACES for objective in OBJECTIVES]
    models = {
        kind: [
            load_model(trained(options.data, options.keep, *kind, seed, options.steps))
            for seed in options.seeds
        ]
        for kind in kinds
    }
    jobs = [(kind, nfe, 1.0) for kind in kinds for nfe in NFE]
    jobs += [(("latent", "flow"), GUIDED_NFE, guidance) for guidance in GUIDANCES]
    found: dict[Any, list[Cell]] = {
        job: [
            measured(model, job[1], job[2], options.images, reference, extractor) for model in models[job[0]]
        ]
        for job in track("latent flow", unit="setting")(jobs)
    }
    yield f"| model | {' | '.join(f'{nfe} calls' for nfe in NFE)} | ms an image, 5 calls |"
    yield f"|---|{'---|' * (len(NFE) + 1)}"
    for kind in kinds:
        cells = [over_seeds(found[kind, nfe, 1.0]) for nfe in NFE]
        ms = mean(cell.ms for cell in found[kind, 5, 1.0])
        yield f"| {kind[0]}, {kind[1]} | {' | '.join(cells)} | {ms:.2f} |"
    yield ""
    yield f"| latent flow, {GUIDED_NFE} calls, guidance | {' | '.join(f'{w:g}' for w in GUIDANCES)} |"
    yield f"|---|{'---|' * len(GUIDANCES)}"
    guided = [over_seeds(found[("latent", "flow"), GUIDED_NFE, guidance]) for guidance in GUIDANCES]
    yield f"| FD (accuracy) | {' | '.join(guided)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--extractor", required=True, help="folder of a classifier")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--keep", type=Path, default=Path("latent-flow"))
    options = parser.parse_args()
    process.set_up()
    torch.set_num_threads(1)
    extractor = load_extractor(options.extractor)
    reference = load_reference(find_reference(options.reference), extractor=extractor).statistics
    dataset = load_dataset(options.data)
    heldout = load_dataset(options.data, dataset.heldout_split)
    real = frechet(Statistics.from_features(extract(np.array(heldout.images), extractor)), reference).value
    lines = list(rows(options, reference, extractor))
    facts = environment()
    text = "\n".join(
        [
            f"# Flows and noise prediction on {dataset.name}",
            "",
            f"FD in the features of {extractor.id} on {options.images} images, in brackets the share that the",
            "classifier finds to be of the class asked for; mean ± standard deviation over "
            f"{len(options.seeds)} trainings of {options.steps} steps.",
            f"{len(heldout)} held-out real images: {real:.1f}.",
            "Flows by Euler, noise prediction by DDIM, both on uniform times.",
            "",
            *lines,
            "",
            f"Made by `benchmarks/latent_flow.py` at {facts['git_commit']}, torch {facts['torch']}, one thread.",
            "",
        ]
    )
    file = RESULTS / f"latent_flow_{dataset.name}.md"
    with atomic_file(file) as temporary:
        temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
