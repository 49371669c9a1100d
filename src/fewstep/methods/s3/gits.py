"""Grids by dynamic programming over the teacher's trajectory, GITS [chen2024gits, Alg. 1]."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import Schedule
from fewstep.sampling.solver import Points, first_order

COMPOUNDING = 1.15  # weight of what comes later, the authors' choice for CIFAR-10


def step_costs(states: Tensor, x0: Tensor, lambdas: Tensor, schedule: Schedule) -> NDArray[np.float64]:
    """Mean distance between the teacher at node j and one DDIM step from the teacher at node i, for i < j.

    Args: states: teacher's states at its nodes, (T, B, ...). x0: its predictions there. lambdas: (T,), finite.
    Returns: (T, T), infinite where j <= i.
    """
    points = Points.of(schedule, lambdas)
    n = len(lambdas)
    costs = np.full((n, n), np.inf)
    for i in range(n):
        for j in range(i + 1, n):
            A, c = first_order(points, i, j, "x0")
            off = A * states[i] + c * x0[i] - states[j]
            costs[i, j] = float(off.flatten(1).norm(dim=1).mean())
    return costs


def best_path(costs: NDArray[np.float64], n_steps: int, *, compounding: float = COMPOUNDING) -> list[int]:
    """Nodes from the first to the last in n_steps, least in cost(first step) + compounding * (the rest).
    Raises: ConfigError: there are fewer nodes than that.
    """
    n = len(costs)
    if not 1 <= n_steps < n:
        raise ConfigError(f"n_steps must lie between 1 and {n - 1}, the teacher's steps; got {n_steps}.")
    value = costs[:, -1].copy()
    following = [np.full(n, n - 1)]
    for _ in range(n_steps - 1):
        total = costs + compounding * value[None, :]
        following.append(np.argmin(total, axis=1))
        value = total[np.arange(n), following[-1]]
    path = [0]
    for choice in reversed(following):
        path.append(int(choice[path[-1]]))
    return path
