import itertools

import numpy as np
import pytest
import torch
from toys import reference_mixture

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import EDM, VPLinear
from fewstep.methods.s3.gits import best_path, step_costs
from fewstep.methods.s3.teacher import TRAJECTORY_NOISES, TRAJECTORY_STEPS, make_teacher
from fewstep.rng import generator
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task, distances

VP = VPLinear()


def random_costs(n):
    costs = np.full((n, n), np.inf)
    above = np.triu_indices(n, 1)
    costs[above] = torch.rand(len(above[0]), generator=generator(n), dtype=torch.float64).numpy()
    return costs


def total(costs, path, compounding):
    """cost of the first step + compounding * (the rest), literally."""
    value = 0.0
    for i, j in reversed(list(itertools.pairwise(path))):
        value = costs[i, j] + compounding * value
    return value


@pytest.mark.parametrize("compounding", [0.8, 1.0, 1.15])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 5, 7])
def test_path_is_the_cheapest_of_all(n_steps, compounding):
    costs = random_costs(8)
    paths = [[0, *inner, 7] for inner in itertools.combinations(range(1, 7), n_steps - 1)]
    path = best_path(costs, n_steps, compounding=compounding)
    assert path in paths
    assert total(costs, path, compounding) == min(total(costs, p, compounding) for p in paths)


def test_path_has_fewer_steps_than_the_teacher():
    for n_steps in (0, 8):
        with pytest.raises(ConfigError, match=f"between 1 and 7, the teacher's steps; got {n_steps}"):
            best_path(random_costs(8), n_steps)


@pytest.mark.parametrize("schedule", [VP, EDM()], ids=lambda s: type(s).__name__)
def test_straight_trajectories_cost_nothing(schedule):
    """With x0_hat always the same, one DDIM step is exact between any two nodes."""
    x0, eps = (torch.randn(5, 2, generator=generator(k), dtype=torch.float64) for k in (0, 1))
    lambdas = torch.linspace(-4, 5, 6, dtype=torch.float64)
    t = schedule.t_of_lambda(lambdas)[:, None, None]
    states = schedule.alpha(t) * x0 + schedule.sigma(t) * eps
    costs = step_costs(states, x0.expand(6, 5, 2), lambdas, schedule)
    later = np.triu(np.ones((6, 6), bool), 1)
    # rounding of states up to 55, the noise of EDM at lambda = -4
    assert costs[later].max() < 1e-12
    assert np.isinf(costs[~later]).all()


def test_a_longer_step_costs_what_it_misses():
    x0 = torch.tensor([[[0.0]], [[2.0]], [[2.0]]], dtype=torch.float64)
    lambdas = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    states = torch.zeros(3, 1, 1, dtype=torch.float64)
    costs = step_costs(states, x0, lambdas, EDM())
    # x_end = sigma ratio * 0 + (1 - e^-h) x0
    assert costs[0, 1] == 0 and costs[1, 2] == pytest.approx(2 * (1 - np.exp(-1)))


SEEDS, VALIDATION = range(100, 140), range(500, 520)


@pytest.fixture(scope="module", params=[False, True], ids=["to t_min", "to zero"])
def taught(request):
    task = Task(reference_mixture().model(VP), batch_size=16)
    return task, make_teacher(task, SEEDS, VALIDATION, nfe=60, to_zero=request.param), request.param


def test_teacher_holds_solutions_of_its_seeds(taught):
    task, teacher, to_zero = taught
    assert teacher.plan.nfe == 60 and teacher.plan.to_zero == to_zero
    for seeds in (SEEDS, VALIDATION, range(103, 117), range(519, 520), [110, 111]):
        # float32, in other batches
        torch.testing.assert_close(
            teacher.solutions(seeds), task.solve(teacher.plan, seeds), rtol=1e-4, atol=1e-4
        )
    for seeds in (range(99, 101), range(139, 141), range(0, 5), range(130, 510)):
        with pytest.raises(KeyError, match=f"no solutions of the seeds {seeds[0]} to {seeds[-1]}"):
            teacher.solutions(seeds)


def test_teacher_is_exact_enough_to_compare_plans(taught):
    task, teacher, to_zero = taught
    finer = task.solve(PRESETS["unipc-3"](VP, 400, to_zero=to_zero), VALIDATION)
    # against 0.24, the error of the best preset of 5 calls
    assert distances(teacher.validation_x0, finer).mean() < 0.01


def test_teacher_books_its_calls():
    task = Task(reference_mixture().model(VP))
    make_teacher(task, SEEDS, VALIDATION, nfe=20, to_zero=False)
    assert task.calls == 20 * (len(SEEDS) + len(VALIDATION)) + TRAJECTORY_STEPS * TRAJECTORY_NOISES


def test_teacher_times_and_costs_are_of_one_trajectory(taught):
    _, teacher, _ = taught
    n = TRAJECTORY_STEPS + 1
    assert len(teacher.ts) == n and teacher.costs.shape == (n, n)
    assert (teacher.ts[0], teacher.ts[-1]) == pytest.approx((VP.t_max, VP.t_min))
    assert np.isfinite(teacher.costs[np.triu_indices(n, 1)]).all()
    # from the same node, a step twice as long misses more
    assert teacher.costs[20, 22] < teacher.costs[20, 24] < teacher.costs[20, 40]


@pytest.mark.parametrize("nfe", [2, 5, 8])
def test_grids_of_the_teacher_fit_the_presets(taught, nfe):
    task, teacher, to_zero = taught
    grid = teacher.grid(nfe, to_zero=to_zero)
    assert len(grid) == nfe + 1 - to_zero
    assert all(a > b for a, b in itertools.pairwise(grid))
    assert (grid[0], grid[-1]) == (teacher.ts[0], teacher.ts[-1])
    plan = PRESETS["unipc-3"](VP, nfe, grid=grid, to_zero=to_zero)
    assert plan.nfe == nfe and plan.to_zero == to_zero
    assert task.solve(plan, range(4)).isfinite().all()


def test_grid_is_better_than_equal_steps(taught):
    task, teacher, to_zero = taught
    errors = [
        distances(
            task.solve(PRESETS["ddim"](VP, 6, grid=grid, to_zero=to_zero), VALIDATION), teacher.validation_x0
        ).mean()
        for grid in (teacher.grid(6, to_zero=to_zero), "uniform-lambda", "uniform-t")
    ]
    assert errors[0] < min(errors[1:])
