"""The search's plans beside the solvers that others train, at equal network calls, teacher, noises and loss.

Run: OMP_NUM_THREADS=1 python benchmarks/solver_training.py mixture --keep FOLDER      the closed-form mixture
     OMP_NUM_THREADS=1 python benchmarks/solver_training.py depth MODEL...           what calls side by side save
     OMP_NUM_THREADS=1 python benchmarks/solver_training.py model MODEL PLAN... --extractor E OTHER \\
         --reference STATS OTHER_STATS --name digits --keep FOLDER
Writes benchmarks/results/solver_training_<name>.md from what FOLDER holds, and goes on where it was interrupted.

A call of the network counts once, and three times where gradients go back through it. The search gets what it spends
with the settings below; every training gets the same number of calls at the same number of steps, its teacher's among
them. All learn from the distance to the same kind of fine solution, and are judged by it on noises that nobody saw:
perceptual losses, as their papers have them, do not exist for vectors, and nor do critics. On images it is the
distance of features.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from peers.trained import RECIPES, train
from solver_search import SEEDS, HeldOut, mixture
from torch import Tensor

from fewstep import process
from fewstep.diffusion.denoiser import Denoiser, Model
from fewstep.diffusion.schedule import Schedule
from fewstep.files import atomic_file, read_json, write_json
from fewstep.interop.load import load_model
from fewstep.methods.s3.space import Space
from fewstep.methods.s3.stage.known import known_samplers
from fewstep.methods.s3.stage.run import run_search
from fewstep.methods.s3.stage.scoring import Search
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.methods.s3.stage.solutions import solve_teacher
from fewstep.methods.s3.teacher import make_teacher
from fewstep.metrics.extractor import Extractor, extract, load_extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import load_reference
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import half_samples, normal_interval, spread
from fewstep.pipeline.environment import environment
from fewstep.progress import track
from fewstep.rng import ImageNoise
from fewstep.sampling.document import save_plan
from fewstep.sampling.plan import Plan, load_plan, plan_from_json
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import sample, solve
from fewstep.sampling.task import Task
from fewstep.sampling.trained import Eps, Sampler, plan_of

RESULTS = Path(__file__).parent / "results"
NFES = (5, 3, 8, 10, 4, 6)
REPEATS = 15
TEACHER_CALLS, POOL = 200, 1400  # of a fine solution; GAS trains on as many
TRAINING_SEED, REPORT_SEED = 1_500_000_000, 500_000_000


Distance = Callable[[Tensor, Tensor], Tensor]


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
    schedule, denoiser = model.schedule, Denoiser(model)

    def eps(x: Tensor, t: Tensor) -> Tensor:
        own = schedule.t_of_lambda(frame.lambda_(t)).clamp(schedule.t_min, schedule.t_max)
        return denoiser.eps(schedule.alpha(own) / frame.alpha(t) * x, own)

    return eps


POLISH = {
    "searched, 1,600 updates of 32 noises": {"iterations": 1600, "noises": 32, "lr": 0.01},
    "searched, 200 updates of 256 noises": {"iterations": 200, "noises": 256, "lr": 0.05},
}
"""Ways to spend the same calls; the second has the batches and the rate of `solver_search.py`."""
MOST_SEEDS = 2


def search_mixture(nfe: int, seed: int, polish: Mapping[str, float]) -> dict[str, float]:
    """Held-out error and calls of a search."""
    counted = Counted(mixture())
    settings = SearchSettings(
        trials=100, noises=512, trial_noises=128, teacher_nfe=TEACHER_CALLS, seed=seed, batch_size=4096,
        **{f"polish_{name}": value for name, value in polish.items()},
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


def fit(
    counted: Counted, method: str, nfe: int, budget: int, noise: Tensor, target: Tensor, distance: Distance
) -> tuple[Plan, int] | None:
    """A peer's solver trained until the calls are spent, as a plan, with its updates; None where it has no such plan.

    Args: noise: x_T. target: fine solutions. distance: of what is made to the targets of some rows, one each.
    """
    model, recipe = counted.model, RECIPES[method]
    solver = recipe.make(model.schedule, nfe)
    if solver is None:
        return None
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
        return distance(sampler(eps, scales[0] * noise[rows]) / scales[1], rows).mean()

    def draw(update: int, batch: int) -> Tensor:
        first = update * batch % (len(noise) - batch + 1)
        return torch.arange(first, first + batch)

    updates = train(recipe, solver, loss, draw, lambda: counted.calls, budget - counted.calls)
    with torch.no_grad():
        plan = plan_of(
            solver.sampler(),
            model.schedule,
            solver.frame,
            t_start=solver.t_start,
            t_end=solver.t_end,
            name=method,
        )
    assert plan.nfe == nfe, f"{method} makes {plan.nfe} calls where {nfe} were asked for"
    return plan, updates


def train_on_mixture(method: str, nfe: int, budget: int) -> dict[str, float] | None:
    """Held-out error of a peer's solver, trained with as many calls."""
    counted = Counted(mixture())
    started = time.process_time()
    noise = ImageNoise(range(TRAINING_SEED, TRAINING_SEED + POOL), counted.model.shape)().double()
    fine = PRESETS["unipc-3"](counted.model.schedule, TEACHER_CALLS, lower_final=False)
    target = solve(counted.model, fine, noise)
    trained = fit(
        counted,
        method,
        nfe,
        budget,
        noise,
        target,
        lambda x0, rows: torch.linalg.vector_norm(x0 - target[rows], dim=1),
    )
    if trained is None:
        return None
    plan, updates = trained
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

    first, *others = POLISH
    for nfe in arguments.nfe:

        def search(way: str, nfe: int = nfe) -> None:
            for i, seed in enumerate(SEEDS[:MOST_SEEDS]):
                kept(f"{way}.{i}.{nfe}", lambda s=seed: search_mixture(nfe, s, POLISH[way]))

        search(first)
        kept(f"known.{nfe}", lambda n=nfe: best_known(n))
        budget = int(read_json(arguments.keep / f"{first}.0.{nfe}.json")["calls"])
        for method in RECIPES:
            kept(f"{method}.{nfe}", lambda m=method, n=nfe, b=budget: train_on_mixture(m, n, b))
            write_table(arguments.keep)
        for way in others:
            search(way)
        write_table(arguments.keep)


