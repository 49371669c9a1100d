"""Solver search against known solvers: what it finds, on seeds it never saw, and what it costs.

Run: OMP_NUM_THREADS=1 python benchmarks/solver_search.py mixture     the closed-form mixture, held-out error
     OMP_NUM_THREADS=1 python benchmarks/solver_search.py samplers    best-so-far of the search's samplers on it
     OMP_NUM_THREADS=1 python benchmarks/solver_search.py polish      the same network calls as few or many updates
     OMP_NUM_THREADS=1 python benchmarks/solver_search.py model MODEL --reference STATS --extractor E --keep FOLDER
         --unfitted U --unfitted-reference STATS: in features that nothing was fitted to, too
     OMP_NUM_THREADS=1 python benchmarks/solver_search.py draw MODEL PLAN...     the same noises under every plan
Each writes its table to benchmarks/results/solver_search_<what>.md; the last one under the name given by --name.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measured import Measured, Value
from PIL import Image

from fewstep import process
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import VPLinear
from fewstep.files import atomic_file, canonical_json, read_json, sha256_text, write_json
from fewstep.interop.load import load_model
from fewstep.methods.s3.space import Space, plan_of
from fewstep.methods.s3.stage.decisions import SAMPLERS, best_decisions, run_plan_trials
from fewstep.methods.s3.stage.known import known_samplers
from fewstep.methods.s3.stage.run import run_search
from fewstep.methods.s3.stage.scoring import Search
from fewstep.methods.s3.stage.seeds import search_seeds
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.methods.s3.stage.solutions import solve_teacher
from fewstep.methods.s3.teacher import make_teacher
from fewstep.metrics.extractor import Extractor, load_extractor
from fewstep.metrics.reference import Reference, load_reference
from fewstep.metrics.uncertainty import paired_difference
from fewstep.pipeline import trials as studies
from fewstep.pipeline.environment import environment
from fewstep.pipeline.report import figures
from fewstep.progress import track
from fewstep.sampling.descent import polish, trajectory_gradient
from fewstep.sampling.document import save_plan
from fewstep.sampling.free import FreePlan
from fewstep.sampling.plan import Plan, load_plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import sample, solve
from fewstep.sampling.task import Task, distances

RESULTS = Path(__file__).parent / "results"
SEEDS = (1_000_000_000, 2_000_000_000, 3_000_000_000)
PROTOTYPE = {5: 0.049, 6: 0.028, 8: 0.021}
"""Per NFE: error of gradients on gaps and three coefficients a step, measured in a prototype before this code."""


def mixture() -> Model:
    """Eight Gaussians in 16 dimensions on the linear variance-preserving schedule."""
    random = np.random.RandomState(0)
    means = random.randn(8, 16)
    means *= 2 / np.linalg.norm(means, axis=1, keepdims=True)
    stds, weights = random.uniform(0.05, 0.2, 8), random.uniform(0.5, 1.5, 8)
    tensors = (torch.from_numpy(values) for values in (weights / weights.sum(), means, stds))
    return GaussianMixture(*tensors).model(VPLinear())


class HeldOut:
    """1024 noises that no search draws, and their solutions in 1000 steps."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.x_T = torch.from_numpy(np.random.RandomState(1).randn(1024, 16))
        fine = PRESETS["unipc-3"](model.schedule, 1000, lower_final=False)
        self.solution = solve(model, fine, self.x_T)

    def error(self, plan: Plan) -> float:
        return float(distances(solve(self.model, plan, self.x_T), self.solution).mean())


def best_known(nfe: int) -> tuple[float, str]:
    """Held-out error and name of the best preset on any grid."""
    model = mixture()
    held_out, task = HeldOut(model), Task(model, batch_size=512)
    seeds = [range(first, first + 64) for first in SEEDS[:2]]
    teacher = make_teacher(task, *seeds, nfe=100, to_zero=False)
    settings = SearchSettings(noises=64, trial_noises=64)
    search = Search(task, teacher, Space(model.schedule, nfe, to_zero=False, analytic=False), settings)
    return min((held_out.error(c.plan), c.name) for c in known_samplers(search))


def mixture_search(nfe: int, seed: int) -> tuple[float, float, int]:
    """Held-out error, seconds and network calls of a whole search."""
    model = mixture()
    settings = SearchSettings(
        trials=100, noises=1024, trial_noises=128, teacher_nfe=200, polish_iterations=500, polish_noises=1024,
        polish_lr=0.05, seed=seed, batch_size=4096,
    )  # fmt: skip
    task = Task(model, batch_size=settings.batch_size)
    started = time.monotonic()
    teacher = solve_teacher(task, settings, to_zero=False)
    space = Space(model.schedule, nfe, to_zero=False, analytic=False)
    with tempfile.TemporaryDirectory() as folder:
        found = run_search(
            Search(task, teacher, space, settings),
            storage=f"{folder}/journal.log",
            work=Path(folder),
            track=track,
        )
    return HeldOut(model).error(found.plan), time.monotonic() - started, task.calls


