import math

import pytest
import torch

from fewstep.checks import ConfigError
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import Flow
from fewstep.methods.lfm.bound import bound, excess_loss, largest_slope, optimal_velocity, wasserstein2
from fewstep.methods.lfm.dopri5 import dopri5
from fewstep.rng import generator
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve

M, S = 1.5, 0.3


def gaussian(z, t):
    """The best velocity for data N(M, S^2): every path ends at M + S z(1)."""
    slope = (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2)
    return slope * (z - (1 - t) * M) - M


def gaussian_model():
    def fn(x, t):
        return gaussian(x, t[:, None])

    return Model(fn, schedule=Flow(), prediction="u", shape=(2,))


def test_velocity_of_one_point_is_a_straight_line():
    point, z = torch.tensor([[2.0, -1.0]]).double(), torch.randn(5, 2, generator=generator(0)).double()
    t = torch.linspace(0.2, 1, 5).double()
    noise = (z - (1 - t)[:, None] * point) / t[:, None]
    assert torch.allclose(optimal_velocity(z, t, point), noise - point)


def test_velocity_of_many_points_is_that_of_their_distribution():
    points = M + S * torch.randn(200_000, 1, generator=generator(1)).double()
    z, t = torch.tensor([[1.2], [0.4], [2.0]]).double(), torch.tensor([0.5, 0.8, 0.6]).double()
    expected = gaussian(z, t[:, None])
    assert torch.allclose(optimal_velocity(z, t, points), expected, atol=0.02)  # 200,000 points


def test_euler_on_the_velocity_of_a_list_ends_at_one_of_its_points():
    points = torch.randn(7, 3, generator=generator(2)).double()
    z = torch.randn(40, 3, generator=generator(3)).double()
    n = 20
    for k in range(n):
        t = torch.full((40,), 1 - k / n, dtype=torch.float64)
        z = z - optimal_velocity(z, t, points) / n
    assert float(torch.cdist(z, points).min(1).values.max()) < 1e-6


def test_excess_is_nothing_for_the_best_velocity_and_known_for_a_shifted_one():
    points = torch.randn(30, 1, 2, 2, generator=generator(4))
    labels = torch.arange(30) % 3

    def velocity(shift):
        def of(z, t, label):
            rows = [
                optimal_velocity(
                    z[i : i + 1].double().flatten(1),
                    t[i : i + 1],
                    points[labels == label[i]].double().flatten(1),
                )
                for i in range(len(z))
            ]
            return torch.cat(rows).reshape(z.shape) + shift

        return of

    values = {"times": 4, "draws": 20, "t_min": 0.0, "t_max": 1.0}
    assert excess_loss(velocity(0), points, labels, **values, rng=generator(5)) < 1e-10
    assert excess_loss(velocity(0.5), points, labels, **values, rng=generator(5)) == pytest.approx(4 * 0.25)


def test_slopes_are_singular_values():
    weight = torch.randn(5, 3, generator=generator(6))

    def function(x):
        return torch.tanh(x @ weight.T)

    x = torch.randn(4, 3, generator=generator(7))
    exact = [
        torch.linalg.matrix_norm(torch.autograd.functional.jacobian(function, row), 2) for row in x.unbind()
    ]
    assert torch.allclose(
        largest_slope(function, x, iterations=60, rng=generator(8)), torch.stack(exact), rtol=1e-3
    )
    with pytest.raises(ConfigError, match="an iteration or more"):
        largest_slope(function, x, iterations=0, rng=generator(8))


def test_wasserstein_of_a_shifted_list_is_the_shift():
    a = torch.randn(20, 2, generator=generator(9))
    shifted = (a + torch.tensor([0.3, 0.4]))[torch.randperm(20, generator=generator(10))]
    assert wasserstein2(a, shifted) == pytest.approx(0.25, rel=1e-5)
    with pytest.raises(ConfigError, match="lists of one length; got 20 and 19"):
        wasserstein2(a, a[:19])


def test_bound_holds_for_a_gaussian_with_a_shifted_velocity():
    """W2 of N(M + c, S^2) to N(M, S^2) is c; a velocity that is off by c everywhere shifts the end by at most that."""
    pieces = {"reconstruction": 0.0, "decoder": 1.0, "velocity": 1.0, "excess": 0.04}
    assert bound(pieces) == pytest.approx(0.04 * math.e**3)


# Solvers on a flow whose paths are known


@pytest.mark.parametrize("preset, nfe, error", [("ddim", 64, 4e-2), ("heun", 127, 4e-3)])
def test_known_samplers_follow_the_flow(preset, nfe, error):
    model, noise = gaussian_model(), torch.randn(50, 2, generator=generator(11)).double()
    x0 = solve(model, PRESETS[preset](model.schedule, nfe, grid="uniform-t", to_zero=True), noise)
    assert float((x0 - (M + S * noise)).abs().max()) < error


def test_dopri5_follows_the_flow_and_counts_its_calls():
    calls = []
    model = gaussian_model()
    counted = Model(
        lambda x, t: calls.append(1) or model.fn(x, t), schedule=Flow(), prediction="u", shape=(2,)
    )
    noise = torch.randn(50, 2, generator=generator(11))
    x0, nfe = dopri5(counted, noise)
    # the schedule starts just below t = 1, of which x_T is taken as noise
    assert float((x0 - (M + S * noise)).abs().max()) < 5e-3
    assert nfe == len(calls) > 20


def test_ddim_on_a_flow_is_euler():
    model, x = gaussian_model(), torch.randn(6, 2, generator=generator(12)).double()
    plan = PRESETS["ddim"](model.schedule, 5, grid="uniform-t", to_zero=False)
    ts = [float(model.schedule.t_of_lambda(node.lambda_)) for node in plan.nodes]
    z = x.clone()
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        z = z + (s - t) * gaussian(z, torch.tensor(t).double())
    assert torch.allclose(solve(model, plan, x), z, atol=1e-10)


def test_shifted_times_of_a_flow_are_those_of_the_paper():
    plan = PRESETS["ddim"](Flow(), 4, grid="shifted", to_zero=True)
    ts = [float(Flow().t_of_lambda(node.lambda_)) for node in plan.nodes[:-1]]
    assert ts == pytest.approx([1, 0.75, 0.5, 0.25], abs=1e-3)
