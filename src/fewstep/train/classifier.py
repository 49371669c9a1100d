"""Train a classifier of images on the shared loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.train.batches import Batch, ImageSource, batch_settings, image_batches, in_order
from fewstep.train.denoiser import describe
from fewstep.train.descent import descend
from fewstep.train.loop import LRSchedule, State, fit
from fewstep.train.world import World


def train_classifier(
    dataset: ImageSource,
    net: nn.Module,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    weight_decay: float = 1e-2,
    checkpoints: str | Path | None = None,
    metrics: str | Path | None = None,
    log_every: int = 10,
    world: World | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> State:
    """Train `net(x0) -> logits` by cross-entropy with AdamW and a cosine learning rate.

    Args:
        dataset: Images with labels.
        net: Changed in place; the result is in `state.nets["net"]`.
        steps: Optimiser steps.
        batch_size: Images per step over all processes.
        lr: Highest learning rate.
        seed: Of the order of the images; not of the network's weights.
        weight_decay: Of AdamW.
        checkpoints: Folder of the checkpoints; None: nothing is kept.
        metrics: JSONL file of the averages over every `log_every` steps.
        log_every: Steps over which logged values are averaged.
        world: The processes that train together.
        progress: Wraps the steps to report on them.

    Raises:
        ConfigError: A dataset without labels or with more classes than the network, or another bad setting.
        DataError: Training that diverged, or a damaged checkpoint.
    """
    n_classes = int(getattr(net, "n_classes", 0))
    if dataset.labels is None:
        raise ConfigError("a classifier needs labels, but the dataset has none; prepare it with labels.")
    if len(dataset.labels) and int(np.max(dataset.labels)) >= n_classes:
        raise ConfigError(
            f"labels must be below the network's {n_classes} classes; "
            f"the dataset has {int(np.max(dataset.labels))}."
        )
    world = World() if world is None else world
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step(state: State, batch: Batch, *, rng: torch.Generator) -> Mapping[str, Tensor]:
        labels = batch.labels
        assert labels is not None

        def loss(rows: slice) -> Tensor:
            return F.cross_entropy(net(batch.x0[rows]), labels[rows], reduction="none")

        return descend(loss, net, state.optimisers["net"], size=batch.size, world=world)

    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    return fit(
        State({"net": net}, {"net": optimiser}),
        step,
        image_batches(
            dataset,
            batch_size=batch_size,
            seed=seed,
            rank=world.rank,
            world_size=world.size,
            device=next(net.parameters()).device,
        ),
        lr_schedule=LRSchedule(steps, shape="cosine"),
        seed=seed,
        settings={
            "lr": lr,
            "weight_decay": weight_decay,
            "net": describe(net),
            **batch_settings(dataset, batch_size=batch_size),
        },
        checkpoints=checkpoints,
        metrics=metrics,
        log_every=log_every,
        world=world,
        progress=progress,
    )


@torch.inference_mode()
def accuracy(net: nn.Module, dataset: ImageSource, *, batch_size: int = 500) -> float:
    """Share of a labelled dataset's images that the network, in evaluation mode, classifies as labelled."""
    if dataset.labels is None or len(dataset) == 0:
        raise ConfigError("accuracy needs a dataset with images and labels.")
    net.eval()
    device = next(net.parameters()).device
    hits = 0
    for rows, images in in_order(dataset, batch_size, device):
        predicted = net(images).argmax(1).cpu()
        hits += int((predicted == torch.as_tensor(dataset.labels[rows])).sum())
    return hits / len(dataset)