def run_mixture(_: argparse.Namespace) -> None:
    lines = [
        "| NFE | best known solver | prototype | searched, three seeds | seconds | network calls |",
        "|---|---|---|---|---|---|",
    ]
    for nfe, prototype in PROTOTYPE.items():
        known, name = best_known(nfe)
        runs = [mixture_search(nfe, seed) for seed in SEEDS]
        errors = ", ".join(f"{error:.4f}" for error, _, _ in runs)
        seconds = ", ".join(f"{s:.0f}" for _, s, _ in runs)
        lines.append(f"| {nfe} | {name} {known:.4f} | {prototype} | {errors} | {seconds} | {runs[0][2]:,} |")
    _write(
        "mixture",
        "Held-out error on the closed-form mixture (mean distance to 1000 steps, 1024 noises)",
        lines,
    )


SAMPLER_CALLS = (20_000, 50_000, 100_000, 200_000)


def run_samplers(arguments: argparse.Namespace) -> None:
    """Best-so-far at equal network calls, held-out, NFE 5; then each polished with the calls that are left."""
    model, nfe, noises = mixture(), 5, 128
    held_out = HeldOut(model)
    lines = [
        f"| sampler | {' | '.join(f'{n:,} calls' for n in SAMPLER_CALLS)} | + polish at {2 * SAMPLER_CALLS[-1]:,} |",
        "|---|" + "---|" * (len(SAMPLER_CALLS) + 1),
    ]
    for sampler in SAMPLERS:
        curves = [_sampler_curve(model, held_out, sampler, nfe, noises, seed) for seed in SEEDS]
        cells = [", ".join(f"{curve[k]:.3f}" for curve in curves) for k in range(len(SAMPLER_CALLS) + 1)]
        lines.append(f"| {sampler} | {' | '.join(cells)} |")
    title = f"Held-out error of the best plan so far at NFE {nfe}, three seeds, {noises} noises a trial"
    _write("samplers", title, lines)


def _sampler_curve(
    model: Model, held_out: HeldOut, sampler: str, nfe: int, noises: int, seed: int
) -> list[float]:
    settings = SearchSettings(noises=1024, trial_noises=noises, seed=seed, sampler=sampler, batch_size=4096)
    task = Task(model, batch_size=settings.batch_size)
    seeds = search_seeds(settings)
    teacher = make_teacher(task, seeds["trials"], seeds["validation"][:256], nfe=200, to_zero=False)
    space = Space(model.schedule, nfe, to_zero=False, analytic=False)
    search = Search(task, teacher, space, settings)
    ranked = sorted(known_samplers(search), key=lambda c: search.error(c.plan, teacher.seeds[:16]))[:12]
    with tempfile.TemporaryDirectory() as folder:
        study = studies.open_study(f"{folder}/journal.log", f"nfe{nfe}", {}, parts=len(search.parts))
        known = [(c.name, space.decisions(c.plan)) for c in ranked]
        studies.enqueue(study, [(name, decisions) for name, decisions in known if decisions])
        start, found, trials = task.calls, [], 0
        for budget in SAMPLER_CALLS:
            while task.calls - start < budget:
                trials += 10
                run_plan_trials(
                    study, space, search.score(math.inf), trials=trials, sampler=sampler, seed=seed,
                    network_calls=lambda: task.calls,
                )  # fmt: skip
            best = plan_of(space, best_decisions(study, 1)[0][1])
            found.append(held_out.error(best))
    free = FreePlan(best, model.schedule)
    iterations = SAMPLER_CALLS[-1] // (nfe * 512)
    polish(
        free, trajectory_gradient(task, search.distances), lambda i: teacher.seeds[(i % 2) * 512 :][:512],
        search.error, iterations=iterations, lr=0.05,
    )  # fmt: skip
    return [*found, held_out.error(free.plan())]


