"""How a diffusion model is trained: the values that decide the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import Schedule
from fewstep.train.losses import Loss, check_weighting

PRECISIONS = ("fp32", "bf16")


class LossOfStep(Protocol):
    """How a method trains a network in another way: the loss of each step, and the values that decide it."""

    def __call__(self, rng: torch.Generator, size: int) -> Loss:
        """The loss of one step, which may draw from the step's generator, for all `size` images of the batch."""
        ...

    def config(self) -> dict[str, Any]:
        """Plain values that decide the result."""
        ...


class TimesOfStep(Protocol):
    """How a method trains at other times: those of each step."""

    def __call__(self, t: Tensor, sides: tuple[int, int], rng: torch.Generator) -> Tensor:
        """Times of the pixels of each image, float64 (B, 1, H, W).

        Args: t: the times that were drawn, float64 (B,). sides: height and width. rng: the step's generator.
        """
        ...


class Objective(LossOfStep, Protocol):
    """How a method trains in another way as a whole."""

    @property
    def times(self) -> TimesOfStep | None:
        """Of the pixels; None: each image has one time."""
        ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training of a diffusion model, but for its images and its network.

    Attributes:
        schedule: Noise amplitudes; the times are uniform on [t_min, t_start] (EDM: log-normal noise levels).
        prediction: What the network learns to output, one of `PREDICTIONS`.
        steps: Optimiser steps.
        batch_size: Images per step over all processes.
        lr: Learning rate of AdamW after the warm-up.
        seed: Of the order of the images, the noise, the times and dropout; not of the network's weights.
        warmup_steps: Steps of linear rise of the learning rate.
        lr_schedule: "constant" or "cosine" after the warm-up.
        cooldown: Last steps, in which a constant rate falls to 0.
        weight_decay: Of AdamW.
        clip: Largest gradient norm; None: no clipping.
        weighting: Of the loss, one of `WEIGHTINGS`.
        condition_dropout: Share of conditions replaced by the null condition, which guidance needs [ho2022cfg].
        flip: Mirror half of the images, and with them their maps.
        ema_decay: Largest decay per step of the averaged weights.
        ema_half_life: In images; give it with `ema_decay=None`.
        precision: One of `PRECISIONS`: "bf16" is autocast around the network.
        compile: Use torch.compile.
        parts: Pieces of the batch, to save memory.
        loss_of_step: Gives the loss of a step; None: `denoising_loss` in all.
        times_of_step: Gives the times of a step; None: one for each image.
        start: Hash of the weights that the network starts from, where they are not random.

    Raises:
        ConfigError: An unknown weighting or precision, or a share out of range.
    """

    schedule: Schedule
    prediction: str
    steps: int
    batch_size: int
    lr: float
    seed: int
    warmup_steps: int = 0
    lr_schedule: str = "constant"
    cooldown: int = 0
    weight_decay: float = 0.0
    clip: float | None = 1.0
    weighting: str = "uniform"
    condition_dropout: float = 0.0
    flip: bool = False
    ema_decay: float | None = 0.999
    ema_half_life: float | None = None
    precision: str = "fp32"
    compile: bool = False
    parts: int = 1
    loss_of_step: LossOfStep | None = None
    times_of_step: TimesOfStep | None = None
    start: str | None = None

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be {' or '.join(PRECISIONS)}; got {self.precision!r}.")
        if not 0.0 <= self.condition_dropout < 1.0:
            raise ConfigError(f"condition_dropout must lie in [0, 1); got {self.condition_dropout}.")

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree with, but for the learning-rate schedule and the batches.

        The name label_dropout is that of the first checkpoints.
        """
        names = (
            "prediction",
            "lr",
            "weight_decay",
            "clip",
            "weighting",
            "ema_decay",
            "ema_half_life",
            "precision",
        )
        settings: dict[str, Any] = {
            "schedule": self.schedule.config(),
            "label_dropout": self.condition_dropout,
            **{name: getattr(self, name) for name in names},
        }
        if self.loss_of_step is not None:
            settings["loss"] = self.loss_of_step.config()
        if self.start is not None:
            settings["start"] = self.start
        return settings
