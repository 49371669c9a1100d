"""The search's plans beside the solvers that others train, at equal network calls, teacher, noises and loss.

Run: OMP_NUM_THREADS=1 python benchmarks/solver_training.py mixture --keep FOLDER      the closed-form mixture
Writes benchmarks/results/solver_training_mixture.md from what FOLDER holds, and goes on where it was interrupted.

A call of the network counts once, and three times where gradients go back through it. The search gets what it spends
with the settings below; every training gets the same number of calls at the same number of steps, its teacher's among
them. All learn from the distance to the same kind of fine solution, and are judged by it on noises that nobody saw:
perceptual losses, as their papers have them, do not exist for vectors, and nor do critics.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from peers.trained import RECIPES, Solver, train
from solver_search import SEEDS, HeldOut, mixture
from torch import Tensor

from fewstep import process
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import Schedule
from fewstep.files import atomic_file, read_json, write_json
from fewstep.methods.s3.space import Space
from fewstep.methods.s3.stage.known import known_samplers
from fewstep.methods.s3.stage.run import run_search
from fewstep.methods.s3.stage.scoring import Search
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.methods.s3.stage.solutions import solve_teacher
from fewstep.methods.s3.teacher import make_teacher
from fewstep.pipeline.environment import environment
from fewstep.progress import track
from fewstep.rng import ImageNoise
from fewstep.sampling.plan import Plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve
from fewstep.sampling.task import Task
from fewstep.sampling.trained import Eps, Sampler, plan_of

RESULTS = Path(__file__).parent / "results"
NFES = (5, 3, 8, 4, 6, 10)
TEACHER_CALLS, POOL = 200, 1400  # of a fine solution; GAS trains on as many
TRAINING_SEED = 1_500_000_000


class Counted:
    """A model whose network calls are counted, one for each image and three where gradients go back."""

    def __init__(self, model: Model) -> None:
        self.calls = 0

        def fn(x: Tensor, t: Tensor) -> Tensor:
            back = torch.is_grad_enabled() and (x.requires_grad or t.requires_grad)
            self.calls += len(x) * (3 if back else 1)
            return model.fn(x, t)

        self.model = replace(model, fn=fn)


def eps_in(model: Model, frame: Schedule) -> Eps:
    """The model's eps_hat at a state and a time of a frame."""
    schedule = model.schedule

    def eps(x: Tensor, t: Tensor) -> Tensor:
        own = schedule.t_of_lambda(frame.lambda_(t)).clamp(schedule.t_min, schedule.t_max)
        return model.fn(schedule.alpha(own) / frame.alpha(t) * x, own.expand(len(x)))

    return eps


def plan_in(solver: Solver, schedule: Schedule, name: str) -> Plan:
    with torch.no_grad():
        sampler = solver.sampler()
        return plan_of(sampler, schedule, solver.frame, t_start=solver.t_start, t_end=solver.t_end, name=name)


def search_mixture(nfe: int, seed: int) -> dict[str, float]:
    """Held-out error and calls of a search, and of the best known sampler."""
    counted = Counted(mixture())
    settings = SearchSettings(
        trials=100, noises=512, trial_noises=128, teacher_nfe=TEACHER_CALLS, polish_iterations=200,
        polish_noises=256, polish_lr=0.05, seed=seed, batch_size=4096,
    )  # fmt: skip
    task = Task(counted.model, batch_size=settings.batch_size)
    teacher = solve_teacher(task, settings, to_zero=False)
    space = Space(counted.model.schedule, nfe, to_zero=False)
    with tempfile.TemporaryDirectory() as folder:
        search = Search(task, teacher, space, settings)
        found = run_search(search, storage=f"{folder}/journal.log", work=Path(folder), track=track)
    calls = counted.calls
    return {"error": HeldOut(mixture()).error(found.plan), "calls": calls}


def best_known(nfe: int) -> dict[str, float | str]:
    """Best of the presets on all grids, that of GITS among them, with and without an analytical first step."""
    model = mixture()
    held_out, task = HeldOut(model), Task(model, batch_size=512)
    seeds = [range(first, first + 64) for first in SEEDS[:2]]
    teacher = make_teacher(task, *seeds, nfe=100, to_zero=False)
    settings = SearchSettings(noises=64, trial_noises=64)
    search = Search(task, teacher, Space(model.schedule, nfe, to_zero=False), settings)
    error, name = min((held_out.error(c.plan), c.name) for c in known_samplers(search))
    return {"error": error, "name": name}


