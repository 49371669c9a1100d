import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import small_mixture

from fewstep.diffusion.condition import Classes
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import VPLinear
from fewstep.metrics.frechet import frechet
from fewstep.metrics.loss import FrechetLoss
from fewstep.metrics.statistics import Statistics
from fewstep.rng import ImageNoise, generator
from fewstep.sampling.descent import frechet_gradient, trajectory_gradient
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve
from fewstep.sampling.solver import Values
from fewstep.sampling.task import Task, batches, distances

VP = VPLinear()
# states are float32, and sums over images differ in order
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}


def features(n, dim, seed=0):
    rng = generator(seed, n, dim)
    mixed = torch.randn(n, dim, generator=rng, dtype=torch.float64) @ torch.randn(
        dim, dim, generator=rng, dtype=torch.float64
    )
    return mixed + 0.3 * seed


def task(**changes):
    return Task(small_mixture().model(VP), **changes)


def leaves(plan):
    values = Values.of(plan)
    return Values(*(number.clone().requires_grad_() for number in values))


# The distance


@pytest.mark.parametrize("n, dim", [(40, 6), (5, 12), (12, 12), (13, 12), (2, 3)])
@pytest.mark.parametrize("n_reference", [50, 7])
def test_loss_is_the_frechet_distance(n, dim, n_reference):
    reference = Statistics.from_features(features(n_reference, dim, 1).numpy())
    made = features(n, dim)
    expected = frechet(Statistics.from_features(made.numpy()), reference).value
    loss = FrechetLoss(reference)(made)
    assert loss.dtype == torch.float64
    # a direction without spread adds the root of its floor, 1e-6 of the largest
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n, dim", [(12, 4), (4, 9)])
def test_slope_of_the_distance(n, dim):
    loss = FrechetLoss(Statistics.from_features(features(30, dim, 1).numpy()))
    # where there are fewer images than features, the floor under a root, 1e-6 of the largest, moves with that one
    assert torch.autograd.gradcheck(loss, features(n, dim).requires_grad_(), eps=1e-6, rtol=1e-5, atol=1e-5)


def test_batches_without_spread_in_a_direction_have_finite_slopes():
    """There the root of an eigenvalue has an infinite slope."""
    rows = features(2, 4).repeat(3, 1).requires_grad_()
    loss = FrechetLoss(Statistics.from_features(features(30, 4, 1).numpy()))(rows)
    loss.backward()
    assert loss.isfinite() and rows.grad.isfinite().all() and rows.grad.abs().max() > 0.01


# The task


def test_task_solves_from_the_noise_of_the_seeds():
    plan = PRESETS["unipc-2"](VP, 5)
    x_T = ImageNoise(range(7, 19), (3,))()
    expected = solve(small_mixture().model(VP), plan, x_T)
    for batch_size in (1, 5, 100):
        asked = task(batch_size=batch_size)
        torch.testing.assert_close(asked.solve(plan, range(7, 19)), expected, **FLOAT32)
        assert asked.calls == 5 * 12


def test_task_asks_class_conditional_models_for_the_class_of_the_seed():
    seen = []

    def fn(x, t, condition):
        seen.append(condition.values["label"].tolist())
        return 0 * x + condition.values["label"][:, None]

    model = Model(fn, schedule=VP, prediction="x0", shape=(3,), conditions=Classes(2))
    plain, guided = Task(model), Task(model, guidance=2.0)
    plan = PRESETS["ddim"](VP, 2, to_zero=True)
    x0 = plain.solve(plan, [4, 5, 7])
    assert seen == [[0, 1, 1]] * 2 and x0[:, 0].tolist() == [0, 1, 1]
    # no class, 2, plus twice the way from there
    assert guided.solve(plan, [4, 5, 7])[:, 0].tolist() == [-2, 0, 0]
    assert (plain.calls, guided.calls) == (2 * 3, 4 * 3)


def test_task_decodes_latents():
    model = replace(small_mixture().model(VP), decode=lambda z: 2 * z)
    z = torch.ones(2, 3)
    assert torch.equal(Task(model).images(z), 2 * z) and torch.equal(task().images(z), z)


def test_stochastic_plans_are_solved_alike_in_any_batch():
    plan = PRESETS["ddpm"](VP, 4)
    torch.testing.assert_close(
        task(batch_size=3).solve(plan, range(8)), task().solve(plan, range(8)), **FLOAT32
    )


