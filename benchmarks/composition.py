"""What alignment, narrower steps and both together buy on a trained model, on images that nothing was fitted to.

Run: composition.py align MODEL [PLAN...] --images DATA --reference STATS --extractor E --keep FOLDER
     composition.py widths MODEL [PLAN...]    what narrow networks and plans cost
     composition.py compare MODEL PLAN... --reference STATS --extractor E --keep FOLDER
Each writes benchmarks/results/composition_{align,widths,compare}_{NAME}.md.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from measured import Measured, Value

from fewstep import process
from fewstep.data.packed import load_dataset
from fewstep.data.pixels import to_unit
from fewstep.diffusion.schedule import Schedule
from fewstep.files import atomic_file
from fewstep.interop.load import load_model
from fewstep.methods.aligner.stage.run import Aligning
from fewstep.methods.aligner.stage.settings import AlignSettings
from fewstep.methods.ddsm.cost import latencies, macs
from fewstep.metrics import non_inferiority
from fewstep.metrics.extractor import load_extractor
from fewstep.metrics.reference import load_reference
from fewstep.metrics.uncertainty import paired_difference
from fewstep.pipeline.environment import environment
from fewstep.pipeline.settings import MARGIN
from fewstep.progress import track
from fewstep.rng import generator
from fewstep.sampling.document import save_plan
from fewstep.sampling.plan import Plan, load_plan, widths_of
from fewstep.sampling.presets import ANALYTIC, PRESETS, analytical
from fewstep.sampling.task import Task

RESULTS = Path(__file__).parent / "results"
FIRST = 10_000_000  # seed of the reported images
ALIGNED = ("ddim:uniform-t:10", "dpmpp-2m:uniform-t:10", "unipc-2:uniform-t:10")
KNOWN = tuple(
    f"{name}:{grid}"
    for name in ("dpmpp-2m", "unipc-2", "unipc-3", "ipndm-3")
    for grid in ("uniform-t", "quadratic-t", "uniform-lambda")
)


def _measured(args: argparse.Namespace) -> Measured:
    task = Task(load_model(args.model), batch_size=args.batch_size)
    extractor = load_extractor(args.extractor)
    reference = load_reference(args.reference, extractor=extractor)
    return Measured(task, reference, extractor, first=FIRST, keep=args.keep)


def _preset(text: str, schedule: Schedule) -> Plan:
    """From name:grid:calls, the grid perhaps followed by .analytic."""
    name, grid, nfe = text.split(":")
    make = partial(analytical, PRESETS[name]) if grid.endswith(ANALYTIC) else PRESETS[name]
    return make(schedule, int(nfe), grid=grid.removesuffix(ANALYTIC), to_zero=True)


def run_align(args: argparse.Namespace) -> None:
    """DDIM, known samplers and given plans, as they are and aligned."""
    measured = _measured(args)
    task = measured.task
    plans = [_preset(preset, task.model.schedule) for preset in args.presets]
    plans += [load_plan(path) for path in args.plans]
    settings = AlignSettings(
        objectives=args.objectives,
        teacher_substeps=args.substeps,
        noises=args.noises,
        gate_noises=args.noises,
        refine_iterations=args.refine,
        refine_images=args.refine_images,
        choice_images=args.choice,
        batch_size=args.batch_size,
    )
    dataset = load_dataset(args.images, "train")
    rows = torch.randperm(len(dataset), generator=generator(settings.seed, "images"))
    images = to_unit(dataset.batch(rows[: settings.noises + settings.gate_noises]))
    lines = [
        "| plan | plain | aligned | difference | ratio | chosen | moved | fit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for plan in plans:
        started = time.monotonic()
        found = Aligning(
            Task(task.model, batch_size=settings.batch_size),
            plan,
            settings,
            images=images,
            reference=measured.reference,
            extractor=measured.extractor,
            track=track,
        ).run()
        seconds = time.monotonic() - started
        save_plan(found.plan, measured.folder / f"{found.plan.name}.json")
        before = measured(plan, args.n)
        if found.plan.hash == plan.hash:
            cells = ["as it was", "", "1", found.record["why"], "0"]
        else:
            after = measured(found.plan, args.n)
            difference = paired_difference(after.fd, before.fd, after.replicates, before.replicates)
            low, high = difference.interval
            moved = sum(node.t_cond is not None for node in found.plan.nodes)
            cells = [
                str(after),
                f"{difference.value:.2f} [{low:.2f}, {high:.2f}]",
                f"{after.fd / before.fd:.2f}",
                found.record["chosen"],
                str(moved),
            ]
        lines.append(f"| {plan.name} | {before} | {' | '.join(cells)} | {seconds:.0f} s |")
        print(lines[-1], flush=True)
    _write(args, "align", f"Aligned times, FD of {args.n:,} images of unseen seeds", lines)


def run_widths(args: argparse.Namespace) -> None:
    """Multiply-adds and milliseconds of each width, and of narrowed plans as shares of the full network's."""
    model = load_model(args.model)
    counted = macs(model).widths
    timed = {
        batch: latencies(model, batch_size=batch, repeats=30 if batch == 1 else 10).widths
        for batch in (1, 64)
    }
    lines = [
        "| width | MACs | share | ms, batch 1 | share | ms per image, batch 64 | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for k, width in enumerate(model.widths):
        cells = [f"{t[k]:.3f} | {t[k] / t[0]:.2f}" for t in timed.values()]
        lines.append(
            f"| {width:g} | {counted[k]:,.0f} | {counted[k] / counted[0]:.3f} | {' | '.join(cells)} |"
        )
    plans = [load_plan(path) for path in args.plans]
    if plans:
        lines += [
            "",
            "| plan | widths | MACs saved | time saved, batch 1 | batch 64 |",
            "|---|---|---|---|---|",
        ]
    for plan in plans:
        chosen = widths_of(plan)
        saved = [
            1 - sum(table[k] for k in chosen) / (len(chosen) * table[0])
            for table in (counted, *timed.values())
        ]
        lines.append(
            f"| {plan.name} | {''.join(map(str, chosen))} | {' | '.join(f'{s:.1%}' for s in saved)} |"
        )
    _write(args, "widths", "What narrower networks save", lines)


def run_compare(args: argparse.Namespace) -> None:
    """Plans beside DDIM in 50 calls and the known sampler with the fewest calls that is shown to be as good as it."""
    measured = _measured(args)
    schedule = measured.task.model.schedule
    target = PRESETS["ddim"](schedule, 50, grid="uniform-t", to_zero=True)
    goal = measured(target, args.n)
    looked_at_goal = measured(target, args.look).fd if args.look else goal.fd
    known: list[tuple[Plan, Value]] = []
    for nfe in args.nfe:
        looked = [
            (plan, measured(plan, args.look or args.n))
            for plan in (_preset(f"{known}:{nfe}", schedule) for known in args.known)
        ]
        for plan, value in looked:
            print(plan.name, f"{value.fd:.2f}", flush=True)
        plan, value = min(looked, key=lambda row: row[1].fd)
        if value.fd <= looked_at_goal:
            value = measured(plan, args.n)
        if _as_good(value, goal, comparisons=len(args.nfe)):
            known.append((plan, value))
            break
    plans = [load_plan(path) for path in args.plans]
    rows = [(target, goal), *known, *((plan, measured(plan, args.n)) for plan in plans)]
    ms = _milliseconds(measured.task, [plan for plan, _ in rows], args.rounds)
    lines = [
        "| plan | calls | widths | FD | minus DDIM 50 | ms per image | times as fast as DDIM 50 | as the preset |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (plan, value), own in zip(rows, ms, strict=True):
        low, high = paired_difference(value.fd, goal.fd, value.replicates, goal.replicates).interval
        of_preset = f"{ms[1] / own:.2f}" if known else ""
        widths = "".join(map(str, widths_of(plan))) if plan.uses_sub_networks else "full"
        lines.append(
            f"| {plan.name} | {plan.nfe} | {widths} | {value} | [{low:.2f}, {high:.2f}] | {own:.3f} | "
            f"{ms[0] / own:.1f} | {of_preset} |"
        )
    _write(
        args,
        "compare",
        f"Quality and time, FD of {args.n:,} images of unseen seeds, batches of {args.batch_size}",
        lines,
    )


def _as_good(value: Value, goal: Value, *, comparisons: int) -> bool:
    pair = (non_inferiority.Measured(one.fd, one.replicates) for one in (value, goal))
    return non_inferiority.non_inferior(*pair, MARGIN, comparisons=comparisons).holds


def _milliseconds(task: Task, plans: Sequence[Plan], rounds: int) -> list[float]:
    """Of the whole sampler on one image, plans taking turns."""
    seeds = range(FIRST, FIRST + task.batch_size)
    seconds: list[list[float]] = [[] for _ in plans]
    for _ in range(rounds):
        for plan, own in zip(plans, seconds, strict=True):
            started = time.perf_counter()
            task.solve(plan, seeds)
            own.append(time.perf_counter() - started)
    return [1000 * median(own) / len(seeds) for own in seconds]


def _write(args: argparse.Namespace, what: str, title: str, lines: Sequence[str]) -> None:
    model = load_model(args.model)
    facts = ", ".join(f"{key} {value}" for key, value in environment().items() if isinstance(value, str))
    text = "\n".join(
        [f"# {title}", "", f"Model {model.name}, {model.fingerprint}.", "", *lines, "", facts, ""]
    )
    with atomic_file(RESULTS / f"composition_{what}_{args.name}.md") as temporary:
        temporary.write_text(text)
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, run in (("align", run_align), ("widths", run_widths), ("compare", run_compare)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("model", type=Path)
        command.add_argument("plans", type=Path, nargs="*")
        command.add_argument("--name", default="digits", help="in the name of the file that is written")
        command.add_argument("--n", type=int, default=10_000, help="images of each plan")
        if run is not run_widths:
            command.add_argument("--reference", type=Path, required=True)
            command.add_argument("--extractor", required=True)
            command.add_argument("--keep", type=Path, required=True, help="folder of features, to go on from")
            command.add_argument("--batch-size", type=int, default=250)
        if run is run_align:
            command.add_argument("--images", type=Path, required=True)
            command.add_argument("--presets", nargs="*", default=ALIGNED, help="name:grid:calls")
            command.add_argument("--objectives", nargs="+", default=["trajectory", "paper-sequential"])
            command.add_argument(
                "--substeps", type=int, default=8, help="of the fine solutions, in each step"
            )
            command.add_argument(
                "--noises", type=int, default=256, help="to fit by, and as many for the gate"
            )
            command.add_argument(
                "--refine", type=int, default=24, help="gradient steps on all times together"
            )
            command.add_argument("--refine-images", type=int, default=192, help="images of each")
            command.add_argument(
                "--choice", type=int, default=2000, help="images by which an alignment is chosen"
            )
        if run is run_compare:
            command.add_argument("--nfe", type=int, nargs="*", default=[6, 8, 10, 12, 15, 20])
            command.add_argument(
                "--rounds", type=int, default=15, help="in which plans take turns to be timed"
            )
            command.add_argument("--known", nargs="*", default=KNOWN, help="name:grid or name:grid.analytic")
            command.add_argument(
                "--look", type=int, default=0, help="images of a first look at known samplers"
            )
    return parser.parse_args()


if __name__ == "__main__":
    process.set_up()
    torch.set_num_threads(1)
    arguments = _arguments()
    arguments.run(arguments)
