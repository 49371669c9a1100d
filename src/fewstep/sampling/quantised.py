"""Quantised plans: the file of integers beside a plan, and a model that can be called with them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.denoiser import Model
from fewstep.nets.integers import SUFFIX, Integers, IntegersFile, networks, require_times
from fewstep.sampling.plan import Plan, network_nodes, widths_of


def integers_path(plan: str | Path) -> Path:
    """Where the integers of a plan file stand."""
    return Path(plan).with_suffix(SUFFIX)


def with_integers(model: Model, plans: Sequence[tuple[str | Path, Plan]]) -> Model:
    """The model with the integers of those plans that name some; `sample` then runs these plans as any other.

    Args: model: the one they were quantised for. plans: files and what was read from them.
    Raises: ConfigError: integers are of another plan or model. DataError: a file of integers is missing or damaged.
    """
    found = dict(model.quantised)
    for path, plan in plans:
        if plan.integers is not None and plan.integers not in found:
            found[plan.integers] = networks(read_integers(path, plan, model), model)
    return model if len(found) == len(model.quantised) else replace(model, quantised=found)


def read_integers(path: str | Path, plan: Plan, model: Model) -> Integers:
    """The integers beside a plan file, checked against the plan and the model."""
    file = IntegersFile(integers_path(path))
    if file.plan != plan.hash:
        raise ConfigError(
            f"{file.path} belongs to the plan {file.plan:.16}, but {path} is {plan.hash:.16}; keep a plan and "
            "its integers together, or quantise again."
        )
    integers = file.of(model)
    if integers.sha256 != plan.integers:
        raise ConfigError(
            f"{file.path} must hold the integers {plan.integers or 'none'!s:.16} that {path} names, but holds "
            f"{integers.sha256:.16}; keep a plan and its integers together, or quantise again."
        )
    require_fit(integers, plan, str(path))
    return integers


def require_fit(integers: Integers, plan: Plan, where: str) -> None:
    """Raise ConfigError where a plan's calls are not those that the integers were made for."""
    require_times(integers, conditioning_times(plan), where)
    if widths_of(plan) != integers.widths:
        raise ConfigError(
            f"{where} calls the network at the widths {list(widths_of(plan))}, but its integers are for "
            f"{list(integers.widths)}; quantise the plan as it is."
        )
    if odd := {plan.nodes[i].quant for i in network_nodes(plan)} - {str(integers.bits)}:
        raise ConfigError(
            f"Every call of {where} must have the bits of its integers, {integers.bits}; got {odd.pop()}; quantise "
            "again."
        )


def conditioning_times(plan: Plan) -> list[float]:
    """The conditioning timestep of each network call, in order."""
    nodes = [plan.nodes[i] for i in network_nodes(plan)]
    return [node.t if node.t_cond is None else node.t_cond for node in nodes]


def attached(model: Model, integers: Integers) -> Model:
    """The model with these integers, which need no file."""
    call: Callable[[int], Callable[..., Tensor]] = networks(integers, model)
    return replace(model, quantised={**model.quantised, integers.sha256: call})
