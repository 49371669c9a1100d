"""The one sampling loop: a compiled plan calls the network and adds tensors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep._typing import Float, UInt8
from fewstep.checks import ConfigError, DataError
from fewstep.data.pixels import to_u8
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.denoiser import Denoiser, Model
from fewstep.rng import ImageNoise
from fewstep.sampling.plan import Node, Plan, network_nodes
from fewstep.sampling.region import Region
from fewstep.sampling.solver import (
    Compiled,
    Evaluate,
    Key,
    Points,
    Read,
    Scalar,
    Update,
    Values,
    compile_plan,
)

Select = Callable[[Node], Callable[..., Tensor] | None]
"""Called with the node before each network call; gives what to call there instead of the model, such as a network in
other bits, or None."""

Observe = Callable[[Node, Tensor, Tensor], None]
"""Called with node, state and raw output of each network call."""


@dataclass
class Costs:
    """What sampling has cost so far; pass one in to have it filled.

    Attributes:
        images: images made.
        nfe: network evaluations per image of the latest run.
        calls: network calls per image of the latest run; guidance needs two an evaluation.
        network_calls: calls of the network on a batch, of all runs.
        network_seconds: wall time inside the network.
    """

    images: int = 0
    nfe: int = 0
    calls: int = 0
    network_calls: int = 0
    network_seconds: float = 0.0

    def add(self, denoiser: Denoiser, images: int) -> None:
        """Add one batch."""
        self.images += images
        self.nfe, self.calls = denoiser.nfe, denoiser.calls
        self.network_calls += denoiser.calls
        self.network_seconds += denoiser.network_seconds


def solve(
    model: Model,
    plan: Plan,
    x_T: Float[Tensor, " b *shape"],
    *,
    condition: Condition | None = None,
    guidance: float | None = None,
    noise: Callable[[], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    data_mean: Tensor | None = None,
    select: Select | None = None,
    observe: Observe | None = None,
    values: Values | None = None,
    force: bool = False,
    costs: Costs | None = None,
    region: Region | None = None,
) -> Float[Tensor, " b *shape"]:
    """Run a plan from x_T to data.

    Args:
        model: what predicts.
        plan: what to run.
        x_T: state at the plan's first node, (B, *model.shape), in float32 or float64, the state's dtype.
        condition: of each image, B of them; None for the null condition, or for a model that has none.
        guidance: classifier-free guidance scale; None for the plan's own, or 1.
        noise: unit normal noise (B, *shape) at each call, for stochastic plans.
        dtype: of autocast around the network call; None for the network's own.
        data_mean: mean of the data, in the shape of one image, for plans with `afs_mean`.
        select: gets the node before each network call; needed by plans that set quant or skip_scale, unless the model
            has the integers of the plan (`Model.quantised`).
        observe: gets node, state and output of each network call.
        values: numbers to use instead of the plan's; with them the autograd graph is kept.
        force: accept a plan for other weights or another schedule.
        costs: filled with network calls and seconds.
        region: what is given of the images; the plan makes the rest.

    Returns:
        The state at the last node, (B, *model.shape).

    Raises:
        ConfigError: the plan does not fit the model, or needs an argument that is missing.
        DataError: x_T has the wrong form, or a state is not finite.
    """
    select = select or quantised_calls(model, plan)
    _check_fit(model, plan, force, noise, data_mean, select)
    _check_state(model, x_T)
    if region is not None:
        _check_region(model, plan, region, x_T)
    if guidance is None:
        guidance = 1.0 if plan.guidance is None else plan.guidance
    compiled = compile_plan(plan, model.schedule, model.prediction, values=values, force=force)
    denoiser = Denoiser(model, condition=condition, guidance=guidance, dtype=dtype)
    mean = None if data_mean is None else data_mean.to(x_T).expand_as(x_T)
    kept = None if region is None else _kept(region.to(x_T), plan, model, values, noise)
    with nullcontext() if values is not None else torch.no_grad():
        x0 = _run(compiled, denoiser, x_T, noise=noise, mean=mean, select=select, observe=observe, kept=kept)
        x0 = x0 if plan.clip is None else x0.clamp(-plan.clip, plan.clip)
    if costs is not None:
        costs.add(denoiser, len(x_T))
    return x0


def sample(
    model: Model,
    plan: Plan,
    *,
    seeds: Sequence[int],
    batch_size: int = 64,
    condition: Condition | None = None,
    guidance: float | None = None,
    dtype: torch.dtype | None = None,
    data_mean: Tensor | None = None,
    select: Select | None = None,
    force: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    costs: Costs | None = None,
    region: Region | None = None,
) -> UInt8[Tensor, " n *shape"]:
    """Make one image per seed, on the device of the model's network.

    Image i depends on seeds[i] alone. Its noise never depends on the batch; convolutions may round the last
    bit differently at other batch sizes, which shows only where a value lies between two pixel levels.

    Args:
        model: what predicts.
        plan: what to run.
        seeds: one per image.
        batch_size: images at once; a matter of memory.
        condition: of each image, len(seeds) of them, such as `model.condition_of(seeds)`; None as in `solve`.
        guidance: as in `solve`.
        dtype: as in `solve`.
        data_mean: as in `solve`.
        select: as in `solve`.
        force: as in `solve`.
        progress: wraps the iterable of batches.
        costs: as in `solve`; batches add up.
        region: as in `solve`, of len(seeds) images; what is given of them comes back as it is.

    Returns:
        uint8 (len(seeds), *model.image_shape) on the CPU; latents are decoded.

    Raises:
        ConfigError: an argument or the plan does not fit the model. DataError: a state is not finite.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1; got {batch_size}.")
    if condition is not None and len(condition) != len(seeds):
        raise ConfigError(
            f"There must be a condition for each of the {len(seeds)} seeds; got {len(condition)}."
        )
    if region is not None and len(region.x0) != len(seeds):
        raise ConfigError(
            f"There must be a region for each of the {len(seeds)} seeds; got {len(region.x0)} images."
        )
    if plan.inverse:
        raise ConfigError(f"Images are drawn by plans from noise to data; {plan.name} is an inverse.")
    std = start_std(model, plan)
    images = torch.empty(len(seeds), *model.image_shape, dtype=torch.uint8)
    for first in progress(range(0, len(seeds), batch_size)):
        rows = slice(first, first + batch_size)
        noise = ImageNoise(seeds[rows], model.shape)
        x0 = solve(
            model,
            plan,
            std * noise().to(model.device),
            condition=None if condition is None else condition[rows],
            guidance=guidance,
            noise=noise,
            dtype=dtype,
            data_mean=data_mean,
            select=select,
            force=force,
            costs=costs,
            region=None if region is None else region[rows],
        )
        if region is not None:  # plans may end short of clean data
            x0 = region[rows].to(x0).state(x0, 1.0, 0.0, None)
        images[rows] = to_u8(x0 if model.decode is None else model.decode(x0)).cpu()
    return images


