"""Conditioning timesteps: what each objective does to DDIM and to other known samplers, on noises no fit saw.

Run: OMP_NUM_THREADS=1 python benchmarks/aligner.py mixture     closed-form mixtures, networks with biased clocks
     OMP_NUM_THREADS=1 python benchmarks/aligner.py digits MODEL... --images DATA --reference STATS --extractor E
         models of one training but for its seed: what each objective does to DDIM, and how far that varies
They write benchmarks/results/aligner_{mixture,digits}.md.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from fewstep import process
from fewstep.data.packed import load_dataset
from fewstep.data.pixels import to_unit
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import Schedule, VPLinear
from fewstep.files import atomic_file
from fewstep.interop.load import load_model
from fewstep.methods.aligner.align import align
from fewstep.methods.aligner.fine import Calibration
from fewstep.methods.aligner.free import FreeTimes
from fewstep.metrics.extractor import load_extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import load_reference
from fewstep.metrics.statistics import Statistics
from fewstep.pipeline.environment import environment
from fewstep.pipeline.measure import features_of
from fewstep.rng import ImageNoise, generator
from fewstep.sampling.descent import polish, trajectory_gradient
from fewstep.sampling.plan import Plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve
from fewstep.sampling.task import Task, distances

RESULTS = Path(__file__).parent / "results"
VP = VPLinear()
SEEDS, GATE, TEST = range(512), range(1_000_000, 1_000_512), range(2_000_000, 2_004_000)
MIXTURES = {"near and wide": (0.8, 0.5, 0.5), "far and narrow": (1.0, 0.1, 0.3)}
"""Spread of the 5 means in 8 dimensions, and bounds of the standard deviations."""

OBJECTIVES = ("paper", "denoise", "local", "trajectory")
PROTOTYPE = {
    (0.0, 5): (0.232, 0.227, 0.230, 0.223, 0.213),
    (0.0, 10): (0.131, 0.174, 0.135, 0.126, 0.123),
    (0.15, 10): (0.198, 0.130, 0.134, 0.126, 0.123),
    (-0.15, 10): (0.176, 0.245, 0.132, 0.125, 0.123),
}
"""By bias and steps: RMSE of plain DDIM and of each objective, in a prototype on another mixture."""

SOLVERS = ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3", "deis-2", "ipndm-3", "dpm-solver-2s")


class Setting:
    """A mixture, and networks that get the conditioning timestep tau and predict for tau + bias tau (1 - tau)."""

    def __init__(self, spread: float, low: float, high: float) -> None:
        rng = generator(0, "mix")
        means = spread * torch.randn(5, 8, generator=rng, dtype=torch.float64)
        stds = low + (high - low) * torch.rand(5, generator=rng, dtype=torch.float64)
        self.mixture = GaussianMixture(torch.full((5,), 0.2, dtype=torch.float64), means, stds)
        self.images = self.mixture.sample(len(SEEDS) + len(GATE), rng=generator(1))
        self.x_T = ImageNoise(TEST, (8,))()
        self.solution = solve(self.model(0.0), PRESETS["unipc-3"](VP, 400), self.x_T)

    def model(self, bias: float) -> Model:
        def fn(x: Tensor, tau: Tensor) -> Tensor:
            tau = tau.double()
            return self.mixture.eps(x, tau + bias * tau * (1 - tau), VP)

        return Model(fn, schedule=VP, shape=(8,), name=f"bias {bias:g}")

    def rmse(self, plan: Plan, bias: float) -> float:
        """Of the results, per dimension, to the exact network's solutions."""
        made = solve(self.model(bias), plan, self.x_T)
        return float((made - self.solution).square().mean().sqrt())

    def distance(self, plan: Plan) -> float:
        """Mean distance of the exact network's results to its solutions, which is what a gate judges a plan by."""
        return float(distances(solve(self.model(0.0), plan, self.x_T), self.solution).mean())

    def aligned(self, plan: Plan, bias: float, objective: str, **changes: object) -> Plan:
        """Against the exact network's paths: the biased one has the right calibration there."""
        tau = torch.linspace(VP.t_max, VP.t_min, 400, dtype=torch.float64)
        clock = Calibration(tuple((tau + bias * tau * (1 - tau)).tolist()), tuple(tau.tolist()))
        arguments = {"calibration": clock, "images": self.images, "gate": "none"} | changes
        task = Task(self.model(bias), batch_size=1024)
        return align(task, plan, seeds=SEEDS, gate_seeds=GATE, objective=objective, **arguments).plan  # type: ignore[arg-type]

    def refined(self, plan: Plan, bias: float) -> Plan:
        """All times and scales together by gradients, from the plan as it is."""
        task, free = Task(self.model(bias), batch_size=1024), FreeTimes(plan, VP, magnitude=True)
        exact = Task(self.model(0.0), batch_size=1024)
        fit, gate = (exact.solve(PRESETS["unipc-3"](VP, 100), seeds) for seeds in (SEEDS, GATE))
        polish(
            free,
            trajectory_gradient(task, lambda x0, _: distances(x0, fit)),
            lambda i: SEEDS,
            lambda one: float(distances(task.solve(one, GATE), gate).mean()),
            iterations=150,
            lr=0.01,
        )
        return free.plan()


