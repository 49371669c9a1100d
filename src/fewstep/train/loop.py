"""The one training loop. A method supplies `step`; clock, averages, checkpoints and metrics live here.

On the CPU a run that was killed at any moment and started again ends with the very weights of an undisturbed
run, and with its metrics: batches and noise depend on (seed, step) alone, and a checkpoint holds everything else.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fewstep import files
from fewstep.checks import ConfigError, DataError
from fewstep.rng import generator
from fewstep.train.batches import Batch
from fewstep.train.checkpoint import held, latest_checkpoint, read_checkpoint, step_of, write_checkpoint
from fewstep.train.ema import Ema
from fewstep.train.metrics_log import SPEED, MetricsLog
from fewstep.train.world import World

log = logging.getLogger(__name__)


@dataclass
class State:
    """Everything that training changes.

    nets, optimisers: by name, so that two networks with an optimiser each fit. ema: averages, by the name of
    the network that they follow. step: steps made. images_seen: over all processes.
    """

    nets: dict[str, nn.Module]
    optimisers: dict[str, Optimizer]
    ema: dict[str, Ema] = field(default_factory=dict)
    step: int = 0
    images_seen: int = 0

    def tensors(self) -> dict[str, Any]:
        """The nested dict of tensors and plain numbers that a checkpoint holds."""
        return {
            "nets": {name: net.state_dict() for name, net in self.nets.items()},
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "ema": {name: ema.net.state_dict() for name, ema in self.ema.items()},
        }

    def n_bytes(self) -> int:
        """About the size of a checkpoint: optimisers keep up to two numbers per weight, averages one."""
        weights = sum(p.numel() * p.element_size() for net in self.nets.values() for p in net.parameters())
        return 4 * weights

    def restore(self, tensors: Mapping[str, Any]) -> None:
        """Take over what `tensors` returned."""
        for name, net in self.nets.items():
            net.load_state_dict(tensors["nets"][name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(tensors["optimisers"][name])
        for name, ema in self.ema.items():
            ema.net.load_state_dict(tensors["ema"][name])


@dataclass(frozen=True)
class LRSchedule:
    """Factor on the learning rates in step 0, 1, ...: a line up, then constant, a cosine down to 0, or a power law.

    Args:
        steps: Length of the whole training.
        warmup: Steps of the rise.
        shape: "constant", "cosine", or "power": 1 / (1 + step / knee) ** power.
        cooldown: Last steps, in which a constant rate falls to 0 as 1 - sqrt [hagele2024scaling].
        knee: Steps after which a power law bends.
        power: Its exponent; above 1/2 and up to 1 for stochastic approximation.

    Raises:
        ConfigError: An unknown shape, a cooldown of a rate that is not constant, or too many steps of either.
    """

    steps: int
    warmup: int = 0
    shape: str = "constant"
    cooldown: int = 0
    knee: int = 0
    power: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"training needs steps >= 1; got {self.steps}.")
        if self.shape not in ("constant", "cosine", "power"):
            raise ConfigError(
                f"the learning-rate schedule must be constant, cosine or power; got {self.shape!r}."
            )
        if (self.shape == "power") != (self.knee > 0 and self.power > 0):
            raise ConfigError(
                f"a power law, and no other schedule, needs a knee and a power above 0; got {self.knee} and "
                f"{self.power}."
            )
        if not 0 <= self.warmup < self.steps:
            raise ConfigError(
                f"the warm-up must be shorter than the training, {self.steps} steps; got {self.warmup}."
            )
        if self.cooldown and self.shape != "constant":
            raise ConfigError(f"a cooldown of {self.cooldown} steps needs a constant rate; got {self.shape}.")
        if not 0 <= self.cooldown <= self.steps - self.warmup:
            raise ConfigError(
                f"the cooldown must fit into the {self.steps - self.warmup} steps after the warm-up; "
                f"got {self.cooldown}."
            )

    def __call__(self, step: int) -> float:
        """The factor in a step."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.shape == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup)))
        if self.shape == "power":
            return float((1.0 + step / self.knee) ** -self.power)
        falling = step - (self.steps - self.cooldown)
        return 1.0 if falling < 0 else 1.0 - math.sqrt((falling + 1) / (self.cooldown + 1))

    def settings(self, made: int) -> dict[str, Any]:
        """What the first `made` steps depended on: the length of the training only where the rate follows from it.

        So a training at a constant rate or by a power law may be made longer, or at a constant rate be ended by a
        cooldown, later. The name lr_course is that of the first checkpoints.
        """
        known: dict[str, Any] = {"warmup_steps": self.warmup, "lr_course": self.shape}
        if self.shape == "power":
            return known | {"knee": self.knee, "power": self.power}
        if self.shape != "constant" or made > self.steps - self.cooldown:
            known["steps"] = self.steps
        if made > self.steps - self.cooldown:
            known["cooldown"] = self.cooldown
        return known


