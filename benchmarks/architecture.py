"""Which small U-Net, objective and learning rate learn 32 x 32 images fastest per processor second: an Optuna study.

Run: OMP_NUM_THREADS=1 python benchmarks/architecture.py --images DATA --storage study.journal --until 8
     python benchmarks/architecture.py --storage study.journal --table      the table alone, from the storage
     --precision bf16 --out benchmarks/results/architecture_bf16.md: the same question where a CPU has AVX512-BF16
Started again it continues; several processes may share a storage, and --until counts the hours of all of them.
Each trial trains one network on the project's loop for the same processor seconds. What counts is the error of x0 of
its averaged weights on held-out images, at times uniform in log-SNR: the error of eps, uniform in t, ranks predictions
of eps first, whose samples have the larger Fréchet distance. The
noises, times, order of images and seed of the weights are those of every other trial, and trials behind the median
of the complete ones at a quarter, half or three quarters of the time are given up. Writes
benchmarks/results/architecture.md.
"""

import argparse
import json
import math
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from fewstep import process
from fewstep.checks import ConfigError, DataError
from fewstep.data.packed import Dataset, load_dataset
from fewstep.data.pixels import to_unit
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.schedule import DDPMTable
from fewstep.files import atomic_file
from fewstep.nets.folder import as_model
from fewstep.nets.unet import UNet
from fewstep.pipeline.environment import environment
from fewstep.pipeline.trials import enqueue, importance, open_study
from fewstep.rng import generator, initial_weights
from fewstep.train.denoiser import train_denoiser
from fewstep.train.loop import State
from fewstep.train.losses import WEIGHTINGS
from fewstep.train.recipe import Recipe

RESULT = Path(__file__).parent / "results" / "architecture.md"
NAME, SEED = "architecture", 0
SMALLEST, LARGEST = 700_000, 2_100_000  # parameters
RUNGS = (0.25, 0.5, 0.75, 1.0)  # shares of the time at which a trial is measured
PILOT = 6  # steps by which the number of those in the first rung is guessed
ENDLESS = 10**9
WARMUP = 640  # images
# Never reached in so short a run: the average's ramp keeps its half-life at 8 % of the steps, whatever the batch.
EMA_DECAY = 0.99
HELD_OUT = 512  # images, each at one time of its own; half of them at the first rungs
MEASURED = 64  # images at once

CHANNELS = (24, 48, 8)  # lowest, highest, step
MULTIPLIERS = ("1-2-2", "1-2-2-2", "1-2-3", "1-1-2-2")
ATTENTION = ("none", "8", "16-8")
PATCHES = (1, 2)
PREDICTIONS = ("eps", "v")
RATES = (2e-4, 3e-3)
BATCHES = (16, 32, 64)
ZOO = {
    "channels": 32,
    "multipliers": "1-2-2-2",
    "blocks": 1,
    "attention": "8",
    "patch": 1,
    "weighting": "uniform",
}
SEEDS = [
    (f"zoo, {prediction}, {lr:g}", {**ZOO, "prediction": prediction, "lr": lr, "batch_size": 32})
    for lr in (6e-4, 1e-3)
    for prediction in PREDICTIONS
] + [
    (
        f"patches, {channels}, {multipliers}",
        {
            **ZOO,
            "patch": 2,
            "channels": channels,
            "multipliers": multipliers,
            "prediction": "v",
            "lr": 1e-3,
            "batch_size": 32,
        },
    )
    for channels, multipliers in ((32, "1-2-2"), (48, "1-2-2"), (40, "1-1-2-2"))
]


