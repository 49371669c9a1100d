"""What a search measures against: fine solutions of some noises, and the costs of steps along their trajectory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.diffusion.prediction import weights
from fewstep.methods.s3.gits import best_path, step_costs
from fewstep.rng import ImageNoise
from fewstep.sampling.plan import Node, Plan
from fewstep.sampling.presets import PRESETS, Grid
from fewstep.sampling.sample import Costs, solve
from fewstep.sampling.task import Task

PRESET = "unipc-3"
TRAJECTORY_STEPS = 60  # nodes of the dynamic program, as in the authors' code [chen2024gits]
TRAJECTORY_NOISES = 16


@dataclass(frozen=True)
class Teacher:
    """Fine solutions, and what a step along the trajectory costs.

    Attributes:
        seeds: of `x0`, for searching.
        validation: seeds of `validation_x0`, for choosing among what was found.
        ts: times of the trajectory's nodes, falling.
        costs: error of one DDIM step between two of them, (T, T).
        plan: what the solutions were made with.
    """

    seeds: range
    x0: Tensor
    validation: range
    validation_x0: Tensor
    ts: tuple[float, ...]
    costs: NDArray[np.float64]
    plan: Plan

    def solutions(self, seeds: Sequence[int]) -> Tensor:
        """Of seeds that lie next to each other, all for searching or all for validation."""
        for known, x0 in ((self.seeds, self.x0), (self.validation, self.validation_x0)):
            if seeds[0] in known and seeds[-1] in known:
                return x0[seeds[0] - known[0] : seeds[-1] - known[0] + 1]
        raise KeyError(f"no solutions of the seeds {seeds[0]} to {seeds[-1]}")

    def grid(self, nfe: int, *, to_zero: bool) -> Grid:
        """Times for a preset of `nfe` calls: the cheapest path through the trajectory's nodes."""
        path = best_path(self.costs, nfe - to_zero)
        return [self.ts[i] for i in path]


def make_teacher(task: Task, seeds: range, validation: range, *, nfe: int, to_zero: bool) -> Teacher:
    """Solve by UniPC-3 in `nfe` calls on steps of equal log-SNR, which is exact for comparing plans of far fewer."""
    schedule = task.model.schedule
    plan = PRESETS[PRESET](schedule, nfe, grid="uniform-lambda", to_zero=to_zero)
    ts, costs = _trajectory_costs(task, seeds[:TRAJECTORY_NOISES])
    return Teacher(seeds, task.solve(plan, seeds), validation, task.solve(plan, validation), ts, costs, plan)


def _trajectory_costs(task: Task, seeds: Sequence[int]) -> tuple[tuple[float, ...], NDArray[np.float64]]:
    """Times and step costs along a UniPC trajectory from t_max to t_min."""
    model = task.model
    plan = PRESETS[PRESET](model.schedule, TRAJECTORY_STEPS, grid="uniform-lambda")
    states: list[Tensor] = []
    x0: list[Tensor] = []

    def keep(node: Node, x: Tensor, output: Tensor) -> None:
        read = weights(model.prediction, model.schedule, torch.tensor([node.t], dtype=torch.float64))
        states.append(x)
        x0.append(float(read.x0_of_x) * x + float(read.x0_of_output) * output)

    x_T = model.schedule.prior_std * ImageNoise(seeds, model.shape)().to(model.device)
    condition, spent = model.condition_of(seeds), Costs()
    end = solve(model, plan, x_T, condition=condition, guidance=task.guidance, observe=keep, costs=spent)
    # no step leaves the last node, so its prediction is never used
    states.append(end)
    x0.append(end)
    lambdas = torch.tensor([node.lambda_ for node in plan.nodes], dtype=torch.float64)
    costs = step_costs(torch.stack(states), torch.stack(x0), lambdas, model.schedule)
    task.calls += spent.network_calls * len(seeds)
    return tuple(node.t for node in plan.nodes), costs