class Diverged(DataError):
    """Training that cannot be resumed in a useful way: a value is not finite, or a probe says why."""


@dataclass(frozen=True)
class Probe:
    """What is measured on the way, such as a distance of samples, and logged in the row of that step.

    Attributes:
        every: Steps between measurements, a multiple of `log_every`; the last step is measured, too.
        measure: From the state to scalars by name, on the leading process; deterministic. Raises Diverged where there
            is no use in training on.
    """

    every: int
    measure: Callable[[State], Mapping[str, float]]

    def is_due(self, step: int, steps: int) -> bool:
        """Whether it is measured after so many of all steps."""
        return step % self.every == 0 or step == steps


class Step(Protocol):
    """What a method supplies: change the state by one step and return what to log, scalars by name.

    `rng` is fresh for each step, equal in all processes: draw for the whole global batch, then `batch.cut`.
    """

    def __call__(self, state: State, batch: Batch, *, rng: torch.Generator) -> Mapping[str, Tensor | float]:
        """Make one step."""
        ...


def fit(
    state: State,
    step: Step,
    batches: Callable[[int], Batch],
    *,
    lr_schedule: LRSchedule,
    seed: int,
    settings: Mapping[str, Any],
    lr_schedules: Mapping[str, LRSchedule] | None = None,
    probe: Probe | None = None,
    checkpoints: str | Path | None = None,
    metrics: str | Path | None = None,
    until: int | None = None,
    log_every: int = 10,
    checkpoint_every: int | None = None,
    checkpoint_seconds: float = 60.0,
    world: World | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> State:
    """Train to the last step, resuming from the last checkpoint where there is one.

    Args:
        state: The networks, optimisers and averages at their start; changed in place.
        step: What one step does.
        batches: From the step (0, 1, ...) to its batch.
        lr_schedule: Length of the whole training, and its learning rates.
        seed: Of the generator that `step` receives, and of dropout.
        settings: Plain values that decide the result; a checkpoint of other settings is refused.
        lr_schedules: Schedules of optimisers that have one of their own, by name.
        probe: What is measured on the way.
        checkpoints: Folder of the checkpoints; None: nothing is kept.
        metrics: JSONL file with a line every `log_every` steps and for the last; on resume cut back to the checkpoint.
        until: Stop early at this step, with a checkpoint; the learning rate follows the whole schedule.
        log_every: Steps over which logged values are averaged.
        checkpoint_every: Steps between checkpoints.
        checkpoint_seconds: Seconds between checkpoints when `checkpoint_every` is None.
        world: The processes that train together.
        progress: Wraps the steps to report on them.

    Returns:
        `state`.

    Raises:
        ConfigError: A checkpoint of other settings, or of more steps, or another process that trains with this folder.
        DataError: A full disk or a damaged checkpoint. Diverged: training that diverged; the last checkpoint is kept.
        KeyboardInterrupt, SystemExit: On SIGINT and SIGTERM, after a checkpoint was written.
    """
    if log_every < 1:
        raise ConfigError(f"training needs log_every >= 1; got {log_every}.")
    if probe is not None and (probe.every < 1 or probe.every % log_every):
        raise ConfigError(
            f"a probe must be made every multiple of {log_every} steps, between rows of the log; got {probe.every}."
        )
    world = World() if world is None else world
    run = _Run(
        state=state,
        lr_schedule=lr_schedule,
        own_schedules=lr_schedules or {},
        probe=probe,
        settings={**settings, "seed": seed, "log_every": log_every},
        folder=None if checkpoints is None else Path(checkpoints),
        metrics=MetricsLog(Path(metrics) if metrics is not None and world.leads else None),
        every=checkpoint_every,
        seconds=checkpoint_seconds,
        world=world,
    )
    with run.alone():
        if run.folder is not None and world.leads:
            files.require_space(run.folder, 3 * state.n_bytes())
        # Before the checkpoint is read: it holds the rates of its step, already scaled.
        base = {name: [group["lr"] for group in o.param_groups] for name, o in state.optimisers.items()}
        run.resume()
        world.copy_from_leader([*state.nets.values(), *(ema.net for ema in state.ema.values())])
        last = lr_schedule.steps if until is None else min(until, lr_schedule.steps)
        device = next(next(iter(state.nets.values())).parameters()).device
        for net in state.nets.values():
            net.train()
        with _signals() as received:
            bar = progress(range(state.step, last)) if world.leads else range(state.step, last)
            for i in bar:
                _set_rates(state, base, run.factor(i))
                if device.type == "cpu":
                    # Dropout draws from the global stream: it is placed, so that a resumed run draws the same.
                    torch.set_rng_state(generator(seed, "dropout", i, world.rank).get_state())
                batch = batches(i)
                values = step(state, batch, rng=generator(seed, "step", i))
                state.step, state.images_seen = i + 1, state.images_seen + batch.size
                for name, ema in state.ema.items():
                    net = state.nets[name]
                    ema.update(net, step=state.step, images_seen=state.images_seen, batch_size=batch.size)
                stopping = world.any(bool(received), device)
                run.after_step(values, last=i + 1 == last or stopping, check=device.type == "cpu", bar=bar)
                if stopping:
                    _stop(received)
    _set_rates(state, base, lambda name: 1.0)
    return state


@dataclass
class _Run:
    """The books of one call of `fit`: sums to log, the clock, the files."""

    state: State
    lr_schedule: LRSchedule
    own_schedules: Mapping[str, LRSchedule]
    probe: Probe | None
    settings: dict[str, Any]
    folder: Path | None
    metrics: MetricsLog
    every: int | None
    seconds: float
    world: World
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    pending: list[tuple[int, dict[str, Tensor | float]]] = field(default_factory=list)
    saved_at: float = field(default_factory=time.monotonic)
    logged_at: float = field(default_factory=time.monotonic)
    logged_images: int = 0

    def factor(self, step: int) -> Callable[[str], float]:
        """From the name of an optimiser to the factor on its rates in a step."""
        return lambda name: self.own_schedules.get(name, self.lr_schedule)(step)

    def alone(self) -> AbstractContextManager[None]:
        """Keep other trainings away from the checkpoints."""
        return nullcontext() if self.folder is None or not self.world.leads else held(self.folder)

    def resume(self) -> None:
        """Read the last checkpoint, if any, and cut the metrics back to what an undisturbed training had logged."""
        path = None if self.folder is None else latest_checkpoint(self.folder)
        if path is not None:
            made = step_of(path)
            if made > self.lr_schedule.steps:
                raise ConfigError(
                    f"steps must be at least {made}, those of the checkpoint in {self.folder}; "
                    f"got {self.lr_schedule.steps}; "
                    "set more steps, or give an empty checkpoint folder to start again."
                )
            device = next(next(iter(self.state.nets.values())).parameters()).device
            found = read_checkpoint(path, settings=self._settings(made), device=device)
            try:
                self.state.restore(found.tensors)
            except (
                KeyError,
                RuntimeError,
                ValueError,
            ) as error:  # as of a network without some of its buffers
                reason = " ".join(str(error).split())
                raise DataError(
                    f"the checkpoint {path} must hold all tensors of networks, optimisers and averages, but does not "
                    f"({reason:.200}); remove it to resume from an earlier one."
                ) from error
            self.state.step, self.state.images_seen = found.step, int(found.numbers["images_seen"])
            self.sums, self.count = dict(found.numbers["sums"]), int(found.numbers["count"])
            log.info("resumed from %s", path)
        made, log_every = self.state.step, self.settings["log_every"]
        # the row of a last step that is not the last any more goes: its interval is logged whole
        self.metrics.cut_to(made if made == self.lr_schedule.steps else made - made % log_every)
        self.logged_images = self.state.images_seen

    def after_step(
        self, values: Mapping[str, Tensor | float], *, last: bool, check: bool, bar: Iterable[int]
    ) -> None:
        """Check, log and keep what is due. Reading values waits for a GPU: there only when needed."""
        step = self.state.step
        self.pending.append((step, dict(values)))
        logs = step % self.settings["log_every"] == 0 or step == self.lr_schedule.steps
        saves = self.folder is not None and (last or self._save_is_due())
        if check or logs or saves:
            self._read()
        if logs:
            self._log(bar, self._probed())
        if saves:
            self._save()

    def _save_is_due(self) -> bool:
        if self.every is not None:
            return self.state.step % self.every == 0
        return time.monotonic() - self.saved_at >= self.seconds

    def _read(self) -> None:
        """Add the pending values to the sums.

        Raises:
            Diverged: One of them is not finite.
        """
        for step, values in self.pending:
            for name, value in values.items():
                number = float(value)
                if not math.isfinite(number):
                    raise Diverged(self._diverged(step, name, number))
                self.sums[name] = self.sums.get(name, 0.0) + number
            self.count += 1
        self.pending.clear()

    def _kept(self) -> str:
        kept = None if self.folder is None else latest_checkpoint(self.folder)
        return "no checkpoint was kept" if kept is None else f"the last good checkpoint is {kept}"

    def _diverged(self, step: int, name: str, number: float) -> str:
        return (
            f"training diverged: {name} must be finite but is {number} at step {step}; {self._kept()}. "
            "Lower the learning rate, clip gradients, or check the data."
        )

    def _probed(self) -> dict[str, float]:
        """The probe's values where it is due; its time does not count as training.

        Raises:
            Diverged: It says that there is no use in training on; in all processes.
        """
        if self.probe is None or not self.probe.is_due(self.state.step, self.lr_schedule.steps):
            return {}
        started, values, reason = time.monotonic(), {}, ""
        if self.world.leads:
            try:
                values = dict(self.probe.measure(self.state))
            except Diverged as error:
                reason = f"{error} ({self._kept()})"
        if self.world.any(bool(reason), next(next(iter(self.state.nets.values())).parameters()).device):
            raise Diverged(reason or "training was stopped by the leading process, which says why.")
        self.logged_at += time.monotonic() - started
        return values

    def _log(self, bar: Iterable[int], probed: Mapping[str, float]) -> None:
        now, state = time.monotonic(), self.state
        speed = (state.images_seen - self.logged_images) / max(now - self.logged_at, 1e-9)
        means = {name: total / self.count for name, total in self.sums.items()}
        rates = {f"lr_{name}": o.param_groups[0]["lr"] for name, o in state.optimisers.items()}
        self.metrics.append(
            {
                "step": state.step,
                "images": state.images_seen,
                **means,
                **rates,
                **probed,
                SPEED: round(speed, 1),
            }
        )
        report = getattr(bar, "set_postfix_str", None)
        if report is not None:
            report(
                ", ".join(f"{k} {v:.4g}" for k, v in means.items()) + f", {speed:,.0f} images/s",
                refresh=False,
            )
        if (
            state.step % self.settings["log_every"] == 0
        ):  # else the last step, which a longer training averages over
            self.sums, self.count, self.logged_at, self.logged_images = {}, 0, now, state.images_seen

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if self.world.leads and self.folder is not None:
            write_checkpoint(
                self.folder,
                step=self.state.step,
                tensors=self.state.tensors(),
                numbers={"images_seen": self.state.images_seen, "sums": self.sums, "count": self.count},
                settings=self._settings(self.state.step),
            )

    def _settings(self, made: int) -> dict[str, Any]:
        """All that the first `made` steps depended on."""
        own = {name: schedule.settings(made) for name, schedule in self.own_schedules.items()}
        return {
            **self.settings,
            **self.lr_schedule.settings(made),
            **({"lr_schedules": own} if own else {}),
        }


def _set_rates(state: State, base: Mapping[str, list[float]], factor: Callable[[str], float]) -> None:
    """Set every learning rate to its base times the factor of its optimiser."""
    for name, optimiser in state.optimisers.items():
        for group, lr in zip(optimiser.param_groups, base[name], strict=True):
            group["lr"] = lr * factor(name)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying within a step; only the main thread can."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(received: list[int]) -> None:
    """End as the signal demands, now that the checkpoint is written."""
    if signal.SIGTERM in received:
        raise SystemExit(128 + signal.SIGTERM)
    raise KeyboardInterrupt