def start_std(model: Model, plan: Plan) -> float:
    """Standard deviation at the first node: the prior's, scaled down where the grid starts later than t_start."""
    return model.schedule.start_std(plan.nodes[0].lambda_)


def _run(
    compiled: Compiled,
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    noise: Callable[[], Tensor] | None,
    mean: Tensor | None,
    select: Select | None,
    observe: Observe | None,
    kept: "_Kept | None",
) -> Tensor:
    """Execute the operations; tensors are kept by name and freed as the program says."""
    store: dict[Key, Tensor] = {("x", 0): x_T if kept is None else kept.state(0, x_T)}
    side_by_side = _side_by_side(compiled) if select is None and kept is None else {}
    outputs: dict[int, Tensor] = {}
    for i, operation in enumerate(compiled.operations):
        if isinstance(operation, Evaluate):
            node = compiled.plan.nodes[operation.node]
            x = store["x", operation.node]
            if node.eval == "net":
                if i in side_by_side and not denoiser.model.one_time:
                    outputs |= _call_together(denoiser, side_by_side[i], store, node.width)
                network = None if select is None else select(node)
                told = operation.t_cond if kept is None else kept.region.times(operation.t_cond)
                output: Tensor | None = outputs.pop(operation.node, None)
                if output is None:
                    output = _call(denoiser, x, operation.t, told, node.width, network)
                if observe is not None and output is not None:
                    observe(node, x, output)
            else:
                output = mean
            for read in operation.reads:
                store[read.key] = _read(read, x, output)
        else:
            x = _combine(operation, store)
            if operation.noise_std != 0 and noise is not None:
                x = x + operation.noise_std * noise().to(x)
            _check_finite(x, operation)
            store["x", operation.end] = x if kept is None else kept.state(operation.end, x)
        for key in operation.release:
            del store[key]
    return store["x", len(compiled.plan.nodes) - 1]


