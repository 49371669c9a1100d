"""Train a diffusion model's network on the shared loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import Schedule
from fewstep.train.batches import Batch, ImageSource, batch_settings, image_batches
from fewstep.train.descent import descend
from fewstep.train.ema import Ema
from fewstep.train.loop import Course, State, fit
from fewstep.train.losses import Loss, check_weighting, denoising_loss, draw_times, noised
from fewstep.train.world import World


class LossOfStep(Protocol):
    """How a method trains a network in another way: the loss of each step, and what tells it apart."""

    def __call__(self, rng: torch.Generator) -> Loss:
        """The loss of one step, which may draw from the step's generator."""
        ...

    def config(self) -> dict[str, Any]:
        """Plain values that decide the result."""
        ...


def train_denoiser(
    dataset: ImageSource,
    net: nn.Module,
    *,
    schedule: Schedule,
    prediction: str,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    warmup_steps: int = 0,
    lr_course: str = "constant",
    cooldown: int = 0,
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    weighting: str = "uniform",
    label_dropout: float = 0.0,
    flip: bool = False,
    ema_decay: float | None = 0.999,
    ema_half_life: float | None = None,
    precision: str = "fp32",
    compile: bool = False,
    parts: int = 1,
    loss_of_step: LossOfStep | None = None,
    start: str | None = None,
    checkpoints: str | Path | None = None,
    metrics: str | Path | None = None,
    until: int | None = None,
    log_every: int = 10,
    checkpoint_every: int | None = None,
    checkpoint_seconds: float = 60.0,
    world: World | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> State:
    """Train `net` to denoise the images of `dataset`; on the device where the network is.

    Args:
        dataset: The images, and the labels when the network has classes.
        net: `net(x_t, time, label)`; `n_classes` says whether it takes labels. Changed in place.
        schedule: Noise amplitudes; the times are uniform on [t_min, t_max] (EDM: log-normal noise levels).
        prediction: What the network learns to output, one of `PREDICTIONS`.
        steps: Optimiser steps.
        batch_size: Images per step over all processes.
        lr: Learning rate of AdamW after the warm-up.
        seed: Of the order of the images, the noise, the times and dropout; not of the network's weights.
        warmup_steps: Steps of linear rise of the learning rate.
        lr_course: "constant" or "cosine" after the warm-up.
        cooldown: Last steps, in which a constant rate falls to 0.
        weight_decay: Of AdamW.
        clip: Largest gradient norm; None: no clipping.
        weighting: Of the loss, one of `WEIGHTINGS`.
        label_dropout: Share of labels replaced by "no label", which guidance needs [ho2022cfg].
        flip: Mirror half of the images.
        ema_decay: Largest decay per step of the averaged weights.
        ema_half_life: In images; give it with `ema_decay=None`.
        precision: "fp32", or "bf16" autocast around the network.
        compile: Use torch.compile.
        parts: Pieces of the batch, to save memory.
        loss_of_step: Gives the loss of a step; None: `denoising_loss` in all.
        start: Hash of the weights that `net` starts from, where they are not random.
        checkpoints: Folder of the checkpoints; None: nothing is kept.
        metrics: JSONL file of the averages over every `log_every` steps.
        until: Stop early at this step; the learning rate still follows `steps`.
        log_every: Steps over which logged values are averaged.
        checkpoint_every: Steps between checkpoints.
        checkpoint_seconds: Seconds between checkpoints when `checkpoint_every` is None.
        world: The processes that train together.
        progress: Wraps the steps to report on them.

    Returns:
        The state; `state.ema["net"].net` holds the averaged weights.

    Raises:
        ConfigError: A setting that cannot work, or a checkpoint of other settings.
        DataError: Training that diverged, or a damaged checkpoint.
    """
    check_weighting(weighting)
    _check_precision(precision)
    n_classes = int(getattr(net, "n_classes", 0))
    if n_classes and dataset.labels is None:
        raise ConfigError(
            f"the network has {n_classes} classes but the dataset has no labels; use n_classes=0."
        )
    if not 0.0 <= label_dropout < 1.0 or (label_dropout and not n_classes):
        raise ConfigError(
            f"label_dropout must lie in [0, 1) and needs a network with classes; got {label_dropout}."
        )
    world = World() if world is None else world
    device = next(net.parameters()).device
    layout = _layout(device, precision)
    net.to(memory_format=layout)  # type: ignore[call-overload]
    call = torch.compile(net) if compile else net

    def step(state: State, batch: Batch, *, rng: torch.Generator) -> Mapping[str, Tensor]:
        shape = (batch.size, *batch.x0.shape[1:])
        t = draw_times(schedule, batch.size, weighting=weighting, rng=rng)[batch.rows]
        x0 = batch.x0.contiguous(memory_format=layout)
        eps = batch.cut(torch.randn(shape, generator=rng)).contiguous(memory_format=layout)
        labels = batch.labels if n_classes else None
        if labels is not None and label_dropout:
            hidden = batch.cut(torch.rand(batch.size, generator=rng) < label_dropout)
            labels = torch.where(hidden, n_classes, labels)

        of_step = denoising_loss if loss_of_step is None else loss_of_step(rng)

        def loss(rows: slice) -> Tensor:
            asked = noised(
                x0[rows],
                eps[rows],
                t[rows],
                schedule=schedule,
                prediction=prediction,
                weighting=weighting,
            )
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                return of_step(call, asked, None if labels is None else labels[rows])

        return descend(
            loss, net, state.optimisers["net"], size=batch.size, world=world, parts=parts, clip=clip
        )

    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    ema = Ema(net, decay=ema_decay, half_life=ema_half_life)
    settings: dict[str, Any] = {
        "schedule": schedule.config(),
        "prediction": prediction,
        "lr": lr,
        "weight_decay": weight_decay,
        "clip": clip,
        "weighting": weighting,
        "label_dropout": label_dropout,
        "ema_decay": ema_decay,
        "ema_half_life": ema_half_life,
        "precision": precision,
        "net": describe(net),
        **batch_settings(dataset, batch_size=batch_size, flip=flip),
    }
    if loss_of_step is not None:
        settings["loss"] = loss_of_step.config()
    if start is not None:
        settings["start"] = start
    return fit(
        State({"net": net}, {"net": optimiser}, {"net": ema}),
        step,
        image_batches(
            dataset,
            batch_size=batch_size,
            seed=seed,
            flip=flip,
            rank=world.rank,
            world_size=world.size,
            device=device,
        ),
        course=Course(steps, warmup_steps, lr_course, cooldown),
        seed=seed,
        settings=settings,
        checkpoints=checkpoints,
        metrics=metrics,
        until=until,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        checkpoint_seconds=checkpoint_seconds,
        world=world,
        progress=progress,
    )


def describe(net: nn.Module) -> dict[str, Any]:
    """What tells a network's architecture apart in a checkpoint's settings."""
    config = getattr(net, "config", None)
    return {
        "type": type(net).__name__,
        "parameters": sum(p.numel() for p in net.parameters()),
        "config": config() if callable(config) else None,
    }


def _layout(device: torch.device, precision: str) -> torch.memory_format:
    """Channels-last, but for bfloat16 on a CPU: there its group norms take a third of a step."""
    slow = device.type == "cpu" and precision == "bf16"
    return torch.contiguous_format if slow else torch.channels_last


def _check_precision(precision: str) -> None:
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision must be fp32 or bf16; got {precision!r}.")
