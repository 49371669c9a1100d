"""What few bits cost in quality and buy in time, on a trained model and images that nothing was fitted to.

Run: quantisation.py quality MODEL PLAN --reference STATS --extractor E --keep FOLDER    FD of each way to round
     quantisation.py speed MODEL PLAN BUNDLE...    processor time of PyTorch and of bundles, in turns
     quantisation.py calibration MODEL PLAN        time to quantise, in one pass and as published
Each writes benchmarks/results/quantisation_{quality,speed,calibration}_{NAME}.md; quality goes on where it ended.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measured import Measured

from fewstep import process
from fewstep.files import atomic_file
from fewstep.interop.load import load_model
from fewstep.interop.runner import Bundle
from fewstep.interop.zoo import find_reference
from fewstep.methods.tfmq.calibration import Call, record
from fewstep.methods.tfmq.kept import Kept
from fewstep.methods.tfmq.quantise import Recipe, quantise
from fewstep.methods.tfmq.stage.run import Quantising, with_bits
from fewstep.methods.tfmq.stage.settings import QuantizeSettings
from fewstep.metrics.extractor import load_extractor
from fewstep.metrics.reference import load_reference
from fewstep.metrics.uncertainty import paired_difference
from fewstep.nets.quantised import Bits
from fewstep.pipeline.environment import environment
from fewstep.progress import track
from fewstep.rng import ImageNoise, generator
from fewstep.sampling.plan import Plan, load_plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.quantised import attached
from fewstep.sampling.sample import solve
from fewstep.sampling.task import Task

RESULTS = Path(__file__).parent / "results"
FIRST = 10_000_000  # seed of the reported images
WAYS = {  # method, scope of the ranges, gradient steps on the coefficients afterwards
    "tfmq, polished": ("tfmq", "all", 24),
    "block": ("block", "none", 0),
    "naive": ("naive", "none", 0),
    "tfmq": ("tfmq", "all", 0),
    "block + TIAR": ("tfmq", "none", 0),
    "table": ("table", "all", 0),
}


def _quality(args: argparse.Namespace) -> str:
    model, plan = load_model(args.model), load_plan(args.plan)
    extractor = load_extractor(args.extractor)
    reference = load_reference(find_reference(args.reference), extractor=extractor)
    task = Task(model, 1.0 if plan.guidance is None else plan.guidance, args.batch_size)
    base = Measured(task, reference, extractor, first=FIRST, keep=args.keep)
    floats = base(plan, args.n)
    rows = [f"| {plan.name} | floats | {floats} | | 1 | | | | |"]
    ways = [(bits, way) for way in args.ways for bits in args.bits]
    for bits, way in ways:
        method, scope, polish = WAYS[way]
        settings = QuantizeSettings(
            bits=[bits], methods=[method], fsc_scope=scope, noises=args.noises, iterations=args.iterations,
            temporal_iterations=args.temporal_iterations, polish_iterations=polish, polish_noises=16, gate_noises=64,
            batch_size=args.noises,
        )  # fmt: skip
        work = Quantising(task, plan, settings, args.keep / "work", track=track)
        made = work.run(work.recipes()[0])
        quantised = replace(task, model=attached(model, made.integers))
        value = replaced(base, quantised)(made.plan, args.n)
        difference = paired_difference(value.fd, floats.fd, value.replicates, floats.replicates, 0.95)
        low, high = difference.interval
        said = made.record
        cosine = np.mean([c for part in said["temporal"] for c in part["cosine"]])
        rows.append(
            f"| {bits} | {way} | {value} | {difference.value:.2f} [{low:.2f}, {high:.2f}] | {value.fd / floats.fd:.3f} "
            f"| {said['mse']:.2e} | {cosine:.1e} | {said['bytes'] / 1e6:.3g} of {said['float_bytes'] / 1e6:.3g} | "
            f"{'yes' if said['fits']['chosen'] == 'polished' else ''} |"
        )
        _write(args, _table(args, model.fingerprint, rows))
    return _table(args, model.fingerprint, rows)


def replaced(base: Measured, task: Task) -> Measured:
    """The same measurements with another task."""
    made = object.__new__(Measured)
    made.__dict__.update(base.__dict__ | {"task": task})
    return made


def _table(args: argparse.Namespace, fingerprint: str | None, rows: list[str]) -> str:
    head = [
        f"# Few bits, FD of {args.n:,} images of unseen seeds",
        f"Model {Path(args.model).name}, {fingerprint}; plan {Path(args.plan).stem}; calibration on {args.noises} "
        f"trajectories, {args.iterations} steps a block.",
        "MSE: to the images of the same noises in floats, in [-1, 1]; 1 - cosine: of the features of the time; MB: of "
        "all weights, as stored.",
        "",
        "| bits | rounding | FD | less that in floats | ratio | MSE | 1 - cosine | MB | coefficients moved |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head[:2], "", *head[2:], *rows])


def _speed(args: argparse.Namespace) -> str:
    """Processor time of whole samplers, in turns: on a busy machine wall time says who else was there."""
    model, plan = load_model(args.model), load_plan(args.plan)
    target = PRESETS["ddim"](model.schedule, args.target, grid="uniform-t", to_zero=True)
    rows = []
    for batch in args.batches:
        x_T = ImageNoise(range(batch), model.shape)()
        runs: dict[str, Callable[[], object]] = {
            "PyTorch, eager, f32": lambda x_T=x_T: solve(model, plan, x_T),
            f"PyTorch, DDIM in {args.target} calls": lambda x_T=x_T: solve(model, target, x_T),
        }
        sizes = {"PyTorch, eager, f32": sum(4 * p.numel() for p in model.net.parameters())}
        for folder in args.bundles:
            bundle = Bundle(folder)
            bits, precision = bundle.manifest["bits"], bundle.manifest["precision"]
            name = f"OpenVINO, {precision if bits is None else f'{bits} and {precision}'}"
            runs[name] = lambda bundle=bundle, x_T=x_T: bundle.solve(x_T.numpy())
            sizes[name] = sum((folder / one).stat().st_size for one in bundle.manifest["networks"])
        seconds = {name: [] for name in runs}
        for i in range(args.rounds + 1):
            for name, run in runs.items():
                started = time.process_time()
                run()
                if i:  # the first lays out memory, and compiles
                    seconds[name].append(time.process_time() - started)
        first = next(iter(runs))
        for name, own in seconds.items():
            ratios = [a / b for a, b in zip(seconds[first], own, strict=True)]
            size = f"{sizes[name] / 1e6:.3g}" if name in sizes else ""
            rows.append(
                f"| {batch} | {name} | {1000 * median(own) / batch:.3g} | {median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}) | {size} |"
            )
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    name = next(
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    )
    return "\n".join(
        [
            "# Processor time of one image, in turns",
            f"{name.partition(':')[2].strip()}, "
            f"{', '.join(f for f in ('avx512_vnni', 'avx512_bf16') if f in flags)}; one thread, {args.rounds} rounds, "
            f"load {os.getloadavg()[0]:.1f}. Model {Path(args.model).name}; plan {plan.name}, {plan.nfe} calls.",
            "",
            "| batch | sampler | ms an image | times as fast as PyTorch (range of the rounds) | MB |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _calibration(args: argparse.Namespace) -> str:
    """The same blocks and steps: one pass on the plan's trajectories, and a pass of its own for every block on random
    pairs of image and time, as published."""
    model, plan = load_model(args.model), load_plan(args.plan)
    task, seeds = Task(model, batch_size=args.noises), range(1_800_000_000, 1_800_000_000 + args.noises)
    test = range(1_900_000_000, 1_900_000_000 + 256)
    exact = task.solve(plan, test)
    recipe = Recipe(Bits.parse(args.bits[0]), "tfmq", iterations=args.iterations, temporal_iterations=500)
    block = replace(recipe, method="block")
    fewer = {
        f"one pass, TFMQ, 1/{k} of the steps": replace(
            recipe, iterations=recipe.iterations // k, temporal_iterations=recipe.temporal_iterations // k
        )
        for k in (4, 10)
    }
    rows = []
    for name, made in (
        ("one pass, TFMQ", lambda: quantise(task, plan, recipe, seeds=seeds)),
        *((name, lambda one=one: quantise(task, plan, one, seeds=seeds)) for name, one in fewer.items()),
        ("one pass, blocks", lambda: quantise(task, plan, block, seeds=seeds)),
        ("a pass a block, random x and t", lambda: _published(task, plan, block, args.noises)),
    ):
        started = time.process_time()
        integers, _ = made()
        seconds = time.process_time() - started
        quantised = replace(task, model=attached(model, integers))
        mse = float((quantised.solve(with_bits(plan, integers), test) - exact).pow(2).mean())
        rows.append(f"| {name} | {seconds:.1f} | {mse:.2e} |")
    return "\n".join(
        [
            f"# Processor seconds to quantise, {args.bits[0]}",
            f"Model {Path(args.model).name}; plan {plan.name}; {args.iterations} steps a block.",
            "",
            "| how | s | MSE to the images in floats |",
            "|---|---|---|",
            *rows,
        ]
    )


def _published(task: Task, plan: Plan, recipe: Recipe, noises: int) -> tuple[object, object]:
    """Blocks on pairs of a 100-step DDIM sampler, drawn at random, whose inputs are made anew for each block."""
    long = PRESETS["ddim"](task.model.schedule, 100, grid="uniform-t")
    seeds = range(1_850_000_000, 1_850_000_000 + noises)
    pool, calls = record(task, long, seeds), record(task, plan, seeds)
    rng = generator(0, "published")
    rows = torch.randint(len(pool) * noises, (len(calls) * noises,), generator=rng)
    x, time_ = torch.cat([call.x for call in pool])[rows], torch.cat([call.time for call in pool])[rows]
    drawn = [
        Call(x[i :: len(calls)], time_[i :: len(calls)], None, call.t, call.width)
        for i, call in enumerate(calls)
    ]
    net = task.model.module(0)
    for _ in net.units():  # what is cached for one block is not kept for the next: both networks, once more
        for part in torch.split(torch.arange(len(x)), noises):
            with torch.no_grad():
                net(x[part], time_[part])
                net(x[part], time_[part])
    return quantise(task, plan, recipe, seeds=seeds, calls=drawn, kept=Kept())


def _write(args: argparse.Namespace, text: str) -> None:
    facts = ", ".join(f"{name} {value}" for name, value in environment().items())
    with atomic_file(RESULTS / f"quantisation_{args.command}_{args.name}.md") as temporary:
        temporary.write_text(f"{text}\n\n{facts}\n")


def main() -> None:
    process.set_up()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["quality", "speed", "calibration"])
    parser.add_argument("model", type=Path)
    parser.add_argument("plan", type=Path)
    parser.add_argument("bundles", type=Path, nargs="*")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--extractor", default="effnet-lite0-p320")
    parser.add_argument("--keep", type=Path, default=Path("state/quantisation"))
    parser.add_argument("--name", required=True, help="of the result")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w4a8", "w4a32"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--noises", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--temporal-iterations", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--target", type=int, default=50)
    args = parser.parse_args()
    text = {"quality": _quality, "speed": _speed, "calibration": _calibration}[args.command](args)
    _write(args, text)
    print(text)


if __name__ == "__main__":
    main()