def run_model(arguments: argparse.Namespace) -> None:
    """FD of searched plans over that of the best preset, on seeds that no search saw."""
    task = Task(load_model(arguments.model), batch_size=arguments.batch_size)
    extractor = load_extractor(arguments.extractor)
    reference = load_reference(arguments.reference, extractor=extractor)
    spaces = [Measured(task, reference, extractor, first=arguments.first, keep=arguments.keep)]
    if arguments.unfitted is not None:
        other = load_extractor(arguments.unfitted)
        statistics = load_reference(arguments.unfitted_reference, extractor=other)
        spaces.append(Measured(task, statistics, other, first=arguments.first, keep=arguments.keep))
    given = {name: getattr(arguments, name, None) for name in SearchSettings.model_fields}
    # what other numbers of calls are asked for does not make another search
    given = {name: value for name, value in given.items() if value is not None and name != "nfe"}
    lines = []
    for nfe in arguments.nfe:
        runs = []
        for seed in SEEDS[: arguments.seeds]:
            settings = SearchSettings(**{**given, "seed": seed})
            runs.append(_searched(task.model, nfe, settings, reference, extractor, arguments))
        # the presets are given every advantage: the best of all on the very seeds that are reported on
        presets = {plan.hash: plan for run in runs for plan in run.presets}.values()
        known = []
        for measured in spaces:
            looked = sorted(presets, key=lambda plan: measured(plan, arguments.look).fd)[: arguments.best]
            known.append(min(((p, measured(p, arguments.n)) for p in looked), key=lambda row: row[1].fd))
        for run in runs:
            cells = [_against(m(run.plan, arguments.n), *best) for m, best in zip(spaces, known, strict=True)]
            lines.append(
                f"| {nfe} | {run.winner} | {' | '.join(cells)} | {run.seconds:.0f} | {run.calls:,} |"
            )
            print(lines[-1], flush=True)
    columns = "best preset, its FD | searched | ratio | difference |"
    headings = [f"{m.extractor.id}: {columns}" for m in spaces]
    head = [
        f"| NFE | winner | {' '.join(headings)} seconds | network calls |",
        f"|---|---|{'---|' * 4 * len(spaces)}---|---|",
    ]
    title = (
        f"{task.model.name}: FD of {arguments.n:,} images on seeds from {arguments.first:,}, which no search saw; "
        f"fitted in {extractor.id}"
    )
    _write(arguments.name, title, [*head, *lines])


def _against(ours: Value, preset: Plan, theirs: Value) -> str:
    """Cells of a table: the best preset, the searched plan, and how they compare."""
    low, high = paired_difference(ours.fd, theirs.fd, ours.replicates, theirs.replicates, 0.95).interval
    return f"{preset.name} {theirs} | {ours} | {ours.fd / theirs.fd:.2f} | [{low:.2f}, {high:.2f}]"


POLISHES = ((125, 1024), (250, 512), (500, 256), (1000, 128))
"""Updates, and noises of each: of all as many network calls."""


def run_polish(arguments: argparse.Namespace) -> None:
    """Held-out error of the best preset polished by few large or many small updates, at equal network calls."""
    model = mixture()
    held_out, task = HeldOut(model), Task(model, batch_size=4096)
    updates, noises = POLISHES[0]
    settings = SearchSettings(noises=4 * noises, trial_noises=64, finalist_images=1024)
    teacher = make_teacher(
        task,
        search_seeds(settings)["trials"],
        search_seeds(settings)["validation"][:1024],
        nfe=200,
        to_zero=False,
    )
    lines = [
        f"| NFE | best preset | {' | '.join(f'{n} updates of {size}' for n, size in POLISHES)} |",
        "|---|---|" + "---|" * len(POLISHES),
    ]
    for nfe in arguments.nfe:
        space = Space(model.schedule, nfe, to_zero=False, analytic=False)
        search = Search(task, teacher, space, settings)
        preset = min(known_samplers(search), key=lambda c: search.error(c.plan, teacher.validation[:64]))
        cells = []
        for n, size in POLISHES:
            free = FreePlan(preset.plan, model.schedule)
            last = len(teacher.seeds) - size + 1
            polish(
                free, trajectory_gradient(task, search.distances),
                lambda i, size=size, last=last: teacher.seeds[i * size % last :][:size],
                search.error, iterations=n, lr=0.05,
            )  # fmt: skip
            cells.append(f"{held_out.error(free.plan()):.4f}")
        lines.append(f"| {nfe} | {preset.name} {held_out.error(preset.plan):.4f} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    title = f"Held-out error on the closed-form mixture after {updates * noises:,} solutions a call, lr 0.05"
    _write("polish", title, lines)


class Run(NamedTuple):
    """A search that has ended: its plan, the presets to beat, and what it cost."""

    plan: Plan
    winner: str
    presets: list[Plan]
    seconds: float
    calls: int


def _searched(
    model: Model,
    nfe: int,
    settings: SearchSettings,
    reference: Reference,
    extractor: Extractor,
    arguments: argparse.Namespace,
) -> Run:
    """The search of `arguments.keep`, which resumes where it was interrupted; seconds are those of the last start."""
    identity = sha256_text(canonical_json([model.fingerprint, settings.model_dump(mode="json")]))
    folder = arguments.keep / f"nfe{nfe}-{identity[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run.json").exists():
        task = Task(model, batch_size=settings.batch_size)
        started = time.monotonic()
        teacher = solve_teacher(task, settings, to_zero=True)
        search = Search(task, teacher, Space(model.schedule, nfe), settings, reference, extractor)
        found = run_search(search, storage=f"{folder}/journal.log", work=folder, track=track)
        seconds = time.monotonic() - started
        known = {c.plan.hash: replace(c.plan, name=c.name) for c in known_samplers(search)}
        save_plan(found.plan, folder / "plan.json")
        for hash, preset in known.items():
            save_plan(preset, folder / "presets" / f"{hash}.json")
        facts = {
            "winner": found.record["winner"],
            "finalists": [row["hash"] for row in found.record["finalists"][: settings.finalists]],
            "seconds": seconds,
            "calls": task.calls,
        }
        write_json(folder / "run.json", facts)
    facts = read_json(folder / "run.json")
    presets = [
        load_plan(path)
        for path in sorted((folder / "presets").iterdir())
        if path.stem in facts["finalists"] or not arguments.finalists_only
    ]
    return Run(load_plan(folder / "plan.json"), facts["winner"], presets, facts["seconds"], facts["calls"])


