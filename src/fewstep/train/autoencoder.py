"""Train a variational autoencoder on the shared loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.nets.autoencoder import VAE
from fewstep.train.batches import Batch, ImageSource, batch_settings, image_batches, in_order
from fewstep.train.denoiser import describe
from fewstep.train.descent import descend
from fewstep.train.loop import LRSchedule, State, fit
from fewstep.train.world import World


def train_autoencoder(
    dataset: ImageSource,
    net: VAE,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    kl_weight: float,
    flip: bool = False,
    checkpoints: str | Path | None = None,
    metrics: str | Path | None = None,
    log_every: int = 10,
    world: World | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> State:
    """Train by the squared error summed over an image plus `kl_weight` times the divergence of its posterior.

    What is logged is their sum over the numbers of an image.

    Args:
        dataset: The images.
        net: Changed in place.
        steps: Optimiser steps.
        batch_size: Images per step over all processes.
        lr: Highest learning rate; it falls by a cosine.
        seed: Of the order of the images and of the noise; not of the network's weights.
        kl_weight: Weight of the divergence, in nats; small: it only keeps latents near the unit normal.
        flip: Mirror half of the images.
        checkpoints: Folder of the checkpoints; None: nothing is kept.
        metrics: JSONL file of the averages over every `log_every` steps.
        log_every: Steps over which logged values are averaged.
        world: The processes that train together.
        progress: Wraps the steps to report on them.

    Raises:
        ConfigError: A bad setting. DataError: Training that diverged, or a damaged checkpoint.
    """
    if not kl_weight >= 0:
        raise ConfigError(f"kl_weight must be at least 0; got {kl_weight}.")
    world = World() if world is None else world
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step(state: State, batch: Batch, *, rng: torch.Generator) -> Mapping[str, Tensor]:
        height, width = batch.x0.shape[-2] // net.factor, batch.x0.shape[-1] // net.factor
        noise = batch.cut(torch.randn((batch.size, net.latent_channels, height, width), generator=rng))

        def loss(rows: slice) -> Tensor:
            rebuilt, posterior = net(batch.x0[rows], noise[rows])
            error = (rebuilt - batch.x0[rows]).square().flatten(1)
            total: Tensor = (error.sum(1) + kl_weight * posterior.kl()) / error.shape[1]
            return total

        return descend(loss, net, state.optimisers["net"], size=batch.size, world=world, clip=1.0)

    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0, fused=True)
    return fit(
        State({"net": net}, {"net": optimiser}),
        step,
        image_batches(
            dataset,
            batch_size=batch_size,
            seed=seed,
            flip=flip,
            rank=world.rank,
            world_size=world.size,
            device=next(net.parameters()).device,
        ),
        lr_schedule=LRSchedule(steps, min(50, steps // 10), shape="cosine"),
        seed=seed,
        settings={
            "lr": lr,
            "kl_weight": kl_weight,
            "net": describe(net),
            **batch_settings(dataset, batch_size=batch_size, flip=flip),
        },
        checkpoints=checkpoints,
        metrics=metrics,
        log_every=log_every,
        world=world,
        progress=progress,
    )


@torch.inference_mode()
def measured_scale(net: VAE, dataset: ImageSource, *, batch_size: int = 250) -> float:
    """1 over the standard deviation of all numbers of the latents, drawn from the posteriors of a dataset's images."""
    n = total = square = variance = 0.0
    for images in _batches(net, dataset, batch_size):
        posterior = net.posterior(images)
        mean = posterior.mean.double()
        n, total, square = n + mean.numel(), total + float(mean.sum()), square + float(mean.square().sum())
        variance += float(posterior.std.double().square().sum())
    return float(((square + variance) / n - (total / n) ** 2) ** -0.5)


@torch.inference_mode()
def reconstruction_error(net: VAE, dataset: ImageSource, *, batch_size: int = 250) -> float:
    """Mean squared error of images in [-1, 1] rebuilt from the means of their posteriors."""
    total = count = 0.0
    for images in _batches(net, dataset, batch_size):
        off = net.images(net.posterior(images).mean) - images
        total, count = total + float(off.double().square().sum()), count + off.numel()
    return total / count


def _batches(net: VAE, dataset: ImageSource, batch_size: int) -> Iterator[Tensor]:
    net.eval()
    return (images for _, images in in_order(dataset, batch_size, next(net.parameters()).device))
