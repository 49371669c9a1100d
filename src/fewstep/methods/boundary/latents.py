"""Where images are edited: the state at the mixing step and the bottleneck there, by the plan run backwards.

Differs: the bottleneck is that of a call at the mixing step itself, where the edit puts it back; the official code
keeps that of the last call of the inversion, a step earlier.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.data.pixels import to_unit
from fewstep.diffusion.denoiser import Denoiser, Model
from fewstep.diffusion.schedule import DDPMTable, Schedule
from fewstep.nets.unet import UNet
from fewstep.rng import ImageNoise
from fewstep.sampling.inverse import inverse, stretch
from fewstep.sampling.plan import Plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve, start_std

SPACES = ("eps", "h")
"""The state, and the output of the U-Net's middle block; called so in the paper."""

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Latents:
    """Of some images at one step, on the CPU.

    Attributes: eps: the state, (N, C, H, W). h: the output of the middle block there, (N, c, h, w).
    """

    eps: Tensor
    h: Tensor

    def __len__(self) -> int:
        return len(self.eps)

    def __getitem__(self, rows: Any) -> "Latents":
        """Those of some images."""
        return Latents(self.eps[rows], self.h[rows])

    def of(self, space: str) -> Tensor:
        """Those in a space, a name in `SPACES`."""
        found: Tensor = getattr(self, space)
        return found


def require_editable(model: Model) -> UNet:
    """The model's network, whose bottleneck can be replaced.
    Raises: ConfigError: it is no U-Net of this project, a generator, of latents, or conditioned without a null
        condition.
    """
    if not isinstance(model.net, UNet) or model.decode is not None or model.most_calls is not None:
        raise ConfigError(
            f"Editing needs a U-Net of this project, on pixels, whose bottleneck can be replaced; {model.name} is none."
        )
    if model.conditions is not None:
        Denoiser(model)  # refuses a model without a null condition
    return model.net


def plan_to(schedule: Schedule, t: float, calls: int) -> Plan:
    """Deterministic DDIM from a mixing step to data, on times uniform in t.

    Raises: ConfigError: a step outside of the schedule, or fewer than 2 calls, or more than there are rows up to it.
    """
    require_step(schedule, t)
    most = round(t * len(schedule.alpha_bar)) if isinstance(schedule, DDPMTable) else None
    if calls < 2 or (most is not None and calls > most):
        limit = (
            "2 or more" if most is None else f"2 to {most}, the rows of the table up to the mixing step {t:g}"
        )
        raise ConfigError(f"--calls must be {limit}; got {calls}.")
    return PRESETS["ddim"](schedule, calls, grid="uniform-t", t_start=t, to_zero=True)


def plan_from(plan: Plan, schedule: Schedule, t: float) -> Plan:
    """The part of a plan from the node next to a mixing step on.

    Raises: ConfigError: a step outside of the schedule, or a plan of higher order, or with fewer than 2 calls left.
    """
    require_step(schedule, t)
    if plan.stochastic:
        raise ConfigError(
            f"A plan must be without noise to be run backwards; {plan.name} draws some; take ddim."
        )
    noisy = [i for i, node in enumerate(plan.nodes) if node.eval == "net"]
    first = min(noisy, key=lambda i: abs(plan.nodes[i].t - t))
    part = stretch(plan, first, len(plan.nodes) - 1)
    if part.nfe < 2:
        raise ConfigError(
            f"A plan must make 2 calls or more from the mixing step {t:g} on; {plan.name} makes {part.nfe}."
        )
    return part


def require_step(schedule: Schedule, t: float) -> None:
    """Raise ConfigError where a mixing step is not between data and noise."""
    if not schedule.t_min < t < schedule.t_start:
        raise ConfigError(
            f"A mixing step must lie between data and noise, above {schedule.t_min:g} and below {schedule.t_start:g}; "
            f"got {t:g}."
        )


def inverted(
    model: Model,
    plan: Plan,
    images_u8: Tensor,
    *,
    batch_size: int = 250,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Latents:
    """The latents of images at the first node of a plan.

    Args:
        model: as `require_editable` wants it.
        plan: from the mixing step to data.
        images_u8: uint8 (N, C, H, W) of the model's shape.
        batch_size: images per network call.
        progress: wraps the iterable of batches.

    Raises: DataError: images of another shape. ConfigError: the plan cannot be run backwards.
    """
    if tuple(images_u8.shape[1:]) != model.shape:
        raise DataError(
            f"Images must be of the model's shape, {model.shape}; got {tuple(images_u8.shape[1:])}."
        )
    back = inverse(plan, model.schedule)
    states = [
        solve(model, back, to_unit(images_u8[first : first + batch_size]).to(model.device)).cpu()
        for first in progress(range(0, len(images_u8), batch_size))
    ]
    return with_bottleneck(model, plan, torch.cat(states), batch_size=batch_size)


def sampled(model: Model, plan: Plan, seeds: Sequence[int], *, calls: int, batch_size: int = 250) -> Latents:
    """The latents at the first node of a plan of images that a model makes of noise, by DDIM of so many calls."""
    head = PRESETS["ddim"](model.schedule, calls, grid="uniform-t", t_end=plan.nodes[0].t)
    states = []
    for first in range(0, len(seeds), batch_size):
        noise = ImageNoise(seeds[first : first + batch_size], model.shape)
        states.append(solve(model, head, start_std(model, head) * noise().to(model.device)).cpu())
    return with_bottleneck(model, plan, torch.cat(states), batch_size=batch_size)


def with_bottleneck(model: Model, plan: Plan, states: Tensor, *, batch_size: int = 250) -> Latents:
    """States at the first node of a plan, (N, C, H, W), with the bottleneck of a call there."""
    node = plan.nodes[0]
    kept: list[Tensor] = []

    def keep(h: Tensor) -> None:
        kept.append(h.cpu())

    denoiser = Denoiser(model)
    with torch.no_grad():
        for first in range(0, len(states), batch_size):
            denoiser.output(
                states[first : first + batch_size].to(model.device),
                node.t,
                t_cond=node.t_cond,
                width=node.width,
                network=overriding(model, keep, width=node.width),
            )
    return Latents(states, torch.cat(kept))


def overriding(
    model: Model, change: Callable[[Tensor], Tensor | None], *, width: int | None = None
) -> Network:
    """The network, with what a function makes of the middle block's output in its place; None: as it is."""
    net, network = model.module(width), model.network(width)
    assert isinstance(net, UNet)

    def call(*arguments: Any) -> Tensor:
        handle = net.middle_out.register_forward_hook(lambda _, __, h: change(h))
        try:
            return network(*arguments)
        finally:
            handle.remove()

    return call