def run_mixture(arguments: argparse.Namespace) -> None:
    """The objectives on DDIM, in steps of equal time; then the best of them on other samplers."""
    lines: list[str] = []
    for name, shape in MIXTURES.items():
        setting = Setting(*shape)
        lines += ["", f"## Components {name}", "", *_objectives(setting), "", *_solvers(setting)]
    _write("mixture", "Distance to exact solutions of the same noises, 4000 noises that no fit saw", lines)


def _objectives(setting: Setting) -> list[str]:
    lines = [
        "DDIM, RMSE; in brackets a prototype on another mixture. Only the last three columns are gated.",
        "",
        f"| bias, steps | plain | {' | '.join(OBJECTIVES)} | trajectory, gated | and scale | and refined |",
        "|---|" + "---|" * (len(OBJECTIVES) + 4),
    ]
    for (bias, n), known in PROTOTYPE.items():
        plan = PRESETS["ddim"](VP, n, grid="uniform-t")
        plans = [plan, *(setting.aligned(plan, bias, objective) for objective in OBJECTIVES)]
        cells = [f"{setting.rmse(p, bias):.3f} ({k:.3f})" for p, k in zip(plans, known, strict=True)]
        gated = setting.aligned(plan, bias, "trajectory", gate="plan")
        scaled = setting.aligned(plan, bias, "trajectory", gate="plan", magnitude=True)
        further = [gated, scaled, setting.refined(scaled, bias)]
        cells += [f"{setting.rmse(p, bias):.3f}" for p in further]
        lines.append(f"| {bias:g}, {n} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    adam, search = (
        _timed(lambda how=how: setting.aligned(plan, 0.0, "paper", optimiser=how))
        for how in ("adam", "search")
    )
    apart = max(abs(_t_cond(a) - _t_cond(b)) for a, b in zip(adam[0].nodes, search[0].nodes, strict=True))
    lines += [
        "",
        f"Fit of {n} steps by the published objective, unbiased: Adam {adam[1]:.1f} s, "
        f"search {search[1]:.1f} s, largest difference of a time {apart:.3f}.",
    ]
    return lines


def _t_cond(node: object) -> float:
    return node.t if node.t_cond is None else node.t_cond  # type: ignore[attr-defined]


def _timed(work: Callable[[], Plan]) -> tuple[Plan, float]:
    started = time.monotonic()
    return work(), time.monotonic() - started


