"""Inpainting by plans: with times per pixel, by replacement, and by replacement with resampling (RePaint)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.data.pixels import to_u8, to_unit
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import DDPMTable
from fewstep.rng import ImageNoise
from fewstep.sampling.inverse import stretch
from fewstep.sampling.plan import Plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.region import Region
from fewstep.sampling.sample import Costs, sample, solve, start_std


def inpaint(
    model: Model,
    plan: Plan,
    images_u8: Tensor,
    masks: Tensor,
    *,
    seeds: Sequence[int],
    batch_size: int = 250,
    noised: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    costs: Costs | None = None,
) -> Tensor:
    """Make what is in the holes of some images.

    Args:
        model: with times per pixel, unless `noised`.
        plan: any for the model.
        images_u8: uint8 (B, C, H, W), of the model's shape.
        masks: bool (B, 1, H, W), true in the hole.
        seeds: one per image.
        batch_size: images per network call.
        noised: replacement: known pixels are noised to the time of each node, which all pixels share.
        progress: wraps the iterable of batches.
        costs: filled with what it cost.

    Returns: uint8 (B, C, H, W) on the CPU, outside of the holes the images to the bit.

    Raises: ConfigError: the plan or the images do not fit the model, or more calls than times that it was trained at.
        DataError: masks of another form.
    """
    _require_few(model, plan.nfe)
    return sample(
        model,
        plan,
        seeds=seeds,
        batch_size=batch_size,
        progress=progress,
        costs=costs,
        region=Region(masks, to_unit(images_u8), noised),
    )


def repaint(
    model: Model,
    images_u8: Tensor,
    masks: Tensor,
    *,
    steps: int,
    resamples: int,
    jump: int = 1,
    seeds: Sequence[int],
    batch_size: int = 250,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    costs: Costs | None = None,
) -> Tensor:
    """RePaint: ancestral steps with replacement, each stretch of them made several times [lugmayr2022repaint, Alg. 1].

    After a stretch the state is noised back to where it began, so that hole and rest come to agree. The first stretch,
    from noise alone, is made once, as in the published schedule. All stretches are plans for the one sampling loop.

    Args:
        model: any.
        images_u8: as in `inpaint`.
        masks: as in `inpaint`.
        steps: ancestral steps from noise to data, uniform in time.
        resamples: how often a stretch is made.
        jump: steps of a stretch, 10 in the paper.
        seeds: as in `inpaint`.
        batch_size: as in `inpaint`.
        progress: as in `inpaint`.
        costs: filled with what it cost; `nfe` is that of the whole.

    Returns: as `inpaint`.

    Raises: ConfigError: no steps, resamples or jump, or images that do not fit the model.
    """
    if min(resamples, jump) < 1:
        raise ConfigError(f"RePaint needs resamples and jumps of 1 or more; got {resamples} and {jump}.")
    _require_few(model, steps)
    plan = PRESETS["ddpm"](model.schedule, steps, grid="uniform-t", to_zero=True)
    ends = [*range(0, steps, jump), steps]
    stretches = [stretch(plan, first, last) for first, last in zip(ends[:-1], ends[1:], strict=True)]
    images = torch.empty_like(images_u8)
    for first in progress(range(0, len(seeds), batch_size)):
        rows = slice(first, first + batch_size)
        noise = ImageNoise(seeds[rows], model.shape)
        region = Region(masks[rows], to_unit(images_u8[rows]), noised=True)
        x = start_std(model, plan) * noise().to(model.device)
        total = Costs()
        for number, part in enumerate(stretches):
            for again in range(resamples if number else 1):
                if again:
                    x = _noised_back(x, model, part, noise)
                x = solve(model, part, x, noise=noise, region=region, costs=total)
        images[rows] = to_u8(region.to(x).state(x, 1.0, 0.0, None)).cpu()
        if costs is not None:
            costs.images += len(region.x0)
            costs.nfe = costs.calls = calls_of(steps, resamples, jump)
            costs.network_calls += total.network_calls
            costs.network_seconds += total.network_seconds
    return images


def _require_few(model: Model, steps: int) -> None:
    schedule = model.schedule
    if isinstance(schedule, DDPMTable) and steps > len(schedule.alpha_bar):
        raise ConfigError(
            f"Steps must be at most {len(schedule.alpha_bar)}, the rows of the table that {model.name} was trained "
            f"with; got {steps}."
        )


def calls_of(steps: int, resamples: int, jump: int = 1) -> int:
    """Network calls of `repaint` on an image."""
    first = min(jump, steps)
    return first + (steps - first) * resamples


def _noised_back(x: Tensor, model: Model, part: Plan, noise: Callable[[], Tensor]) -> Tensor:
    """From the last time of a stretch to its first: x_t = alpha_t / alpha_s x_s + what variance is missing."""
    schedule, t, s = model.schedule, part.nodes[0].t, part.nodes[-1].t
    scale = float(schedule.alpha(t) / schedule.alpha(s))
    variance = float(schedule.sigma(t)) ** 2 - (scale * float(schedule.sigma(s))) ** 2
    again: Tensor = scale * x + variance**0.5 * noise().to(x)
    return again