class Clock:
    """Processor seconds of each training step; handed to the loop as its progress."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, steps: Iterable[int]) -> Iterator[int]:
        for i in steps:
            started = time.process_time()
            yield i
            self.seconds.append(time.process_time() - started)

    def until(self, budget: float) -> int:
        """The step at which `budget` seconds will be spent, at the pace of the last steps."""
        left = (budget - sum(self.seconds)) / median(self.seconds[-50:])
        return len(self.seconds) + max(1, round(left))


class HeldOut:
    """Fixed images, noises and times on which every network is measured."""

    def __init__(self, dataset: Dataset, schedule: DDPMTable) -> None:
        rng = generator(SEED, "held-out")
        self.schedule, self.shape = schedule, dataset.shape
        self.x0 = to_unit(dataset.batch(torch.randperm(len(dataset), generator=rng)[:HELD_OUT]))
        self.eps = torch.randn(self.x0.shape, generator=rng)
        low, high = schedule.t_min, schedule.t_max
        self.uniform_t = low + (high - low) * _strata(len(self.x0))
        most, least = float(schedule.lambda_(low)), float(schedule.lambda_(high))
        strata = _strata(len(self.x0))
        self.uniform_lambda = schedule.t_of_lambda(least + (most - least) * strata).clamp(low, high)

    def eps_error(self, net: torch.nn.Module, prediction: str) -> float:
        """Mean squared error of eps_hat over times uniform in t."""
        return self._error(net, prediction, self.uniform_t, of_x0=False)

    def x0_error(self, net: torch.nn.Module, prediction: str, *, every: int = 1) -> float:
        """Mean squared error of x0_hat, clamped to [-1, 1], over times uniform in log-SNR, on one image in `every`."""
        return self._error(net, prediction, self.uniform_lambda, of_x0=True, every=every)

    @torch.no_grad()
    def _error(
        self, net: torch.nn.Module, prediction: str, times: torch.Tensor, *, of_x0: bool, every: int = 1
    ) -> float:
        denoiser = Denoiser(as_model(net, schedule=self.schedule, prediction=prediction, shape=self.shape))
        total, chosen = 0.0, torch.arange(0, len(times), every)
        for rows in chosen.split(MEASURED):
            x0, eps, t = self.x0[rows], self.eps[rows], times[rows]
            alpha, sigma = (
                a.float()[:, None, None, None] for a in (self.schedule.alpha(t), self.schedule.sigma(t))
            )
            x_t = (alpha * x0 + sigma * eps).contiguous(memory_format=torch.channels_last)
            off = denoiser.x0(x_t, t).clamp(-1, 1) - x0 if of_x0 else denoiser.eps(x_t, t) - eps
            total += float(off.square().flatten(1).mean(1).sum())
        return total / len(chosen)


def _strata(n: int) -> torch.Tensor:
    """Middles of n equal parts of [0, 1]."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


class Objective:
    """Train what a trial decides, measuring it at each rung."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.dataset, self.seconds = load_dataset(args.images, "train"), args.seconds
        self.precision = args.precision
        self.schedule = DDPMTable.linear()
        held_out = load_dataset(args.images, "test")
        self.held_out = HeldOut(held_out, self.schedule)
        self.identity = {
            "data": self.dataset.name,
            "fingerprint": self.dataset.fingerprint,
            "seconds": self.seconds,
            "precision": self.precision,
            "schedule": self.schedule.config(),
            "ema_decay": EMA_DECAY,
            "warmup_images": WARMUP,
            "held_out": HELD_OUT,
            "objective": "x0, uniform in log-SNR",
            "parameters": [SMALLEST, LARGEST],
            "seed": SEED,
        }

    def __call__(self, trial: optuna.Trial) -> float:
        """The error at the end.

        Raises:
            TrialPruned: A network of another size, one that falls behind, or training that diverged.
        """
        started = time.process_time()
        trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        net = network(suggest(trial), self.dataset)
        parameters = sum(p.numel() for p in net.parameters())
        trial.set_user_attr("parameters", parameters)
        if not SMALLEST <= parameters <= LARGEST:
            raise optuna.TrialPruned
        error, prediction = math.nan, trial.params["prediction"]
        with tempfile.TemporaryDirectory() as folder:
            clock = Clock()
            try:
                for rung, state in enumerate(self._rungs(net, trial.params, clock, folder)):
                    averaged = state.ema["net"].net
                    every = 1 if RUNGS[rung] == 1 else 2
                    error = self.held_out.x0_error(averaged, prediction, every=every)
                    trial.set_user_attr("images_seen", state.images_seen)
                    trial.set_user_attr("images_per_second", state.images_seen / sum(clock.seconds))
                    trial.set_user_attr("cpu_seconds", time.process_time() - started)
                    trial.report(error, rung)
                    if not math.isfinite(error) or (RUNGS[rung] < 1 and trial.should_prune()):
                        raise optuna.TrialPruned
                trial.set_user_attr("eps_error", self.held_out.eps_error(averaged, prediction))
            except DataError as diverged:
                trial.set_user_attr("diverged", str(diverged))
                raise optuna.TrialPruned from None
            finally:
                trial.set_user_attr("cpu_seconds", time.process_time() - started)
        return error

    def _rungs(self, net: UNet, params: dict[str, Any], clock: Clock, folder: str) -> Iterator[State]:
        """Train on through checkpoints, from one share of the time to the next."""
        batch_size = params["batch_size"]
        recipe = Recipe(
            schedule=self.schedule,
            prediction=params["prediction"],
            weighting=params["weighting"],
            lr=params["lr"],
            batch_size=batch_size,
            warmup_steps=WARMUP // batch_size,
            flip=True,
            precision=self.precision,
            ema_decay=EMA_DECAY,
            steps=ENDLESS,
            seed=SEED,
        )
        train = partial(
            train_denoiser,
            self.dataset,
            net,
            recipe,
            checkpoints=folder,
            checkpoint_seconds=math.inf,
            progress=clock,
        )
        train(until=PILOT)
        for share in RUNGS:
            yield train(until=clock.until(share * self.seconds))


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Decide all; returns what describes the network. For eps the weighting snr is the uniform one."""
    low, high, step = CHANNELS
    sides = {
        "channels": trial.suggest_int("channels", low, high, step=step),
        "multipliers": numbers(trial.suggest_categorical("multipliers", MULTIPLIERS)),
        "blocks": trial.suggest_int("blocks", 1, 2),
        "attention": numbers(trial.suggest_categorical("attention", ATTENTION)),
        "patch": trial.suggest_categorical("patch", PATCHES),
    }
    trial.suggest_categorical("prediction", PREDICTIONS)
    trial.suggest_categorical("weighting", tuple(WEIGHTINGS))
    trial.suggest_float("lr", *RATES, log=True)
    trial.suggest_categorical("batch_size", BATCHES)
    return sides


