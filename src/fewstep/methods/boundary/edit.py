"""One edit at the mixing step, across a plane, and the rest of the plan as it is [zhu2023boundary].

The state moves to a chosen distance from its plane, x' = x + (zeta - d(x)) n, and so does the bottleneck in the first
call. Differs: the official code goes on to replace the bottleneck of each later call by that of the call before, a lag
of one, which `lagged` does; and it draws noise in the edit (eta = 1), where the default here draws none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.data.pixels import to_u8
from fewstep.diffusion.denoiser import Model
from fewstep.methods.boundary.latents import Latents, Network, overriding
from fewstep.rng import ImageNoise
from fewstep.sampling.plan import Node, Plan
from fewstep.sampling.sample import solve


@dataclass(frozen=True)
class Start:
    """Where generation starts.

    Attributes: eps: the state, (N, C, H, W). h: what the middle block's output is replaced by in the first call,
        (N, c, h, w); None: by nothing.
    """

    eps: Tensor
    h: Tensor | None = None


def generated(
    model: Model,
    plan: Plan,
    start: Start,
    *,
    eta: float = 0.0,
    seeds: Sequence[int] | None = None,
    lagged: bool = False,
    batch_size: int = 250,
) -> Tensor:
    """Run a plan from the mixing step to images.

    Args:
        model: as `fewstep.methods.boundary.latents.require_editable` wants it.
        plan: from the mixing step to data.
        start: where.
        eta: noise of the steps, 0 none, 1 as of DDPM.
        seeds: of that noise, one for each image.
        lagged: with a bottleneck: replace it in each later call by that of the call before.
        batch_size: images per network call.

    Returns: uint8 (N, C, H, W) on the CPU.

    Raises: ConfigError: eta without seeds, or as of `solve`.
    """
    if eta > 0:
        if seeds is None or len(seeds) != len(start.eps):
            raise ConfigError(
                f"Edits with noise, eta {eta:g}, need a seed for each of the {len(start.eps)} images."
            )
        plan = replace(plan, steps=tuple(replace(step, eta=eta) for step in plan.steps))
    images = []
    for first in range(0, len(start.eps), batch_size):
        rows = slice(first, first + batch_size)
        noise = None if seeds is None or eta == 0 else ImageNoise(seeds[rows], model.shape)
        h = None if start.h is None else start.h[rows].to(model.device)
        select = None if h is None else _select(model, plan, h, lagged)
        x0 = solve(model, plan, start.eps[rows].to(model.device), noise=noise, select=select)
        images.append(to_u8(x0).cpu())
    return torch.cat(images)


def _select(model: Model, plan: Plan, h: Tensor, lagged: bool) -> Callable[[Node], Network | None]:
    """What is called at each node: the network with its bottleneck replaced at the first, itself later."""
    last = h

    def put(own: Tensor) -> Tensor:
        nonlocal last
        given, last = last, own
        return given.to(own.dtype)

    def select(node: Node) -> Network | None:
        edits = lagged or node is plan.nodes[0]
        return overriding(model, put, width=node.width) if edits else None

    return select


def unedited(latents: Latents) -> Start:
    """Generation from here is the reconstruction."""
    return Start(latents.eps)