def train_on_mixture(method: str, nfe: int, budget: int) -> dict[str, float] | None:
    """Held-out error of a peer's solver, trained with as many calls."""
    counted = Counted(mixture())
    model, recipe = counted.model, RECIPES[method]
    solver = recipe.make(model.schedule, nfe)
    if solver is None:
        return None
    started = time.process_time()
    noise = ImageNoise(range(TRAINING_SEED, TRAINING_SEED + POOL), model.shape)().double()
    fine = PRESETS["unipc-3"](model.schedule, TEACHER_CALLS, lower_final=False)
    target = solve(model, fine, noise)
    eps = eps_in(model, solver.frame)
    # a first state of the frame at the noise level of x_T, and its result at the noise level of the end
    scales = [
        float(solver.frame.alpha(t) / model.schedule.alpha(own))
        for t, own in (
            (solver.t_start, model.schedule.t_start),
            (solver.t_end, model.schedule.t_min),
        )
    ]

    def loss(sampler: Sampler, rows: Tensor) -> Tensor:
        x0 = sampler(eps, scales[0] * noise[rows]) / scales[1]
        return torch.linalg.vector_norm(x0 - target[rows], dim=1).mean()

    def draw(update: int, batch: int) -> Tensor:
        first = update * batch % (POOL - batch + 1)
        return torch.arange(first, first + batch)

    updates = train(recipe, solver, loss, draw, lambda: counted.calls, budget - counted.calls)
    plan = plan_in(solver, model.schedule, method)
    assert plan.nfe == nfe, f"{method} makes {plan.nfe} calls where {nfe} were asked for"
    return {
        "error": HeldOut(mixture()).error(plan),
        "depth": plan.depth,
        "updates": updates,
        "calls": counted.calls,
        "seconds": time.process_time() - started,
    }


def run_mixture(arguments: argparse.Namespace) -> None:
    arguments.keep.mkdir(parents=True, exist_ok=True)

    def kept(name: str, make) -> dict:
        file = arguments.keep / f"{name}.json"
        if not file.exists():
            write_json(file, make())
            print(name, read_json(file), flush=True)
        return read_json(file)

    for nfe in arguments.nfe:
        ours = [
            kept(f"search.{nfe}.{i}", lambda s=seed, n=nfe: search_mixture(n, s))
            for i, seed in enumerate(SEEDS)
        ]
        kept(f"known.{nfe}", lambda n=nfe: best_known(n))
        budget = int(ours[0]["calls"])
        for method in RECIPES:
            kept(f"{method}.{nfe}", lambda m=method, n=nfe, b=budget: train_on_mixture(m, n, b))
        write_table(arguments.keep)


def write_table(keep: Path) -> None:
    """Of the numbers of calls at which all is there."""
    cells = {file.stem: read_json(file) for file in keep.glob("*.json")}
    whole = [n for n in sorted(NFES) if all(f"{m}.{n}" in cells for m in RECIPES)]
    head = " | ".join(f"{n} calls" for n in whole)
    lines = [
        "# Held-out error on the closed-form mixture: the search beside the solvers that others train",
        "",
        "Mean distance to 1000 steps over 1,024 noises that nobody trained, searched or chose on. Every column has one "
        "number of network calls for all rows but the known samplers, the last row; a call counts three times where "
        "gradients go back through it. –: cannot make so many calls. In brackets the depth, where calls can be made "
        "side by side.",
        "",
        f"| | {head} |",
        "|---|" + "---|" * len(whole),
    ]

    def cell(name: str) -> str:
        found = cells.get(name)
        if not found:
            return "–"
        n = int(name.rpartition(".")[2])
        depth = int(found.get("depth", n))
        return f"{found['error']:.4f}" + ("" if depth == n else f" ({depth})")

    searched = {n: [cells[f"search.{n}.{i}"]["error"] for i in range(len(SEEDS))] for n in whole}
    known = {n: cells[f"known.{n}"] for n in whole}
    best = {
        n: min([known[n]["error"], *(cells[f"{m}.{n}"]["error"] for m in RECIPES if cells[f"{m}.{n}"])])
        for n in whole
    }

    def row(name: str, of: Callable[[int], str]) -> str:
        return f"| {name} | {' | '.join(of(n) for n in whole)} |"

    lines += [
        row("searched, three seeds", lambda n: ", ".join(f"{e:.4f}" for e in searched[n])),
        *(row(m, lambda n, m=m: cell(f"{m}.{n}")) for m in RECIPES),
        row("best known sampler", lambda n: f"{known[n]['name']} {known[n]['error']:.4f}"),
        row("searched / best of all others", lambda n: ", ".join(f"{e / best[n]:.2f}" for e in searched[n])),
        row("network calls of each", lambda n: f"{cells[f'search.{n}.0']['calls']:,}"),
    ]
    facts = ", ".join(f"{key} {value}" for key, value in environment().items() if isinstance(value, str))
    text = "\n".join([*lines, "", facts, ""])
    with atomic_file(RESULTS / "solver_training_mixture.md") as temporary:
        temporary.write_text(text)
    print(text, flush=True)


if __name__ == "__main__":
    process.set_up()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(required=True)
    on_mixture = what.add_parser("mixture")
    on_mixture.add_argument(
        "--keep", type=Path, required=True, help="folder of what is measured, to go on from"
    )
    on_mixture.add_argument("--nfe", type=int, nargs="+", default=NFES)
    on_mixture.set_defaults(run=run_mixture)
    arguments = parser.parse_args()
    arguments.run(arguments)