def network(described: dict[str, Any], dataset: Dataset) -> UNet:
    channels, side, _ = dataset.shape
    with initial_weights(SEED):
        return UNet(side, channels, **described)


def numbers(text: str) -> tuple[int, ...]:
    """Read "16-8"; "none" is no number."""
    return () if text == "none" else tuple(map(int, text.split("-")))


def run(args: argparse.Namespace) -> None:
    """Run trials until there are enough of them, or hours of them."""
    objective = Objective(args)
    study = open_study(str(args.storage), NAME, objective.identity, parts=len(RUNGS))
    # Errors of one trial's rungs are no paired parts, which that study's own pruner compares.
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=10, n_min_trials=5)
    enqueue(study, SEEDS)
    while len(trained(study)) < args.trials and cpu_hours(study) < args.until:
        draws = generator(SEED, "trial", len(study.get_trials(deepcopy=False)), os.getpid())
        study.sampler = optuna.samplers.TPESampler(
            multivariate=True, constant_liar=True, n_startup_trials=10, seed=draws.initial_seed() % (1 << 31)
        )
        trial = study.ask()
        try:
            study.tell(trial, objective(trial))
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        _print(study.get_trials(deepcopy=False)[trial.number])


def _print(trial: FrozenTrial) -> None:
    if trial.intermediate_values:
        error, speed = list(trial.intermediate_values.values())[-1], trial.user_attrs["images_per_second"]
        settings = " ".join(f"{v:.2e}" if k == "lr" else str(v) for k, v in trial.params.items())
        print(
            f"{trial.number} {trial.state.name.lower()} {error:.5f}: {settings}, {speed:.0f} images/s",
            flush=True,
        )


