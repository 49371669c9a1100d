"""What a network call costs at each width, counted in multiply-adds or measured in time, and so what a plan costs."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fewstep.checks import ConfigError
from fewstep.diffusion.denoiser import Denoiser, Model
from fewstep.methods.ddsm.widths import Widths
from fewstep.rng import ImageNoise
from fewstep.sampling.plan import Plan, widths_of
from fewstep.sampling.work import evaluations_of

Kind = Literal["macs", "ms"]
WARM = 2  # rounds that are not counted: memory is laid out, kernels are chosen


@dataclass(frozen=True)
class CostTable:
    """Costs on one image.

    Attributes:
        kind: macs (multiply-adds) or ms (milliseconds, in batches).
        widths: of one evaluation at each width, the full one first; guidance calls the network twice.
        fixed: of what comes once an image, the decoder of latent models.
    """

    kind: Kind
    widths: tuple[float, ...]
    fixed: float = 0.0

    def of_steps(self, plan: Plan) -> NDArray[np.float64]:
        """Of each node that calls the network, in order, at each width, (n, k)."""
        return np.outer(evaluations_of(plan), self.widths)


def cost_of(plan: Plan, table: CostTable) -> float:
    """Of one image, in the table's unit.
    Raises: ConfigError: the plan has a width that the table does not have.
    """
    widths = widths_of(plan)
    if max(widths, default=0) >= len(table.widths):
        raise ConfigError(
            f"A plan's widths must be among the {len(table.widths)} that the model has; {plan.name or 'the plan'} has "
            f"{list(widths)}; use the model it was made for."
        )
    return total_cost(widths, plan, table)


def total_cost(widths: Widths, plan: Plan, table: CostTable) -> float:
    """As `cost_of`, of the plan with these widths in the place of its own."""
    terms = (count * table.widths[k] for count, k in zip(evaluations_of(plan), widths, strict=True))
    return math.fsum(
        (*terms, table.fixed)
    )  # exact, so that plans of equal widths in another order cost the same


def macs(model: Model, *, guidance: float = 1.0) -> CostTable:
    """Multiply-adds of matrix products and convolutions, exactly; element-wise work is not counted.
    Raises: ConfigError: the model is not slimmable, or does nothing that can be counted.
    """
    require_slimmable(model)
    call = _network_call(model, 1, guidance)
    counts = [_counted(partial(call, width)) for width in range(len(model.widths))]
    if min(counts) == 0:
        raise ConfigError(
            f"Multiply-adds must be countable, but {model.name} makes no matrix products or convolutions that PyTorch "
            "sees; measure its cost in ms."
        )
    decode, shape = model.decode, model.shape
    fixed = 0 if decode is None else _counted(lambda: decode(torch.zeros(1, *shape, device=model.device)))
    return CostTable("macs", tuple(map(float, counts)), float(fixed))


def _counted(work: Callable[[], Tensor]) -> int:
    # written out: of the fused kernels of attention PyTorch's counter does not know that of the CPU
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops()) // 2  # a multiply-add counts as two


def latencies(
    model: Model,
    *,
    batch_size: int,
    repeats: int = 15,
    guidance: float = 1.0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> CostTable:
    """Milliseconds per image, the median of `repeats`, of batches on the model's device.

    The widths take turns, so that a machine that slows down does so for all of them.

    Args: progress: wraps the rounds.
    Raises: ConfigError: the model is not slimmable, or numbers below 1.
    """
    require_slimmable(model)
    if min(batch_size, repeats) < 1:
        raise ConfigError(f"batch_size and repeats must be at least 1; got {batch_size} and {repeats}.")
    call, decode = _network_call(model, batch_size, guidance), model.decode
    latents = ImageNoise(range(batch_size), model.shape)().to(model.device)
    seen: list[list[float]] = [[] for _ in model.widths]
    decoding: list[float] = []
    with torch.no_grad():
        for _ in progress(range(WARM + repeats)):
            for width, times in enumerate(seen):
                times.append(_milliseconds(partial(call, width)))
            if decode is not None:
                decoding.append(_milliseconds(lambda: decode(latents)))
    per_image = [median(times[WARM:]) / batch_size for times in seen]
    fixed = median(decoding[WARM:]) / batch_size if decoding else 0.0
    return CostTable("ms", tuple(per_image), fixed)


def _milliseconds(work: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    made = work()
    if made.is_cuda:
        torch.cuda.synchronize(made.device)
    return 1000 * (time.perf_counter() - started)


def _network_call(model: Model, batch_size: int, guidance: float) -> Callable[[int], Tensor]:
    """One evaluation of the model at a width, as sampling makes it."""
    denoiser = Denoiser(model, condition=model.condition_of(range(batch_size)), guidance=guidance)
    x_t = ImageNoise(range(batch_size), model.shape)().to(model.device)
    t = (model.schedule.t_min + model.schedule.t_max) / 2
    return lambda width: denoiser.output(x_t, t, width=width)


def require_slimmable(model: Model) -> None:
    """Raise ConfigError where the model has one width only."""
    if len(model.widths) < 2 or model.at_width is None:
        raise ConfigError(
            f"The model must have several widths, but {model.name} has {list(model.widths)}; train it with "
            "model.widths, such as [1.0, 0.75, 0.5, 0.25]."
        )