def test_batches_keep_the_order():
    assert [list(part) for part in batches(range(3, 8), 2)] == [[3, 4], [5, 6], [7]]


def test_distances_are_euclidean_in_float64():
    a, b = torch.zeros(2, 1, 2, 2), torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    found = distances(a, b)
    assert found.dtype == torch.float64 and found.tolist() == [6, 8]


# Gradients


def gradients(gradient, plan, seeds):
    values = leaves(plan)
    loss = gradient(plan, values, seeds)
    return loss, [number.grad for number in values if number.grad is not None and len(number)]


@pytest.mark.parametrize("name", ["dpmpp-3m", "ipndm-2"])
def test_trajectory_gradient_is_that_of_the_mean_distance(name):
    plan, seeds = PRESETS[name](VP, 5), range(10, 22)
    solutions = task().solve(PRESETS["unipc-3"](VP, 40), seeds)
    values = leaves(plan)
    expected = distances(task().solve(plan, seeds, values=values), solutions).mean()
    expected.backward()
    expected = float(expected.detach())
    own = [number.grad for number in values if number.grad is not None and len(number)]
    assert any(grad.abs().max() > 1e-3 for grad in own)
    for batch_size in (12, 5):
        gradient = trajectory_gradient(
            task(batch_size=batch_size),
            lambda x0, part: distances(x0, solutions[part[0] - 10 : part[-1] - 9]),
        )
        loss, found = gradients(gradient, plan, seeds)
        assert loss == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(found, own, **FLOAT32)


def test_trajectory_gradient_is_the_slope_of_the_error():
    """Finite differences; steps of 1e-3 keep float32's rounding of the loss, 1e-7, at 1e-4 of the slope."""
    plan, seeds = PRESETS["dpmpp-3m"](VP, 5), range(8)
    asked = task()
    solutions = asked.solve(PRESETS["unipc-3"](VP, 40), seeds)
    _, (of_lambdas, of_scales, _) = gradients(
        trajectory_gradient(asked, lambda x0, _: distances(x0, solutions)), plan, seeds
    )

    def error(kind, i, step):
        values = Values.of(plan)
        getattr(values, kind)[i] += step
        return float(distances(asked.solve(plan, seeds, values=values), solutions).mean())

    for kind, slope in (("lambdas", of_lambdas), ("scales", of_scales)):
        for i in range(1, len(slope)) if kind == "lambdas" else range(len(slope)):
            if kind == "lambdas" and i == len(slope) - 1:
                continue  # at the end of the network's range
            difference = (error(kind, i, 1e-3) - error(kind, i, -1e-3)) / 2e-3
            assert float(slope[i]) == pytest.approx(difference, rel=0.01, abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 5, 7])
def test_frechet_gradient_in_batches_is_that_of_all_images(batch_size):
    """Of 12 images in 6 features, and of 4 in as many."""
    reference = Statistics.from_features(features(40, 6, 1).numpy())

    def extract(x0):
        return torch.cat([x0, x0.square()], 1)

    plan = PRESETS["dpmpp-3m"](VP, 4)
    for seeds in (range(12), range(30, 34)):
        whole, own = gradients(frechet_gradient(task(), FrechetLoss(reference), extract), plan, seeds)
        parts, found = gradients(
            frechet_gradient(task(batch_size=batch_size), FrechetLoss(reference), extract), plan, seeds
        )
        assert parts == pytest.approx(whole, rel=1e-5)
        scale = max(float(grad.abs().max()) for grad in own)
        for a, b in zip(found, own, strict=True):
            # float32, through roots of small eigenvalues
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * scale)


def test_frechet_gradient_sees_decoded_images():
    reference = Statistics.from_features(np.random.RandomState(0).randn(30, 3))
    decoding = Task(replace(small_mixture().model(VP), decode=lambda z: 3 * z), batch_size=6)
    plan = PRESETS["ddim"](VP, 3)
    decoded, _ = gradients(frechet_gradient(decoding, FrechetLoss(reference), lambda x: x), plan, range(12))
    by_hand = FrechetLoss(reference)(3 * task().solve(plan, range(12)))
    assert decoded == pytest.approx(float(by_hand), rel=1e-5) and math.isfinite(decoded)