def write_table(keep: Path) -> None:
    """Of what is there."""
    cells = {file.stem: read_json(file) for file in keep.glob("*.json")}
    first = next(iter(POLISH))
    begun = [n for n in sorted(NFES) if f"{first}.0.{n}" in cells and f"{next(iter(RECIPES))}.{n}" in cells]
    head = " | ".join(f"{n} calls" for n in begun)
    lines = [
        "# Held-out error on the closed-form mixture: the search beside the solvers that others train",
        "",
        "Mean distance to 1000 steps over 1,024 noises that nobody trained, searched or chose on. Every column has one "
        "number of network calls for all rows but the known samplers, the last row; a call counts three times where "
        "gradients go back through it. –: cannot make so many calls, or not run. In brackets the depth, where calls "
        "can be made side by side. Trainings: one each.",
        "",
        f"| | {head} |",
        "|---|" + "---|" * len(begun),
    ]

    def cell(name: str) -> str:
        found = cells.get(name)
        if not found:
            return "–"
        n = int(name.rpartition(".")[2])
        depth = int(found.get("depth", n))
        return f"{found['error']:.4f}" + ("" if depth == n else f" ({depth})")

    searched = {
        way: {
            n: [cells[f"{way}.{i}.{n}"]["error"] for i in range(MOST_SEEDS) if f"{way}.{i}.{n}" in cells]
            for n in begun
        }
        for way in POLISH
    }
    known = {n: cells[f"known.{n}"] for n in begun}
    best = {
        n: min([known[n]["error"], *(cells[f"{m}.{n}"]["error"] for m in RECIPES if cells.get(f"{m}.{n}"))])
        for n in begun
    }

    def row(name: str, of: Callable[[int], str]) -> str:
        return f"| {name} | {' | '.join(of(n) for n in begun)} |"

    lines += [
        *(row(way, lambda n, w=way: ", ".join(f"{e:.4f}" for e in searched[w][n]) or "–") for way in POLISH),
        *(row(m, lambda n, m=m: cell(f"{m}.{n}")) for m in RECIPES),
        row("best known sampler", lambda n: f"{known[n]['name']} {known[n]['error']:.4f}"),
        *(
            row(
                f"{way}, over the best of all others",
                lambda n, w=way: ", ".join(f"{e / best[n]:.2f}" for e in searched[w][n]) or "–",
            )
            for way in POLISH
        ),
        row("network calls of each", lambda n: f"{cells[f'{next(iter(POLISH))}.0.{n}']['calls']:,}"),
    ]
    facts = ", ".join(f"{key} {value}" for key, value in environment().items() if isinstance(value, str))
    text = "\n".join([*lines, "", facts, ""])
    with atomic_file(RESULTS / "solver_training_mixture.md") as temporary:
        temporary.write_text(text)
    print(text, flush=True)


