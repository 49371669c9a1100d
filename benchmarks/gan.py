"""Generators of one network call: a toy problem of two rates, the price of the loop, the tables of a finished run.

Run: OMP_NUM_THREADS=1 python benchmarks/gan.py toy          orders of two rates on a problem with a known answer
     OMP_NUM_THREADS=1 python benchmarks/gan.py speed DATA   the shared loop against a loop written out, in turns
     python benchmarks/gan.py run RESULTS                    leaderboard, rates, variants, detection of a finished run
They write benchmarks/results/gan_{toy,speed,NAME}.md.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fewstep import process
from fewstep.data.packed import load_dataset
from fewstep.files import atomic_file, read_json
from fewstep.nets.dcgan import DCGANDiscriminator, DCGANGenerator
from fewstep.pipeline.claims import Measurement
from fewstep.pipeline.environment import environment
from fewstep.pipeline.gan.comparison import fd_ratio, read_table, summary
from fewstep.pipeline.report.results import read_results
from fewstep.pipeline.samples import files_in
from fewstep.rng import generator, initial_weights
from fewstep.train.adversarial import TTUR, AdversarialRecipe, train_adversarial
from fewstep.train.batches import image_batches

RESULTS = Path(__file__).parent / "results"
SEEDS, STEPS = 20, 5000
RATES = ((1e-2, 1e-2), (1e-3, 1e-3), (1e-4, 1e-2), (1e-2, 1e-4))
ROUNDS, TIMED = 5, 40


def toy() -> list[str]:
    """min_x max_y (1 + x^2)(100 - y^2) from (0.5, -0.4), unit normal noise on both gradients [heusel2017ttur]."""
    lines = [
        f"Norm of (x, y), which should go to 0: {SEEDS} seeds of {STEPS} steps.",
        "",
        "| rates (x, y) | mean norm of the last 1000 steps, median | first step below 0.05, median | tails above 0.3 |",
        "| --- | --- | --- | --- |",
    ]
    for rate_x, rate_y in RATES:
        x, y = torch.full((SEEDS,), 0.5, dtype=torch.float64), torch.full((SEEDS,), -0.4, dtype=torch.float64)
        rng = generator(0, "toy")
        norms = torch.empty(STEPS, SEEDS, dtype=torch.float64)
        for i in range(STEPS):
            noise = torch.randn(2, SEEDS, generator=rng, dtype=torch.float64)
            step_x, step_y = 2 * x * (100 - y**2) + noise[0], -2 * y * (1 + x**2) + noise[1]
            x, y = x - rate_x * step_x, y + rate_y * step_y
            norms[i] = torch.hypot(x, y)
        tails, below = norms[-1000:].mean(0), norms < 0.05
        first = torch.where(below.any(0), below.int().argmax(0), STEPS)
        never = int(first.median()) == STEPS
        lines.append(
            f"| {rate_x:g}, {rate_y:g} | {float(tails.median()):.3f} | {'never' if never else int(first.median())} | "
            f"{int((tails > 0.3).sum())} of {SEEDS} |"
        )
    return lines


def speed(data: Path) -> list[str]:
    """CPU time a step, in turns on one thread, of the shared loop and of a loop written out as in a tutorial."""
    torch.set_num_threads(1)
    dataset = load_dataset(data, "train")
    ways: dict[str, Callable[[], None]] = {
        "shared loop": lambda: _shared(dataset),
        "written out": lambda: _written_out(dataset),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.process_time()
            way()
            times[name].append((time.process_time() - started) / TIMED)
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    return [
        f"DCGAN of 32 channels on {dataset.name}, batches of 64: CPU milliseconds a step, median of {ROUNDS} rounds in "
        f"turns of {TIMED} steps, start included; load {os.getloadavg()[0]:.1f}.",
        "",
        "| loop | ms a step |",
        "| --- | --- |",
        *(f"| {name} | {1000 * statistics.median(found):.1f} |" for name, found in times.items()),
        "",
        f"The shared loop takes {statistics.median(ratios):.2f} times as long "
        f"({min(ratios):.2f} to {max(ratios):.2f}).",
    ]


def _networks(shape: tuple[int, int, int]) -> tuple[DCGANGenerator, DCGANDiscriminator]:
    with initial_weights(0):
        return DCGANGenerator(shape, 32, 64), DCGANDiscriminator(shape, 32)


def _shared(dataset: Any) -> None:
    recipe = AdversarialRecipe(rates=TTUR(lr_g=5e-4, lr_d=1e-4), steps=TIMED, batch_size=64, seed=0)
    train_adversarial(dataset, *_networks(dataset.shape), recipe)


def _written_out(dataset: Any) -> None:
    net_g, net_d = _networks(dataset.shape)
    adam_g = torch.optim.Adam(net_g.parameters(), 5e-4, (0.5, 0.999))
    adam_d = torch.optim.Adam(net_d.parameters(), 1e-4, (0.5, 0.999))
    batches, rng = image_batches(dataset, batch_size=64, seed=0), generator(0)
    for i in range(TIMED):
        real, fake = batches(i).x0, net_g.images(torch.randn(64, 64, generator=rng))
        adam_d.zero_grad()
        (F.softplus(-net_d(real)).mean() + F.softplus(net_d(fake.detach())).mean()).backward()
        adam_d.step()
        adam_g.zero_grad()
        F.softplus(-net_d(fake)).mean().backward()
        adam_g.step()


def run(folder: Path) -> list[str]:
    """What a finished run says of its generator, as tables."""
    return [
        *_leaderboard(folder),
        *(_arms(folder / "ttur", "Two rates against one", "two rates") if (folder / "ttur").is_dir() else []),
        *(_arms(folder / "vitgan", "ViTGAN, part by part", "full") if (folder / "vitgan").is_dir() else []),
        *(_detection(folder / "detect") if (folder / "detect").is_dir() else []),
    ]


def _leaderboard(folder: Path) -> list[str]:
    results = read_results(files_in([folder / "evaluate"], ".json"))
    lines = [
        f"## Leaderboard\n\n{results.metric}, seeds {results.protocol['seeds']}, {100 * (results.level or 0):g} % "
        f"intervals; real against real {results.baseline:.2f}.\n",
        "| NFE | sampler | grid | FD | precision | recall | ms an image |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for nfe in results.steps:
        lines += [
            f"| {nfe} | {row['sampler']} | {row['grid']} | {row['fd']:.2f} [{row['fd_low']:.2f}, {row['fd_high']:.2f}] "
            f"| {row['precision']:.3f} | {row['recall']:.3f} | {row['ms']:.3f} |"
            for row in results.at(nfe).head(2).to_dict("records")
        ]
    return [*lines, ""]


def _arms(folder: Path, title: str, whole: str) -> list[str]:
    frame = read_table(folder / "trainings.csv")
    lines = [
        f"## {title}\n",
        "| arm | trainings | stopped | FD (geometric mean) | range | FD of the first over it | minutes | D steps |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in summary(frame):
        ratio = ""
        if row["arm"] != whole and row["n"] - row["stopped"] > 1:
            found: Measurement = fd_ratio(frame, whole, row["arm"])
            ratio = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
        lines.append(
            f"| {row['arm']} | {row['n']} | {row['stopped']} | {row['fd']:.1f} | {row['low']:.1f} to {row['high']:.1f} "
            f"| {ratio} | {row['minutes']:.2f} | {row['d_updates']:.0f} |"
        )
    return [
        *lines,
        "",
        f"The first is {whole}; intervals over pairs of seeds by Student's t.",
        "",
    ]


def _detection(folder: Path) -> list[str]:
    record = read_json(folder / "detection.json")
    head = record["protocol"]["headline"]
    lines = [
        f"## Detection\n\nAgainst real images, leak-free protocol, {record['protocol']['images']} images of each.\n",
        "| class | accuracy | AUROC |",
        "| --- | --- | --- |",
    ]
    for row in record["results"]:
        if all(row[name] == head[name] for name in head):
            cells = [
                f"{row[name]['value']:.3f} [{row[name]['interval'][0]:.3f}, {row[name]['interval'][1]:.3f}]"
                for name in ("accuracy", "auroc")
            ]
            lines.append(f"| {row['generator']} | {' | '.join(cells)} |")
    found = record["identification"]
    low, high = found["accuracy"]["interval"]
    return [
        *lines,
        "",
        f"Which of {len(found['classes'])} classes: {found['accuracy']['value']:.3f} [{low:.3f}, {high:.3f}], chance "
        f"{found['chance']:.3f}.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("toy")
    kinds.add_parser("speed").add_argument("folder", type=Path)
    kinds.add_parser("run").add_argument("folder", type=Path)
    given = parser.parse_args()
    name = given.folder.resolve().name if given.kind == "run" else given.kind
    lines = toy() if given.kind == "toy" else (speed if given.kind == "speed" else run)(given.folder)
    facts = environment()
    made = (
        f"torch {facts['torch']}, python {facts['python']}, {facts['platform']}, commit {facts['git_commit']}"
    )
    text = "\n".join(
        [f"# Generators: {name}", "", f"`benchmarks/gan.py {given.kind}`; {made}.", "", *lines]
    ).rstrip()
    with atomic_file(RESULTS / f"gan_{name}.md") as path:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    process.set_up()
    main()
