"""What a network sees while a plan is followed, recorded along one run of each noise: O(K) calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.condition import Condition
from fewstep.sampling.plan import Node, Plan, network_nodes, widths_of
from fewstep.sampling.quantised import conditioning_times
from fewstep.sampling.task import Task, batches

FEWEST, FEW = 8, 32
"""Trajectories below which there is no calibration, and below which ranges are uncertain."""


@dataclass(frozen=True)
class Call:
    """The inputs of one network call of a plan, of all trajectories; with guidance of both branches.

    Attributes: x: (N, *shape). time: what the network's time embedding gets, (N,). t: conditioning timestep. width:
        index of the network's width.
    """

    x: Tensor
    time: Tensor
    condition: Condition | None
    t: float
    width: int


def record(task: Task, plan: Plan, seeds: Sequence[int]) -> list[Call]:
    """Follow a plan in floats from some noises, and keep what each of its calls is given.

    Raises: ConfigError: too few noises, or a plan that does not call the network. DataError: an input is not finite.
    """
    if len(seeds) < FEWEST:
        raise ConfigError(
            f"Calibration must follow at least {FEWEST} noises, better {FEW} or more; got {len(seeds)}; raise --noises."
        )
    model, nodes = task.model, network_nodes(plan)
    if not nodes:
        raise ConfigError(
            f"{plan.name or 'The plan'} must call the network to be quantised, but has no such node."
        )
    kept: dict[int, list[tuple[Tensor, Tensor, Condition | None]]] = {i: [] for i in nodes}
    number = {plan.nodes[i].t: i for i in nodes}

    def select(node: Node) -> Callable[..., Tensor]:
        network = model.network(node.width)

        def recorded(x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
            time = model.schedule.time_input(t).expand(len(x_t))
            kept[number[node.t]].append((x_t.clone(), time.clone(), condition))
            arguments: tuple[Any, ...] = (x_t, t) if condition is None else (x_t, t, condition)
            return network(*arguments)

        return recorded

    for part in batches(seeds, task.batch_size):
        task.solve(plan, part, select=select)
    return [
        _joined(kept[i], t, width, k)
        for k, (i, t, width) in enumerate(zip(nodes, conditioning_times(plan), widths_of(plan), strict=True))
    ]


def _joined(parts: Sequence[tuple[Tensor, Tensor, Condition | None]], t: float, width: int, k: int) -> Call:
    x, time = torch.cat([x for x, _, _ in parts]), torch.cat([time for _, time, _ in parts])
    if not bool(x.isfinite().all()):
        raise DataError(
            f"The states of a calibration must be finite, but at call {k} (t = {t:.6g}) {int((~x.isfinite()).sum())} "
            "values are not; check the plan with fewstep sample."
        )
    conditions = [condition for _, _, condition in parts if condition is not None]
    return Call(x, time, Condition.cat(conditions) if conditions else None, t, width)
