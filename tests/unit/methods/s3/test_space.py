import itertools
from dataclasses import replace

import pytest
import torch
from toys import small_mixture

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import EDM, DDPMTable, Flow, VPLinear
from fewstep.methods.s3.evolution import propose
from fewstep.methods.s3.space import Space, completed, plan_of, resized, within
from fewstep.rng import generator
from fewstep.sampling.linear import linear_form
from fewstep.sampling.plan import Corrector
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import Costs, solve

VP = VPLinear()
TAYLOR = [name for name in PRESETS if name.startswith(("ddim", "dpmpp", "unipc")) and name != "ddim-eta"]
GRIDS = ("uniform-lambda", "quadratic-t", "karras")


def noise(schedule=VP):
    return schedule.prior_std * torch.randn(4, 3, generator=generator(3), dtype=torch.float64)


def drawn(space, n, seed=0):
    rng = generator(seed, space.nfe)
    return [propose(space, [], rng=rng) for _ in range(n)]


def assert_rebuilt(space, plan, model):
    decisions = space.decisions(plan)
    assert decisions is not None
    x = noise(model.schedule)
    rebuilt = plan_of(space, decisions)
    # both float64; shares of the range are rounded once more
    torch.testing.assert_close(solve(model, rebuilt, x), solve(model, plan, x), rtol=1e-9, atol=1e-9)
    again = space.decisions(rebuilt)
    assert set(again) == set(decisions)
    for name, value in decisions.items():
        # a factor comes out of a system of equations
        assert again[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9, abs=1e-9))


@pytest.mark.parametrize(
    "name, schedule",
    [(name, VP) for name in TAYLOR]
    + [
        (name, other)
        for name in ("ddim", "dpmpp-3m", "unipc-3-noise")
        for other in (EDM(), DDPMTable.linear())
    ],
)
def test_presets_of_taylor_steps_are_points(name, schedule):
    model = small_mixture().model(schedule)
    for nfe, grid, to_zero in ((5, "quadratic-t", True), (6, "uniform-lambda", False), (5, "karras", False)):
        plan = PRESETS[name](schedule, nfe, grid=grid, to_zero=to_zero)
        assert_rebuilt(Space(schedule, nfe, to_zero=to_zero), plan, model)


@pytest.mark.parametrize(
    "name, grids",
    [
        ("deis-2", GRIDS),
        ("ipndm-2", GRIDS),
        # on other grids a derivative's factor lies beyond the range of the space
        ("deis-3", ("uniform-lambda", "karras")),
        ("ipndm-3", ("uniform-lambda", "karras")),
        ("ipndm-4", ("uniform-lambda",)),
    ],
)
def test_linear_multistep_presets_are_points(name, grids):
    for nfe, grid in itertools.product((5, 6), grids):
        space = Space(VP, nfe, to_zero=False, max_order=4)
        assert_rebuilt(space, PRESETS[name](VP, nfe, grid=grid), small_mixture().model(VP))


