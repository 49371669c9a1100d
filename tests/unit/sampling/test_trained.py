"""Trained samplers as plans against transcriptions of their authors' code; calls side by side."""

import math
from dataclasses import replace

import oracles
import pytest
import torch
from toys import small_mixture

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Classes
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.grids import karras, uniform_lambda, uniform_t
from fewstep.diffusion.schedule import EDM, DDPMTable, VPLinear
from fewstep.rng import generator
from fewstep.sampling.document import plan_document
from fewstep.sampling.free import FreePlan
from fewstep.sampling.plan import plan_from_json
from fewstep.sampling.presets import PRESETS, dpmpp_2m, ipndm, unipc
from fewstep.sampling.sample import Costs, solve
from fewstep.sampling.solver import Values
from fewstep.sampling.trained import (
    dual_solver,
    dyweight,
    generalized_solver,
    linear_multistep,
    parallel_directions,
    plan_of,
    told_otherwise,
)

VP, TABLE = VPLinear(), DDPMTable.linear()
SIGMAS = EDM(0.02, 80.0)  # the frame, and a range that the other schedules have, too


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def frame_of(model, frame):
    """eps(x, t) and x0(x, t) of states of a frame, by the model called at the same noise level."""

    def eps_of(x, t):
        t = torch.as_tensor(t, dtype=torch.float64)
        own = model.schedule.t_of_lambda(frame.lambda_(t))
        return model.fn(model.schedule.alpha(own) / frame.alpha(t) * x, own.expand(len(x)))

    return eps_of, lambda x, t: (x - frame.sigma(t) * eps_of(x, t)) / frame.alpha(t)


def run(plan, model, frame, x, t_start, t_end):
    """The plan from a first state of the frame, to a result of the frame; after a round trip through its file."""
    schedule = model.schedule

    def scale(t):
        t = torch.as_tensor(t, dtype=torch.float64)
        return schedule.alpha(schedule.t_of_lambda(frame.lambda_(t))) / frame.alpha(t)

    again = plan_from_json(plan_document(plan))
    assert again.hash == plan.hash
    return solve(model, again, scale(t_start) * x) / scale(t_end)


@pytest.mark.parametrize("schedule", [SIGMAS, VP], ids=["edm", "vp"])
@pytest.mark.parametrize("analytic", [False, True])
@pytest.mark.parametrize("first", [1.0, 0.9])
def test_dyweight(schedule, analytic, first):
    n = 5
    ts = karras(SIGMAS, n)
    weights = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        weights[i, max(0, i - 2) : i + 1] = torch.tensor([5 / 12, -16 / 12, 23 / 12])[-(i + 1) :]
    weights += 0.05 * noise(n, n).tril()
    told = 1 + 0.1 * noise(n - analytic, seed=1)
    told[0] = first
    model = small_mixture().model(schedule)
    _, x0_of = frame_of(model, SIGMAS)
    x = 80 * noise(4, 3, seed=2)
    plan = plan_of(
        dyweight(ts, weights, told, analytic=analytic), schedule, SIGMAS, t_start=80.0, t_end=0.02, name="w"
    )
    assert plan.nfe == plan.depth == n - analytic
    expected = oracles.dyweight(x0_of, x, ts, weights, told, analytic)
    torch.testing.assert_close(run(plan, model, SIGMAS, x, 80.0, 0.02), expected, rtol=1e-9, atol=1e-9)


def directions(n, k, seed=0):
    split = torch.sigmoid(noise(n, k, seed=seed))
    near = [1 + 0.03 * noise(n, k, seed=seed + i) for i in (1, 2)]
    return split, *near, torch.softmax(noise(n, k, seed=seed + 3), 1)