def _side_by_side(compiled: Compiled) -> dict[int, list[Evaluate]]:
    """Evaluations that can be one call: those that follow one another, at one width; by the number of the first."""
    groups: dict[int, list[Evaluate]] = {}
    first = -1
    nodes = compiled.plan.nodes
    for i, operation in enumerate(compiled.operations):
        if not isinstance(operation, Evaluate) or nodes[operation.node].eval != "net":
            first = -1
        elif first >= 0 and nodes[groups[first][0].node].width == nodes[operation.node].width:
            groups[first].append(operation)
        else:
            first = i
            groups[first] = [operation]
    return {i: group for i, group in groups.items() if len(group) > 1}


def _call_together(
    denoiser: Denoiser, group: Sequence[Evaluate], store: Mapping[Key, Tensor], width: int | None
) -> dict[int, Tensor]:
    """The outputs at several nodes by one call of the network, by node."""
    states = [store["x", evaluation.node] for evaluation in group]
    n = len(states[0])
    t, told = (
        torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values]).repeat_interleave(n)
        for values in ([one.t for one in group], [one.t_cond for one in group])
    )
    with nullcontext() if torch.is_grad_enabled() else torch.inference_mode():
        output = denoiser.output(torch.cat(states), t, t_cond=told, width=width, together=len(group))
    return dict(zip([evaluation.node for evaluation in group], torch.split(output, n), strict=True))


def quantised_calls(model: Model, plan: Plan) -> Select | None:
    """What a quantised plan calls at each node, where the model has the integers that it names; else None."""
    if plan.integers is None or plan.integers not in model.quantised:
        return None
    of_call = model.quantised[plan.integers]
    # times fall, so that each belongs to one node
    calls = {plan.nodes[i].t: of_call(k) for k, i in enumerate(network_nodes(plan))}
    return lambda node: calls[node.t] if node.quant is not None else None


@dataclass(frozen=True)
class _Kept:
    """A region with the amplitudes at the nodes of a plan, and the noise of its given pixels."""

    region: Region
    points: Points
    noise: Callable[[], Tensor] | None

    def state(self, node: int, x: Tensor) -> Tensor:
        return self.region.state(x, self.points.alpha[node], self.points.sigma[node], self.noise)


def _kept(
    region: Region, plan: Plan, model: Model, values: Values | None, noise: Callable[[], Tensor] | None
) -> _Kept:
    lambdas = (Values.of(plan) if values is None else values).lambdas
    return _Kept(region, Points.of(model.schedule, lambdas), noise)


def _call(
    denoiser: Denoiser,
    x: Tensor,
    t: Scalar,
    t_cond: Tensor | float,
    width: int | None,
    network: Callable[..., Tensor] | None,
) -> Tensor:
    """Call the network; where no gradient is wanted, without the bookkeeping of autograd."""
    with nullcontext() if torch.is_grad_enabled() else torch.inference_mode():
        return denoiser.output(x, t, t_cond=t_cond, width=width, network=network)


def _read(read: Read, x: Tensor, output: Tensor | None) -> Tensor:
    """The tensor of_x * x + of_output * output, of which one factor is 1."""
    if output is None or _is_zero(read.of_output):
        return x
    if _is_zero(read.of_x):
        return output
    return _add(output, x, read.of_x)