class Judge:
    """Fréchet distances of a plan's images, in the features that everything was fitted to and in others."""

    def __init__(self, model: Model, arguments: argparse.Namespace) -> None:
        self.model, self.n = model, arguments.n
        self.spaces = [
            (extractor := load_extractor(name), load_reference(stats, extractor=extractor).statistics)
            for name, stats in zip(arguments.extractor, arguments.reference, strict=True)
        ]

    def __call__(self, plan: Plan) -> list[dict[str, float]]:
        images = sample(
            self.model, plan, seeds=range(REPORT_SEED, REPORT_SEED + self.n), batch_size=500, force=True
        )
        rows = []
        for extractor, reference in self.spaces:
            features = extract(images, extractor)
            value = frechet(Statistics.from_features(features), reference).value
            sd = spread(half_samples(features, reference, resamples=50, seed=0))
            low, high = normal_interval(value, sd, 0.95)
            rows.append({"fd": value, "low": low, "high": high})
        return rows


def accounted(record: dict) -> int:
    """Network calls of a search by its record, those with gradients three times."""
    settings, nfe = record["settings"], record["nfe"]
    back = settings["polish_iterations"] * settings["polish_noises"]
    back += settings["frechet_iterations"] * settings["frechet_images"]
    return sum(record["network_calls"].values()) + 2 * back * nfe


def targets(model: Model, extractor: Extractor, fine: Plan, noise: Tensor, file: Path) -> Tensor:
    """Features of the fine solutions, which all trainings share and each is charged for."""
    if not file.exists():
        x0 = torch.cat([solve(model, fine, part) for part in noise.split(200)])
        with torch.no_grad(), atomic_file(file) as temporary:
            torch.save(extractor.of_unit(x0), temporary)
    found: Tensor = torch.load(file, weights_only=True)
    return found


def run_model(arguments: argparse.Namespace) -> None:
    """Every peer trained on a model with as many calls as the search took, and all judged on the same new images."""
    arguments.keep.mkdir(parents=True, exist_ok=True)
    model = load_model(arguments.model)
    judge = Judge(model, arguments)
    extractor, _ = judge.spaces[0]
    fine = PRESETS["unipc-3"](model.schedule, arguments.teacher_calls, to_zero=True)
    noise = ImageNoise(range(TRAINING_SEED, TRAINING_SEED + POOL), model.shape)()
    target = targets(model, extractor, fine, noise, arguments.keep / "targets.pt")
    rows: dict[int, dict[str, dict]] = {}

    def measured(path: Path) -> dict[str, dict]:
        """Every row of one number of calls."""
        plan = load_plan(path)
        nfe = plan.nfe
        record = read_json(path.parent / f"search.nfe{nfe}.json")
        budget, cells = accounted(record), {}

        def judged(name: str, make: Callable[[], tuple[Plan, int, int] | None]) -> None:
            file = arguments.keep / f"{name}.{nfe}.json"
            if not file.exists():
                facts, made = {}, make()
                if made is not None:
                    of, calls, updates = made
                    save_plan(of, arguments.keep / f"{name}.{nfe}.plan.json")
                    facts = {"depth": of.depth, "calls": calls, "updates": updates, "fd": judge(of)}
                write_json(file, facts)
                print(name, nfe, facts, flush=True)
            cells[name] = read_json(file)
            write_model_table(model, arguments, {**rows, nfe: cells})

        def trained(method: str) -> tuple[Plan, int, int] | None:
            counted = Counted(model)
            counted.calls = fine.nfe * POOL

            def distance(x0: Tensor, rows: Tensor) -> Tensor:
                return (extractor.of_unit(x0) - target[rows]).square().mean(1)

            done = fit(counted, method, nfe, budget, noise, target, distance)
            return None if done is None else (done[0], counted.calls, done[1])

        known = plan_from_json(record["best_preset_plan"])
        calls = record["network_calls"]["presets"]
        judged("searched", lambda: (plan, budget, 0))
        judged(f"best known sampler, {record['best_preset']}", lambda: (known, calls, 0))
        for method in RECIPES:
            judged(method, lambda m=method: trained(m))
        return cells

    for path in arguments.plans:
        rows[load_plan(path).nfe] = measured(path)