@pytest.mark.parametrize("schedule", [SIGMAS, VP], ids=["edm", "vp"])
@pytest.mark.parametrize("analytic", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_parallel_directions(schedule, analytic, k):
    n, model = 3, small_mixture().model(schedule)
    ts, numbers = uniform_lambda(SIGMAS, n), directions(n, k)
    _, x0_of = frame_of(model, SIGMAS)
    x = 80 * noise(4, 3, seed=9)
    sampler = parallel_directions(ts, *numbers, analytic=analytic)
    plan = plan_of(sampler, schedule, SIGMAS, t_start=80.0, t_end=0.02, name="epd")
    assert (plan.nfe, plan.depth) == (n * (k + 1) - analytic, 2 * n - analytic)
    expected = oracles.epd(x0_of, x, ts, *numbers, analytic)
    torch.testing.assert_close(run(plan, model, SIGMAS, x, 80.0, 0.02), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model_is", [VP, EDM(), TABLE], ids=["vp", "edm", "table"])
@pytest.mark.parametrize("n, order", [(1, 1), (3, 3), (6, 4)])
def test_generalized_solver(model_is, n, order):
    """Told times before and after their own; of EDM the frame is a schedule with its noise levels."""
    frame = VP if isinstance(model_is, EDM) else model_is
    if isinstance(model_is, EDM):
        frame, model_is = VP, EDM(0.002, 200.0)
    ts = uniform_t(frame, n)
    told = -0.01 * noise(n, seed=1).abs()
    state, x0 = ([0.02 * noise(n, seed=seed + i) for i in range(order)] for seed in (10, 20))
    model = small_mixture().model(model_is)
    eps_of, _ = frame_of(model, frame)
    x, end = noise(4, 3, seed=2), float(ts[-1])
    plan = plan_of(
        generalized_solver(frame, ts, told, state, x0), model_is, frame, t_start=1.0, t_end=end, name="gs"
    )
    expected = oracles.generalized_solver(eps_of, frame, x, ts.tolist(), told, state, x0)
    torch.testing.assert_close(run(plan, model, frame, x, 1.0, end), expected, rtol=1e-9, atol=1e-9)


def test_generalized_solver_at_zero_is_the_solver_that_it_starts_from():
    ts, zeros = uniform_t(VP, 6), [torch.zeros(6, dtype=torch.float64)] * 6
    model = small_mixture().model(VP)
    plan = plan_of(
        generalized_solver(VP, ts, zeros[0], zeros, zeros), VP, VP, t_start=1.0, t_end=1e-3, name="gs"
    )
    preset = PRESETS["dpmpp-3m"](VP, 6, grid="uniform-t", lower_final=False)
    x = noise(4, 3)
    torch.testing.assert_close(solve(model, plan, x), solve(model, preset, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [EDM(), VP], ids=["edm", "vp"])
@pytest.mark.parametrize("name", ["unipc-bh1", "unipc-bh2", "ipndm", "dpmpp"])
def test_told_otherwise(schedule, name):
    ts = uniform_lambda(schedule, 6).tolist()
    lambdas = schedule.lambda_(torch.tensor(ts[:-1], dtype=torch.float64))
    told = schedule.t_of_lambda(lambdas + torch.tensor([0, 0.3, -0.4, 0.2, -0.3, 0.1]))
    told[0] = ts[0]
    model = small_mixture().model(schedule)
    eps_of, x0_of = frame_of(model, schedule)
    x = schedule.prior_std * noise(4, 3)
    if name == "ipndm":
        plan = ipndm(schedule, ts, order=4)
        expected = oracles.ld3_ipndm(eps_of, schedule, x, ts, told, 4)
    elif name == "dpmpp":
        plan = dpmpp_2m(schedule, ts, lower_final=True)
        expected = oracles.dpmpp_multistep(
            lambda x, t: x0_of(x, told[ts.index(t)]), schedule, x, ts, 2, lower_final=True
        )
    else:
        plan = unipc(schedule, ts, order=3, variant=name[-3:])
        expected = oracles.ld3_unipc(x0_of, schedule, x, ts, told, 3, name[-3:])
    made = plan_of(
        told_otherwise(plan, schedule, told), schedule, schedule, t_start=ts[0], t_end=ts[-1], name="ld3"
    )
    assert made.nfe == 6
    torch.testing.assert_close(run(made, model, schedule, x, ts[0], ts[-1]), expected, rtol=1e-9, atol=1e-9)


def test_linear_multistep():
    n, model = 5, small_mixture().model(VP)
    ts = uniform_lambda(VP, n)
    told = VP.t_of_lambda(VP.lambda_(ts[:-1]) + 0.2 * noise(n).abs())
    weights = torch.eye(n, dtype=torch.float64) + 0.2 * noise(n, n, seed=1)
    eps_of, _ = frame_of(model, VP)

    def x0_of(x, told, t):
        return (x - VP.sigma(t) * eps_of(x, told)) / VP.alpha(t)

    x = noise(4, 3, seed=2)
    plan = plan_of(linear_multistep(VP, ts, told, weights), VP, VP, t_start=1.0, t_end=1e-3, name="s4s")
    expected = oracles.s4s(x0_of, VP, x, ts, told, weights)
    torch.testing.assert_close(run(plan, model, VP, x, 1.0, 1e-3), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [VP, TABLE], ids=["vp", "table"])
@pytest.mark.parametrize("order", [1, 2])
def test_dual_solver(schedule, order):
    n, model = 4, small_mixture().model(schedule)
    ts, numbers = uniform_t(schedule, n), 0.4 * noise(n, 2, 5)
    eps_of, x0_of = frame_of(model, schedule)
    x, end = noise(4, 3, seed=2), float(ts[-1])
    plan = plan_of(
        dual_solver(schedule, ts, numbers, order=order), schedule, schedule, t_start=1.0, t_end=end, name="d"
    )
    expected = oracles.dual_solver(lambda x, t: (x0_of(x, t), eps_of(x, t)), schedule, x, ts, numbers, order)
    torch.testing.assert_close(run(plan, model, schedule, x, 1.0, end), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gamma", [-1.0, -0.3, 0.0, 0.6, 1.0])
def test_dual_solver_of_order_one_is_ddim_whatever_it_predicts(gamma):
    """Without a slope every mean of the two predictions is the same step; one step has no corrector."""
    numbers = torch.zeros(1, 2, 5, dtype=torch.float64)
    numbers[:, :, 0] = gamma
    model, x = small_mixture().model(VP), noise(4, 3)
    ts = torch.tensor([0.8, 0.3], dtype=torch.float64)
    plan = plan_of(dual_solver(VP, ts, numbers), VP, VP, t_start=0.8, t_end=0.3, name="d")
    ddim = PRESETS["ddim"](VP, 1, grid=ts.tolist())
    torch.testing.assert_close(solve(model, plan, x), solve(model, ddim, x), rtol=1e-9, atol=1e-9)


def test_free_weights_are_weights_of_sum_one_on_free_times():
    """DyWeight's identity: the sum of a row is how far its step goes."""
    n, ts = 4, karras(SIGMAS, 4)
    weights = torch.eye(n, dtype=torch.float64) + 0.05 * noise(n, n).tril()
    moved = [ts[0]]
    for i in range(n):
        moved.append(moved[-1] + weights[i].sum() * (ts[i + 1] - moved[-1]))
    one = weights / weights.sum(1, keepdim=True)
    told, model, x = torch.ones(n, dtype=torch.float64), small_mixture().model(SIGMAS), 80 * noise(4, 3)
    ends = [
        solve(
            model,
            plan_of(
                dyweight(grid, row, told, analytic=False), SIGMAS, SIGMAS, t_start=80.0, t_end=0.02, name="w"
            ),
            x,
        )
        for grid, row in ((ts, weights), (torch.stack(moved), one))
    ]
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


# Calls side by side


def side_by_side(schedule=VP):
    ts, numbers = uniform_lambda(SIGMAS, 3), directions(3, 2)
    sampler = parallel_directions(ts, *numbers, analytic=True)
    return plan_of(sampler, schedule, SIGMAS, t_start=80.0, t_end=0.02, name="epd")


def counted(model):
    """The model, and the batch of each call of its function."""
    rows = []

    def fn(x, t, *condition):
        rows.append(len(x))
        return model.fn(x, t, *condition)

    return replace(model, fn=fn), rows


def test_calls_side_by_side_are_one_call():
    model, rows = counted(small_mixture().model(VP))
    plan, costs, x = side_by_side(), Costs(), noise(4, 3)
    together = solve(model, plan, x, costs=costs)
    assert rows == [8, 4, 8, 4, 8] and (costs.nfe, costs.calls) == (8, 8) and (plan.nfe, plan.depth) == (8, 5)
    rows.clear()
    one_by_one = solve(replace(model, one_time=True), plan, x)
    assert rows == [4] * 8 and torch.equal(together, one_by_one)
    seen = []
    solve(model, plan, x, observe=lambda node, x, output: seen.append(len(x)))
    assert seen == [4] * 8


def test_conditions_and_gradients_go_with_calls_side_by_side():
    plan, x, slope = side_by_side(), noise(4, 3), torch.arange(5.0).double()

    def fn(x, t, condition):
        return x * t[:, None] + 0.1 * slope[condition.values["label"]][:, None]

    model = Model(fn, schedule=VP, shape=(3,), conditions=Classes(4))
    condition, costs, ends = model.condition_of([0, 1, 2, 3]), Costs(), []
    for made in (model, replace(model, one_time=True)):
        values = Values(*(v.requires_grad_(v.is_floating_point()) for v in Values.of(plan)))
        x0 = solve(made, plan, x, condition=condition, guidance=1.5, values=values, costs=costs)
        x0.square().sum().backward()
        ends.append((x0.detach(), values.raw.grad))
        assert (costs.nfe, costs.calls) == (8, 16)
    torch.testing.assert_close(*ends)


def test_depth_of_known_samplers_is_their_calls():
    for preset in PRESETS.values():
        for nfe in (1, 3, 5, 7):
            plan = preset(VP, nfe)
            assert plan.depth == plan.nfe == nfe
    assert PRESETS["ddim"](VP, 3).with_node(0, eval="afs_zero").depth == 2


def test_depth_stands_in_the_file_and_must_be_right():
    document = plan_document(side_by_side())
    assert (document["nfe"], document["depth"]) == (8, 5)
    with pytest.raises(ConfigError, match="depth must agree with nodes and steps, which give 5; got 8"):
        plan_from_json({**document, "depth": 8})


def test_a_trained_plan_can_be_polished():
    plan = side_by_side()
    model, x = small_mixture().model(VP), noise(4, 3)
    free = FreePlan(plan, VP)
    torch.testing.assert_close(solve(model, free.plan(), x), solve(model, plan, x), rtol=1e-9, atol=1e-9)


def test_what_is_no_plan_is_said():
    with pytest.raises(ConfigError, match="must call the network at least once"):
        plan_of(lambda eps, x: x, VP, VP, t_start=1.0, t_end=0.1, name="none")
    with pytest.raises(ConfigError, match="must be told a time with noise"):
        plan_of(lambda eps, x: eps(x, torch.tensor(math.nan)), VP, VP, t_start=1.0, t_end=0.1, name="nan")
    with pytest.raises(ConfigError, match="noise levels of 3 calls must fit between"):
        plan_of(
            lambda eps, x: eps(eps(eps(x, torch.tensor(1.0)), torch.tensor(1.0)), torch.tensor(1.0)),
            VP,
            VP,
            t_start=1.0,
            t_end=0.9999,
            name="near",
        )