def run_draw(arguments: argparse.Namespace) -> None:
    """The same noises under several plans, one row each."""
    model = load_model(arguments.model)
    seeds, strips = range(arguments.first, arguments.first + arguments.columns), {}
    for path in arguments.plans:
        plan = load_plan(path)
        images = sample(model, plan, seeds=seeds).permute(2, 0, 3, 1).numpy()
        strips[f"{plan.name.split('.to-zero')[0]}\n{plan.nfe} calls"] = Image.fromarray(
            images.reshape(model.shape[1], -1, model.shape[0])
        )
    title = f"the same noises under every plan, seeds {seeds[0]:,} to {seeds[-1]:,}"
    picture = figures.samples_figure(strips, columns=len(seeds), title=title)
    figures.save(picture, RESULTS / f"solver_search_{arguments.name}")


def _write(name: str, title: str, lines: Sequence[str]) -> None:
    facts = ", ".join(f"{key} {value}" for key, value in environment().items() if isinstance(value, str))
    text = "\n".join([f"# {title}", "", *lines, "", facts, ""])
    with atomic_file(RESULTS / f"solver_search_{name}.md") as temporary:
        temporary.write_text(text)
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(required=True)
    what.add_parser("mixture").set_defaults(run=run_mixture)
    what.add_parser("samplers").set_defaults(run=run_samplers)
    polishes = what.add_parser("polish")
    polishes.add_argument("--nfe", type=int, nargs="+", default=[3, 4, 5, 6, 8, 10])
    polishes.set_defaults(run=run_polish)
    model = what.add_parser("model")
    model.add_argument("model")
    model.add_argument("--reference", required=True)
    model.add_argument("--extractor", required=True)
    model.add_argument("--unfitted", help="an extractor that nothing is fitted to")
    model.add_argument("--unfitted-reference", help="statistics in its features")
    model.add_argument("--name", default="model")
    model.add_argument("--nfe", type=int, nargs="+", default=[3, 4, 5, 6, 8, 10])
    model.add_argument("--seeds", type=int, default=3, help="searches per NFE")
    model.add_argument("--n", type=int, default=10_000, help="images that are reported on")
    model.add_argument("--first", type=int, default=0, help="seed of the first reported image")
    model.add_argument("--look", type=int, default=1000, help="images of a first look at the presets")
    model.add_argument("--best", type=int, default=3, help="presets that are measured on all images")
    model.add_argument(
        "--finalists-only",
        action="store_true",
        help="of the presets, look at those alone that the search ranks first",
    )
    model.add_argument(
        "--keep", type=Path, required=True, help="folder of searches and features, to go on from"
    )
    model.add_argument("--batch-size", type=int, default=500)
    for name, field in SearchSettings.model_fields.items():
        if field.annotation is int and name not in ("seed", "batch_size"):
            model.add_argument(f"--{name.replace('_', '-')}", type=int)
    model.set_defaults(run=run_model)
    draw = what.add_parser("draw")
    draw.add_argument("model")
    draw.add_argument("plans", nargs="+", type=Path)
    draw.add_argument("--name", default="model")
    draw.add_argument("--first", type=int, default=0, help="seed of the first image")
    draw.add_argument("--columns", type=int, default=12)
    draw.set_defaults(run=run_draw)
    return parser.parse_args()


if __name__ == "__main__":
    process.set_up()
    torch.set_num_threads(1)
    arguments = _arguments()
    arguments.run(arguments)
