"""The path that a plan should follow: the same model from the same noise, in many small steps of second order."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.schedule import Schedule
from fewstep.sampling.plan import MIN_GAP, Node, Plan
from fewstep.sampling.presets import dpmpp_2m
from fewstep.sampling.sample import Costs, solve
from fewstep.sampling.task import Task


@dataclass(frozen=True)
class Calibration:
    """The conditioning timestep with which a network predicts best, as a function of time.

    Attributes: ts: times, falling. t_cond: conditioning timestep at each; between them it is linear in time.
    """

    ts: tuple[float, ...]
    t_cond: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.ts) != len(self.t_cond) or len(self.ts) < 2 or list(self.ts) != sorted(self.ts)[::-1]:
            raise ConfigError(
                f"A calibration needs two or more falling times and as many conditioning timesteps; "
                f"got {len(self.ts)} and {len(self.t_cond)}; make it with calibrate."
            )

    def __call__(self, t: float) -> float:
        """The conditioning timestep at time t; outside the times, moved as at the nearest."""
        rising, t_cond = self.ts[::-1], self.t_cond[::-1]
        i = min(max(bisect.bisect_right(rising, t), 1), len(rising) - 1)
        share = min(max((t - rising[i - 1]) / (rising[i] - rising[i - 1]), 0.0), 1.0)
        nearest = rising[i - 1] + share * (rising[i] - rising[i - 1])
        return t + t_cond[i - 1] + share * (t_cond[i] - t_cond[i - 1]) - nearest


@dataclass(frozen=True)
class Fine:
    """A teacher: the model at full width in `substeps` steps an interval, each of second order.

    Attributes: calibration: its conditioning timesteps, instead of its steps' times.
    """

    task: Task
    substeps: int = 8
    calibration: Calibration | None = None

    def path(self, x: Tensor, condition: Condition | None, nodes: Sequence[Node]) -> list[Tensor]:
        """The states at some nodes, those of `x` itself first, on the deterministic path through x."""
        task = self.task
        plan, places = fine_plan(task.model.schedule, nodes, self.substeps, self.calibration)
        parts: list[list[Tensor]] = []
        for first in range(0, len(x), task.batch_size):
            rows, seen, costs = slice(first, first + task.batch_size), list[Tensor](), Costs()
            with torch.no_grad():
                end = solve(
                    task.model,
                    plan,
                    x[rows],
                    condition=None if condition is None else condition[rows],
                    guidance=task.guidance,
                    observe=lambda node, state, output, seen=seen: seen.append(state),  # type: ignore[misc]
                    costs=costs,
                )
            task.calls += costs.network_calls * len(end)
            parts.append([*(seen[place] for place in places[:-1]), end])
        return [torch.cat(states) for states in zip(*parts, strict=True)]


def fine_plan(
    schedule: Schedule, nodes: Sequence[Node], substeps: int, calibration: Calibration | None = None
) -> tuple[Plan, list[int]]:
    """A plan of second order through all of some nodes, and their places in it.

    Steps have equal log-SNR within an interval; where one ends below t_min, the last goes there from t_min at once.
    """
    limit = float(schedule.lambda_(schedule.t_min))
    ts, places = [nodes[0].t], [0]
    for start, end in zip(nodes[:-1], nodes[1:], strict=True):
        stop = min(end.lambda_, limit)
        count = min(substeps, int((stop - start.lambda_) / (2 * MIN_GAP)))
        if count > 0:
            lambdas = torch.linspace(start.lambda_, stop, count + 1, dtype=torch.float64)
            inner: list[float] = schedule.t_of_lambda(lambdas).tolist()
            ts += [*inner[1:-1], end.t if stop == end.lambda_ else schedule.t_min]
        if count <= 0 or (end.lambda_ - stop > MIN_GAP):
            ts.append(end.t)
        places.append(len(ts) - 1)
    plan = dpmpp_2m(schedule, ts, lower_final=False)
    if calibration is not None:
        low, high = schedule.t_min, schedule.t_max
        conditioned = (
            replace(node, t_cond=min(max(calibration(node.t), low), high)) if node.eval == "net" else node
            for node in plan.nodes
        )
        plan = replace(plan, nodes=tuple(conditioned))
    return plan, places