def _solvers(setting: Setting) -> list[str]:
    lines = [
        "Samplers of 8 calls of the exact network, mean distance; gated: a plan that is no better stays as it is.",
        "",
        "| sampler | grid | plain | trajectory | and scale |",
        "|---|---|---|---|---|",
    ]
    for preset in SOLVERS:
        for grid in ("uniform-t", "quadratic-t"):
            plan = replace(PRESETS[preset](VP, 8, grid=grid), name=preset)
            found = [
                setting.aligned(plan, 0.0, "trajectory", gate="plan", magnitude=scale)
                for scale in (False, True)
            ]
            cells = [f"{setting.distance(one):.3f}{'' if one != plan else ' (as it was)'}" for one in found]
            lines.append(f"| {preset} | {grid} | {setting.distance(plan):.3f} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


class Trained:
    """A trained model, its fine solutions of noises that no fit saw, and distances to them and to the data."""

    fitted, gated = range(192), range(1_000_000, 1_000_192)
    seeds = range(3_000_000, 3_001_500)

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.task = Task(load_model(folder), batch_size=250)
        self.extractor = load_extractor(arguments.extractor)
        self.reference = load_reference(arguments.reference, extractor=self.extractor)
        dataset = load_dataset(arguments.images, "train")
        rows = torch.randperm(len(dataset), generator=generator(0, "images"))[
            : len(self.fitted) + len(self.gated)
        ]
        self.images = to_unit(dataset.batch(rows))
        self.fine = self.task.solve(PRESETS["unipc-3"](self.schedule, 100), self.seeds)

    @property
    def schedule(self) -> Schedule:
        return self.task.model.schedule

    def distances(self, plan: Plan) -> tuple[float, float]:
        """RMSE to the fine solutions, and Fréchet distance to the data."""
        apart = float((self.task.solve(plan, self.seeds) - self.fine).square().mean().sqrt())
        features = features_of(self.task, plan, self.seeds, self.extractor)
        return apart, frechet(Statistics.from_features(features), self.reference.statistics).value

    def variants(self, plan: Plan) -> list[Plan]:
        """As it is, by the published objective, by the trajectory, by that and a factor on the noise; ungated."""
        fit = partial(
            align,
            self.task,
            plan,
            seeds=self.fitted,
            gate_seeds=self.gated,
            images=self.images,
            substeps=4,
            gate="none",
        )
        made = (
            fit(objective="paper-sequential"),
            fit(objective="trajectory"),
            fit(objective="trajectory", magnitude=True),
        )
        return [plan, *(found.plan for found in made)]


def run_digits(arguments: argparse.Namespace) -> None:
    """DDIM of 5 and 8 calls on two grids, for each of the models; mean, lowest and highest over them."""
    trained = [Trained(folder, arguments) for folder in arguments.models]
    fine = [one.distances(PRESETS["unipc-3"](one.schedule, 100))[1] for one in trained]
    lines = [
        "",
        f"{len(trained)} models of one training but for its seed. Cells: RMSE to the fine solver / Fréchet distance to "
        f"the data of {len(Trained.seeds)} images, means over the models, with the lowest and highest; ungated. "
        f"The fine solver itself: {_range(fine, 1)}.",
        "",
        "| grid, calls | plain | paper (sequential) | trajectory | trajectory and scale |",
        "|---|---|---|---|---|",
    ]
    for grid, n in ((grid, n) for n in (5, 8) for grid in ("uniform-t", "quadratic-t")):
        plans = [one.variants(PRESETS["ddim"](one.schedule, n, grid=grid)) for one in trained]
        cells = []
        for column in zip(*plans, strict=True):
            found = [one.distances(plan) for one, plan in zip(trained, column, strict=True)]
            apart, frechets = zip(*found, strict=True)
            cells.append(f"{_range(apart, 4)} / {_range(frechets, 1)}")
        lines.append(f"| {grid}, {n} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    _write("digits", "Aligned times on trained models, unseen noises", lines)


def _range(values: Sequence[float], digits: int) -> str:
    mean, low, high = (f"{value:.{digits}f}" for value in (fmean(values), min(values), max(values)))
    return f"{mean} [{low}, {high}]"


def _write(name: str, title: str, lines: Sequence[str]) -> None:
    facts = ", ".join(f"{key} {value}" for key, value in environment().items() if isinstance(value, str))
    text = "\n".join([f"# {title}", *lines, "", facts, ""])
    with atomic_file(RESULTS / f"aligner_{name}.md") as temporary:
        temporary.write_text(text)
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(required=True)
    what.add_parser("mixture").set_defaults(run=run_mixture)
    digits = what.add_parser("digits")
    digits.set_defaults(run=run_digits)
    digits.add_argument("models", type=Path, nargs="+")
    digits.add_argument("--images", type=Path, required=True)
    digits.add_argument("--reference", type=Path, required=True)
    digits.add_argument("--extractor", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    process.set_up()
    torch.set_num_threads(1)
    arguments = _arguments()
    arguments.run(arguments)
