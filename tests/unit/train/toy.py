"""A training of a tiny network in seconds: imported by tests, and started as a program to be killed.

`python toy.py FOLDER [STEPS] [SECONDS PER STEP]` trains, then writes FOLDER/final.safetensors (rank 0).
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from fewstep.diffusion.schedule import VPLinear
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights
from fewstep.train.denoiser import train_denoiser
from fewstep.train.recipe import Recipe
from fewstep.train.world import joined


class ToyImages:
    """20 random images of 4 x 4 pixels in 2 classes."""

    fingerprint = "toy"

    def __init__(self, n: int = 20) -> None:
        self.pixels = torch.randint(0, 256, (n, 1, 4, 4), generator=generator(5), dtype=torch.uint8)
        self.labels = np.arange(n) % 2

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices):
        return self.pixels[torch.as_tensor(indices)]


def tiny_net(**changes) -> UNet:
    with initial_weights(3):
        return UNet(4, 1, 4, **{"multipliers": (1, 2), "n_classes": 2, **changes})


SETTINGS = {
    "schedule": VPLinear(),
    "prediction": "eps",
    "steps": 12,
    "batch_size": 8,
    "lr": 1e-2,
    "seed": 0,
    "condition_dropout": 0.2,
    "flip": True,
    "warmup_steps": 2,
    "lr_schedule": "cosine",
}


def recipe(**changes) -> Recipe:
    return Recipe(**{**SETTINGS, **changes})


def weights(state) -> dict[str, torch.Tensor]:
    """The trained and the averaged weights."""
    own = {f"net.{k}": v.detach().clone() for k, v in state.nets["net"].state_dict().items()}
    return own | {f"ema.{k}": v.clone() for k, v in state.ema["net"].net.state_dict().items()}


def slowly(seconds: float):
    """Progress that waits before each step."""

    def wrap(steps):
        for step in steps:
            time.sleep(seconds)
            yield step

    return wrap


def main(folder: str, steps: str = "12", seconds: str = "0") -> None:
    torch.set_num_threads(1)
    with joined() as world:
        state = train_denoiser(
            ToyImages(),
            tiny_net(dropout=0.0 if world.size > 1 else 0.1),
            recipe(steps=int(steps)),
            log_every=3,
            checkpoints=Path(folder) / "checkpoints",
            metrics=Path(folder) / "metrics.jsonl",
            checkpoint_every=2,
            world=world,
            progress=slowly(float(seconds)),
        )
        if world.leads:
            save_file(
                {k: v.contiguous() for k, v in weights(state).items()}, Path(folder) / "final.safetensors"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
