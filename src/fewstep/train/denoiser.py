"""Train a diffusion model's network on the shared loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.data.pairs import Pairs
from fewstep.diffusion.condition import LABEL, Condition, Conditions, null_of, require_entries, said
from fewstep.train.batches import Batch, ImageSource, batch_settings, image_batches
from fewstep.train.descent import descend
from fewstep.train.ema import Ema
from fewstep.train.loop import LRSchedule, State, fit
from fewstep.train.losses import denoising_loss, draw_times, noised
from fewstep.train.recipe import Recipe
from fewstep.train.world import World


def train_denoiser(
    dataset: ImageSource,
    net: nn.Module,
    recipe: Recipe,
    *,
    condition: Condition | None = None,
    pairs: Pairs | None = None,
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
        net: `net(x_t, time, condition)`; its attribute `conditions`, where it has one, says what it takes. Changed in
            place.
        recipe: How.
        condition: Of each image of the dataset, in its order, but for the labels, which are the dataset's; as
            `image_batches` takes it.
        pairs: Which rows of `condition` each image is trained with, for a network without classes.
        checkpoints: Folder of the checkpoints, as all that follows for `fit`.
        metrics: JSONL file of the averages over every `log_every` steps.
        until: Stop early at this step.
        log_every: Steps over which logged values are averaged.
        checkpoint_every: Steps between checkpoints.
        checkpoint_seconds: Seconds between checkpoints when `checkpoint_every` is None.
        world: The processes that train together.
        progress: Wraps the steps to report on them.

    Returns:
        The state; `state.ema["net"].net` holds the averaged weights.

    Raises:
        ConfigError: A setting that cannot work, or a checkpoint of other settings.
        DataError: Conditions that the network does not take, training that diverged, or a damaged checkpoint.
    """
    conditions: Conditions | None = getattr(net, "conditions", None)
    given = condition
    condition = _condition(conditions, dataset, given)
    if pairs is not None and (given is None or LABEL in (condition or given).values):
        raise ConfigError(
            "pairs need conditions and a network without classes, as a pair says which condition an image has; "
            "leave out one of the two."
        )
    null = None if conditions is None else null_of(conditions, 1)
    if recipe.condition_dropout and null is None:
        raise ConfigError(
            f"condition_dropout needs a network with a null condition; got {recipe.condition_dropout}."
        )
    world = World() if world is None else world
    device = next(net.parameters()).device
    layout = _layout(device, recipe.precision)
    net.to(memory_format=layout)  # type: ignore[call-overload]
    call = torch.compile(net) if recipe.compile else net
    null = None if null is None else null.to(device)

    def step(state: State, batch: Batch, *, rng: torch.Generator) -> Mapping[str, Tensor]:
        shape = (batch.size, *batch.x0.shape[1:])
        t = draw_times(recipe.schedule, batch.size, weighting=recipe.weighting, rng=rng)
        if recipe.times_of_step is not None:
            t = recipe.times_of_step(t, (shape[-2], shape[-1]), rng)
        t, places = t[batch.rows], torch.arange(batch.size)[batch.rows]
        x0 = batch.x0.contiguous(memory_format=layout)
        eps = batch.cut(torch.randn(shape, generator=rng)).contiguous(memory_format=layout)
        of_batch = batch.condition
        if of_batch is not None and null is not None and recipe.condition_dropout:
            hidden = batch.cut(torch.rand(batch.size, generator=rng) < recipe.condition_dropout)
            of_batch = of_batch.where(hidden, null)

        of_step = denoising_loss if recipe.loss_of_step is None else recipe.loss_of_step(rng, batch.size)

        def loss(rows: slice) -> Tensor:
            inputs = noised(
                x0[rows],
                eps[rows],
                t[rows],
                schedule=recipe.schedule,
                prediction=recipe.prediction,
                weighting=recipe.weighting,
            )._replace(rows=places[rows])
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                return of_step(call, inputs, None if of_batch is None else of_batch[rows])

        return descend(
            loss,
            net,
            state.optimisers["net"],
            size=batch.size,
            world=world,
            parts=recipe.parts,
            clip=recipe.clip,
        )

    optimiser = torch.optim.AdamW(
        net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    ema = Ema(net, decay=recipe.ema_decay, half_life=recipe.ema_half_life)
    settings: dict[str, Any] = {
        **recipe.settings(),
        "net": describe(net),
        **batch_settings(dataset, batch_size=recipe.batch_size, flip=recipe.flip),
    }
    if given is not None:
        settings["conditions"] = given.sha256
    if pairs is not None:
        settings["pairs"] = pairs.sha256
    return fit(
        State({"net": net}, {"net": optimiser}, {"net": ema}),
        step,
        image_batches(
            dataset,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            flip=recipe.flip,
            condition=condition,
            pairs=pairs,
            rank=world.rank,
            world_size=world.size,
            device=device,
        ),
        lr_schedule=LRSchedule(recipe.steps, recipe.warmup_steps, recipe.lr_schedule, recipe.cooldown),
        seed=recipe.seed,
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


def _condition(
    conditions: Conditions | None, dataset: ImageSource, given: Condition | None
) -> Condition | None:
    """The condition of each image of a dataset: what is given, and the dataset's labels."""
    if conditions is None:
        if given is not None:
            raise ConfigError(
                "conditions need a network that takes some, but this one has none; leave them out."
            )
        return None
    values = {} if given is None else dict(given.values)
    if LABEL in conditions.entries and LABEL not in values:
        if dataset.labels is None:
            raise ConfigError(
                "the network has classes but the dataset has no labels; use n_classes=0, or prepare it with labels."
            )
        labels = torch.as_tensor(np.asarray(dataset.labels), dtype=torch.int64)
        values[LABEL] = labels.repeat(1 if given is None else max(1, len(given) // max(1, len(labels))))
    if not values:
        raise ConfigError(
            f"the network takes {said(conditions.entries)}, but there are no conditions; give one row for each image."
        )
    condition = Condition(values)
    require_entries(condition, conditions.entries)
    return condition


def describe(net: nn.Module) -> dict[str, Any]:
    """A network's architecture in a checkpoint's settings."""
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