@pytest.mark.parametrize("to_zero", [False, True])
def test_an_analytic_first_step_adds_a_step(to_zero):
    plan = PRESETS["unipc-2"](VP, 6, to_zero=to_zero).with_node(0, eval="afs_zero")
    assert_rebuilt(Space(VP, 5, to_zero=to_zero), plan, small_mixture().model(VP))
    assert Space(VP, 5, to_zero=to_zero, analytic=False).decisions(plan) is None
    assert Space(VP, 6, to_zero=to_zero).decisions(plan) is None


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("schedule", [VP, EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_random_plans_run_and_cost_what_they_should(schedule, to_zero):
    model = small_mixture().model(schedule)
    firsts, orders = set(), set()
    for nfe in (2, 3, 5, 8):
        space = Space(schedule, nfe, to_zero=to_zero)
        for decisions in drawn(space, 12):
            plan = plan_of(space, decisions)
            costs = Costs()
            x0 = solve(model, plan, noise(schedule), costs=costs)
            assert costs.nfe == costs.network_calls == plan.nfe == nfe
            assert x0.isfinite().all()
            analytic = decisions["first_step"] == "zero"
            assert len(plan.steps) == nfe + analytic
            assert plan.to_zero == to_zero and plan.nodes[0].t == schedule.t_start
            for i, step in enumerate(plan.steps):
                points = [d.points for d in step.deriv] + (
                    [d.points for d in step.corr.deriv] if step.corr else []
                )
                # no more orders than evaluations so far, and none that has not happened
                assert step.order <= min(i + 1, space.max_order)
                assert all(0 <= p <= i + (step.corr is not None) for ps in points for p in ps)
                orders.add(step.order)
            firsts.add(analytic)
    assert firsts == {False, True} and orders == {1, 2, 3}


@pytest.mark.parametrize("to_zero", [False, True])
def test_random_plans_keep_a_constant_prediction(to_zero):
    """If x0_hat never changes, alpha x0 + sigma eps goes to alpha x0 + sigma eps, whatever orders and scales:
    the factor on the state is that on eps, and the x0s give the rest of the new alpha."""
    space = Space(VP, 6, to_zero=to_zero, max_order=4, analytic=False)
    for decisions in drawn(space, 20):
        plan = plan_of(space, decisions)
        lambdas = torch.tensor([node.lambda_ for node in plan.nodes], dtype=torch.float64)
        t = VP.t_of_lambda(lambdas)
        alpha, sigma = VP.alpha(t).tolist(), VP.sigma(t).tolist()
        for k, row in enumerate(linear_form(plan, VP)):
            # for terms of very different size
            assert row.A * sigma[k] == pytest.approx(sigma[k + 1], abs=1e-9)
            assert row.A * alpha[k] + sum(row.c) == pytest.approx(alpha[k + 1], abs=1e-9)


@pytest.mark.parametrize("to_zero", [False, True])
def test_a_search_needs_two_calls(to_zero):
    with pytest.raises(ConfigError, match="A search needs at least 2 network calls, got nfe 1"):
        Space(VP, 1, to_zero=to_zero)
    for order in (0, 5):
        with pytest.raises(ConfigError, match=f"max_order must be 1 to 4; got {order}"):
            Space(VP, 5, max_order=order)


def changed_outside():
    plan = PRESETS["unipc-2"](VP, 5)
    empty = Corrector("pseudo", ())
    return {
        "single-step": PRESETS["dpm-solver-2s"](VP, 5),
        "single-step of order 3": PRESETS["dpm-solver-3s"](VP, 5),
        "stochastic": PRESETS["ddpm"](VP, 5),
        "implicit": PRESETS["heun"](VP, 5),
        "another number of calls": PRESETS["ddim"](VP, 4),
        "more calls": PRESETS["ddim"](VP, 6),
        "another start": PRESETS["ddim"](VP, 5, t_start=0.9),
        "another end": PRESETS["ddim"](VP, 5, t_end=0.01),
        "to clean data": PRESETS["ddim"](VP, 5, to_zero=True),
        "another schedule": PRESETS["ddim"](VPLinear(0.1, 19.0), 5),
        "order 4": PRESETS["ipndm-4"](VP, 5, grid="uniform-lambda"),
        "mean of the data": PRESETS["ddim"](VP, 6).with_node(0, eval="afs_mean"),
        "conditioning time": plan.with_node(2, t_cond=0.4),
        "scaled noise": plan.with_node(2, eps_scale=1.1),
        "width": plan.with_node(2, width=1),
        "clipped": replace(plan, clip=1.0),
        "skip connections": replace(plan, skip_scale=(0.9,)),
        "empty corrector": plan.with_step(0, corr=empty),
        "start point": plan.with_step(2, start=1, deriv=(), corr=None),
    }


@pytest.mark.parametrize("what", changed_outside())
def test_other_plans_are_no_points(what):
    assert Space(VP, 5, to_zero=False).decisions(PRESETS["unipc-2"](VP, 5)) is not None
    assert Space(VP, 5, to_zero=False).decisions(changed_outside()[what]) is None


def test_nodes_that_are_too_close_are_refused():
    with pytest.raises(ConfigError, match="at least 0.001"):
        Space(EDM(1.0, 1.01), 12, to_zero=False).build(
            lambda name, allowed: 1.0 if hasattr(allowed, "low") else allowed.options[0]
        )


@pytest.mark.parametrize("to_zero", [False, True])
def test_plans_of_neighbouring_numbers_of_calls(to_zero):
    for decisions in drawn(Space(VP, 5, to_zero=to_zero, max_order=4), 10):
        own = [n.lambda_ for n in plan_of(Space(VP, 5, to_zero=to_zero, max_order=4), decisions).nodes]
        n = len(own) - 1
        for step in range(n):
            longer = completed(Space(VP, 6, to_zero=to_zero, max_order=4), resized(decisions, step, 1))
            more = [
                node.lambda_ for node in plan_of(Space(VP, 6, to_zero=to_zero, max_order=4), longer).nodes
            ]
            assert len(more) == len(own) + 1
            if step < n - to_zero and min(v for k, v in longer.items() if k.startswith("gap")) > 0.05:
                # the nodes there were, and one in the middle of the step; 1e-9 is rounding
                assert all(min(abs(lam - m) for m in more) < 1e-9 for lam in own if lam < 1e9)
            shorter = completed(Space(VP, 4, to_zero=to_zero, max_order=4), resized(decisions, step, -1))
            assert plan_of(Space(VP, 4, to_zero=to_zero, max_order=4), shorter).nfe == 4
            kept = [v for k, v in sorted(decisions.items()) if k.startswith("pred")]
            assert [shorter[f"pred_{i}"] for i in range(n - 1)] == [*kept[:step], *kept[step + 1 :]]


def test_completing_answers_what_is_missing_as_usual():
    space = Space(VP, 4, max_order=2)
    made = completed(space, {"gap_0": 2.0, "order_1": 7, "pred_1": "eps"})
    asked = {}
    space.build(lambda name, allowed: asked.setdefault(name, allowed) and made[name])
    assert set(made) == set(asked)
    assert all(within(made[name], allowed) for name, allowed in asked.items())
    assert (made["gap_0"], made["gap_1"], made["pred_1"], made["order_1"]) == (2.0, 1.0, "eps", 1)