def trained(study: optuna.Study) -> list[FrozenTrial]:
    """Finished trials, without those whose networks had another size."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [t for t in ended if "cpu_seconds" in t.user_attrs]


def cpu_hours(study: optuna.Study) -> float:
    return sum(t.user_attrs.get("cpu_seconds", 0.0) for t in study.get_trials(deepcopy=False)) / 3600


COLUMNS = (
    "| trial | loss | prediction | weighting | lr | batch | channels | multipliers | blocks | attention | patch "
    "| parameters | images/s | images seen | eps error |"
)
RULE = "|" + "---|" * (COLUMNS.count("|") - 1)


def row(trial: FrozenTrial) -> str:
    p, facts = trial.params, trial.user_attrs
    name = f"{trial.number} ({facts['seed']})" if "seed" in facts else str(trial.number)
    return (
        f"| {name} | {trial.value:.5f} | {p['prediction']} | {p['weighting']} | {p['lr']:.2e} | {p['batch_size']} "
        f"| {p['channels']} | {p['multipliers']} | {p['blocks']} | {p['attention']} | {p['patch']} "
        f"| {facts['parameters']:,} | {facts['images_per_second']:.1f} | {facts['images_seen']:,} "
        f"| {facts['eps_error']:.4f} |"
    )


def best_of_each(trials: list[FrozenTrial], name: str) -> list[str]:
    """A table of the best trial of each value, from trials in the order of their losses."""
    best: dict[Any, FrozenTrial] = {}
    for trial in trials:
        best.setdefault(trial.params[name], trial)
    rows = [row(best[value]) for value in sorted(best)]
    return [f"## The best of each: {name.replace('_', ' ')}", "", COLUMNS, RULE, *rows, ""]


def write_table(args: argparse.Namespace) -> None:
    """The report, from nothing but the storage."""
    if not args.storage.exists():
        raise ConfigError(
            f"The storage {args.storage} must exist, but there is no such file; run a study first."
        )
    study = optuna.load_study(study_name=NAME, storage=JournalStorage(JournalFileBackend(str(args.storage))))
    identity = json.loads(study.user_attrs["identity"])
    ended, every = trained(study), study.get_trials(deepcopy=False)
    complete = sorted((t for t in ended if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    sized = sum(t.state == TrialState.PRUNED for t in every) - (len(ended) - len(complete))
    diverged = sum("diverged" in t.user_attrs for t in ended)
    known = importance(study)
    shares = [f"| {name} | {share:.2f} |" for name, share in known.items()]
    facts = ", ".join(f"{key} {value}" for key, value in environment().items() if value)
    lines = [
        "# Which small U-Net learns fastest per processor second",
        "",
        f"Networks of {SMALLEST / 1e6:.1f} to {LARGEST / 1e6:.1f} million parameters on {identity['data']}, each "
        f"trained for {identity['seconds']:g} processor seconds on one thread ({identity['precision']}, AdamW, "
        f"constant rate after {WARMUP} images, mirrored images, DDPM's linear table; one seed for all). Loss: squared "
        "error of x0_hat, clamped to "
        f"[-1, 1], of the averaged weights on {HELD_OUT} held-out images, mean over times uniform in log-SNR. eps "
        "error: of eps_hat, uniform in t, whatever the network predicts. "
        "For the prediction eps, the weighting snr is the uniform one.",
        "",
        f"{len(complete)} complete trials, {len(ended) - len(complete)} pruned by their losses ({diverged} of them "
        f"diverged), {cpu_hours(study):.1f} processor hours; {sized} more were refused untrained for their size.",
        "",
        "Short budgets favour small networks, large rates and small batches: what leads here learns fastest at "
        "first, and need not be what is best after hours. Trials pruned early did not show what they become.",
        "",
        "This loss hardly sees fine texture, and a Fréchet distance does: the leader on patches of 2 x 2 pixels (40, "
        "1-1-2-2), trained on to 374,560 images, has a distance of 907 in EfficientNet's features (UniPC-2, 10 calls, "
        "1,000 images), the network of the zoo without patches 449 after 274,208. Among networks without patches the "
        "loss may serve; a choice between the two needs the distance.",
        "",
        "## The ten best",
        "",
        COLUMNS,
        RULE,
        *map(row, complete[:10]),
        "",
        *best_of_each(complete, "prediction"),
        *best_of_each(complete, "channels"),
        "## What decides (PED-ANOVA over complete trials)",
        "",
        *(
            ["| decision | importance |", "|---|---|", *shares]
            if shares
            else ["Fewer than 10 complete trials."]
        ),
        "",
        facts,
        "",
    ]
    with atomic_file(args.out) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--storage", type=Path, required=True, help="Optuna's journal file")
    parser.add_argument("--images", type=Path, help="a packed dataset with splits train and test")
    parser.add_argument("--seconds", type=float, default=150, help="of training, of each trial")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of training")
    parser.add_argument(
        "--trials", type=int, default=ENDLESS, help="trained ones in the storage at which to end"
    )
    parser.add_argument(
        "--until", type=float, default=math.inf, help="processor hours in the storage, likewise"
    )
    parser.add_argument("--table", action="store_true", help="write the table and do no more")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if not args.table and (args.images is None or (args.trials == ENDLESS and args.until == math.inf)):
        parser.error("a study needs --images, and --until or --trials to know when to end.")
    return args


if __name__ == "__main__":
    process.set_up()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings(
        "ignore", "The reported value is ignored"
    )  # of a trial that was broken off before
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    arguments = _arguments()
    if not arguments.table:
        run(arguments)
    write_table(arguments)
