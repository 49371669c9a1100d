"""The pieces of the bound of a model of latents, measured, and the distance that it is a bound of."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.data.latents import load_latents
from fewstep.data.packed import load_dataset
from fewstep.data.pixels import to_unit
from fewstep.diffusion.condition import LABEL, Classes, Condition
from fewstep.diffusion.denoiser import Denoiser, Model
from fewstep.methods.lfm.bound import bound, excess_loss, largest_slope, wasserstein2
from fewstep.methods.lfm.dopri5 import velocity
from fewstep.rng import generator

if TYPE_CHECKING:
    from fewstep.methods.lfm.stage.run import Measuring

SLOPE_POINTS, SLOPE_TIMES = 32, (0.1, 0.3, 0.5, 0.7, 0.9)
EXCESS_TIMES = 20


def pieces_of(measuring: "Measuring") -> dict[str, Any]:
    """Reconstruction, slopes of decoder and velocity, excess loss, the bound that follows, and W2 beside that of reals.

    Raises: ConfigError: the model is of pixels, or of masks or maps, or there are too few images.
    """
    model, settings = measuring.model, measuring.settings
    if measuring.latents is None or model.decode is None or measuring.maps is not None:
        raise ConfigError(
            "--bound-images must be 0 but for a model of latents with classes or without conditions; name its "
            "--latents, or leave it out."
        )
    training, images = load_latents(measuring.latents, "train"), load_dataset(measuring.data, "train")
    rng, n = generator(settings.seed, "bound"), settings.bound_images
    if 2 * n > len(images) or n > settings.images:
        raise ConfigError(
            f"--bound-images must be at most half of the {len(images)} training images, and of --images; got {n}."
        )
    points = training.batch(range(len(training)))
    of_classes = isinstance(model.conditions, Classes) and training.labels is not None
    labels = torch.zeros(len(points), dtype=torch.int64)
    labels = torch.from_numpy(training.labels) if of_classes and training.labels is not None else labels
    with torch.no_grad():
        rebuilt = torch.cat([measuring.decoded(part) for part in torch.split(points, 250)])
    real = to_unit(images.batch(range(len(images))))
    one, other = (
        real[rows].flatten(1) for rows in torch.split(torch.randperm(len(real), generator=rng), n)[:2]
    )
    drawn = measuring.euler(settings.guided_nfe, 1.0, measuring.seeds[:n])
    fake = to_unit(torch.from_numpy(np.ascontiguousarray(drawn.transpose(0, 3, 1, 2))))
    rows = torch.randint(len(points), (SLOPE_POINTS,), generator=rng)
    pieces = {
        "reconstruction": float((rebuilt - real).square().flatten(1).sum(1).mean()),
        "decoder": float(largest_slope(measuring.decoded, points[rows], rng=rng).max()),
        "velocity": max(_velocity_slope(model, points, labels, t, rng) for t in SLOPE_TIMES),
        "excess": _excess(model, points, labels, settings.batch_size, rng),
    }
    return {
        **pieces,
        "bound": bound(pieces),
        "wasserstein2": wasserstein2(fake.flatten(1), one),
        "wasserstein2_real": wasserstein2(other, one),
        "n": n,
    }


def _velocity_slope(model: Model, points: Tensor, labels: Tensor, t: float, rng: torch.Generator) -> float:
    """The largest slope of the velocity at noised points of one time."""
    rows = torch.randint(len(points), (SLOPE_POINTS,), generator=rng)
    z = (1 - t) * points[rows] + t * torch.randn(points[rows].shape, generator=rng)
    denoiser = _denoiser(model, labels[rows])
    return float(largest_slope(lambda z: velocity(denoiser, z, t), z, rng=rng).max())


def _excess(model: Model, points: Tensor, labels: Tensor, draws: int, rng: torch.Generator) -> float:
    @torch.no_grad()
    def of(z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return velocity(_denoiser(model, label), z, float(t[0]))

    schedule = model.schedule
    return excess_loss(
        of,
        points,
        labels,
        times=EXCESS_TIMES,
        draws=draws,
        t_min=schedule.t_min,
        t_max=schedule.t_start,
        rng=rng,
    )


def _denoiser(model: Model, labels: Tensor) -> Denoiser:
    of_classes = isinstance(model.conditions, Classes)
    return Denoiser(model, condition=Condition({LABEL: labels}) if of_classes else None)