def write_model_table(model: Model, arguments: argparse.Namespace, rows: dict[int, dict[str, dict]]) -> None:
    names = [name.split("/")[-1] for name in arguments.extractor]
    lines = [
        f"# {model.name}: the search's plans beside the solvers that others train, FD of {arguments.n:,} images",
        "",
        "Every program was trained with as many network calls as the search took, those with gradients counted three "
        "times, its teacher's among them. Its loss is the squared distance of features to those of the fine solution, "
        "in the features of the first column of FD, which the search fits its images to. To the second nothing was "
        "fitted. Intervals of 95 % of the images alone: one training each, one search each.",
        "",
        "| calls | sampler | depth | FD, fitted | FD, unfitted | searched / this, unfitted | calls to make | updates |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for nfe, cells in sorted(rows.items()):
        ours = cells["searched"]["fd"][-1]["fd"]
        for name, cell in sorted(cells.items(), key=lambda c: c[1]["fd"][-1]["fd"] if c[1] else float("inf")):
            if cell:
                said = [f"{fd['fd']:.1f} [{fd['low']:.1f}, {fd['high']:.1f}]" for fd in cell["fd"]]
                lines.append(
                    f"| {nfe} | {name} | {cell['depth']} | {said[0]} | {said[-1]} | {ours / cell['fd'][-1]['fd']:.2f} "
                    f"| {cell['calls'] / 1000:.0f}k | {cell['updates'] or '–'} |"
                )
    facts = ", ".join(f"{key} {value}" for key, value in environment().items() if isinstance(value, str))
    text = "\n".join([*lines, "", f"Features: {', '.join(names)}. {facts}", ""])
    with atomic_file(RESULTS / f"solver_training_{arguments.name}.md") as temporary:
        temporary.write_text(text)


def run_depth(arguments: argparse.Namespace) -> None:
    """Milliseconds of a plan of 8 calls of depth 5 with its calls side by side and one after another, in turns."""
    lines = [
        "# EPD's parallel calls: 8 network calls of depth 5, side by side and one after another",
        "",
        f"Milliseconds for a batch on {torch.get_num_threads()} CPU thread, the least of {REPEATS} runs in turns.",
        "",
        "| model | images | side by side | one after another | ratio |",
        "|---|---|---|---|---|",
    ]
    for name in arguments.models:
        model = load_model(name)
        solver = RECIPES["EPD, K = 2"].make(model.schedule, 8)
        assert solver is not None
        with torch.no_grad():
            plan = plan_of(
                solver.sampler(),
                model.schedule,
                solver.frame,
                t_start=solver.t_start,
                t_end=solver.t_end,
                name="epd",
            )
        assert (plan.nfe, plan.depth) == (8, 5)
        for n in (1, 4, 16, 64):
            x_T = ImageNoise(range(n), model.shape)()
            least = [float("inf")] * 2
            for _ in range(REPEATS):
                for i, made in enumerate((model, replace(model, one_time=True))):
                    started = time.perf_counter()
                    solve(made, plan, x_T)
                    least[i] = min(least[i], 1000 * (time.perf_counter() - started))
            lines.append(
                f"| {model.name} | {n} | {least[0]:.1f} | {least[1]:.1f} | {least[0] / least[1]:.2f} |"
            )
    facts = ", ".join(f"{key} {value}" for key, value in environment().items() if isinstance(value, str))
    text = "\n".join([*lines, "", facts, ""])
    with atomic_file(RESULTS / "solver_training_depth.md") as temporary:
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
    on_model = what.add_parser("model")
    on_model.add_argument("model")
    on_model.add_argument(
        "plans", nargs="+", type=Path, help="searched plans, each with its record beside it"
    )
    on_model.add_argument(
        "--extractor", nargs="+", required=True, help="features: those fitted to, then others"
    )
    on_model.add_argument("--reference", nargs="+", required=True, help="statistics in each")
    on_model.add_argument("--teacher-calls", type=int, default=100, help="of a fine solution")
    on_model.add_argument("--n", type=int, default=5000, help="reported images")
    on_model.add_argument("--name", default="model")
    on_model.add_argument(
        "--keep", type=Path, required=True, help="folder of what is measured, to go on from"
    )
    on_model.set_defaults(run=run_model)
    depth = what.add_parser("depth")
    depth.add_argument("models", nargs="+")
    depth.set_defaults(run=run_depth)
    arguments = parser.parse_args()
    arguments.run(arguments)