def _combine(operation: Update, store: dict[Key, Tensor]) -> Tensor:
    """The weighted sum of an update, in a fresh tensor."""
    (key, weight), *rest = operation.terms
    total = store[key] * weight
    for key, weight in rest:
        # the sum is this function's own, so it may grow in place as long as autograd does not watch
        total = (
            total.add_(store[key], alpha=weight) if isinstance(weight, float) else total + weight * store[key]
        )
    return total


def _add(a: Tensor, b: Tensor, weight: Scalar) -> Tensor:
    return torch.add(a, b, alpha=weight) if isinstance(weight, float) else a + weight * b


def _is_zero(value: Scalar) -> bool:
    return isinstance(value, float) and value == 0


def _check_finite(x: Tensor, operation: Update) -> None:
    # a sum is finite only if every element is, and needs no tensor of its own
    if not bool(x.detach().sum().isfinite()):
        raise DataError(
            f"The state must stay finite, but after step {operation.step} (node {operation.end}) it is not; "
            "check the network's weights and dtype, and that x_T is unit noise times schedule.prior_std."
        )


def check_fingerprint(model: Model, plan: Plan) -> None:
    """Raise ConfigError where the plan is for other weights."""
    if plan.fingerprint is not None and plan.fingerprint != model.fingerprint:
        raise ConfigError(
            f"The plan is for the model with fingerprint {plan.fingerprint:.16}, but {model.name} has "
            f"{model.fingerprint or 'none'!s:.16}; make the plan for this model, or sample with force."
        )


def _check_fit(
    model: Model,
    plan: Plan,
    force: bool,
    noise: Callable[[], Tensor] | None,
    data_mean: Tensor | None,
    select: Select | None,
) -> None:
    if not force:
        check_fingerprint(model, plan)
    if model.most_calls is not None and plan.nfe > model.most_calls:
        raise ConfigError(
            f"{model.name} is a generator, which makes an image in {model.most_calls} network call; the plan "
            f"{plan.name} has {plan.nfe}; take that of fewstep onecall."
        )
    if plan.stochastic and noise is None:
        raise ConfigError(
            "A plan with eta > 0 draws noise; pass noise, such as rng.ImageNoise(seeds, shape)."
        )
    if plan.nodes[0].eval == "afs_mean" and data_mean is None:
        raise ConfigError("A plan with eval afs_mean needs data_mean, the mean of the training data.")
    if plan.changes_network and select is None:
        raise ConfigError(
            "A plan that sets quant or skip_scale needs a model that can change; pass select, or a model with the "
            "plan's integers, which stand in the file beside it (fewstep.sampling.quantised.with_integers)."
        )
    for width in {node.width for node in plan.nodes}:
        model.network(width)


def _check_region(model: Model, plan: Plan, region: Region, x_T: Tensor) -> None:
    if model.decode is not None:
        raise ConfigError(
            f"A region needs a model of pixels; {model.name} is one of latents, which mix them."
        )
    if region.x0.shape != x_T.shape:
        raise ConfigError(
            f"A region must have an image for each state, {tuple(x_T.shape)}; got {tuple(region.x0.shape)}."
        )
    if not region.noised and not model.pixel_times:
        raise ConfigError(
            f"{model.name} takes one timestep per image; fine-tune it with the region-aware objective first "
            "(fewstep train --objective rad --start MODEL)."
        )
    if not region.noised and plan.changes_network:
        raise ConfigError(
            f"The plan {plan.name} changes the network for the times of its calls, which have no time per pixel; take "
            "a plan in floats."
        )


def _check_state(model: Model, x_T: Tensor) -> None:
    if x_T.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"x_T must be float32 or float64, in which the state is kept; got {x_T.dtype}; "
            "pass dtype to run the network in a shorter one."
        )
    if x_T.ndim < 2 or (model.shape and tuple(x_T.shape[1:]) != model.shape):
        raise DataError(
            f"x_T must have the shape (B, {', '.join(map(str, model.shape))}); got {tuple(x_T.shape)}."
        )
