"""Random plans: files, compilation and execution agree with one another, and with a literal reader."""

import json
import sys
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import EDM, Flow, VPLinear
from fewstep.rng import generator
from fewstep.sampling.document import save_plan
from fewstep.sampling.plan import (
    Corrector,
    Derivative,
    Node,
    Plan,
    Raw,
    Scale,
    Step,
    load_plan,
    plan_from_json,
)
from fewstep.sampling.sample import Costs, solve
from fewstep.sampling.solver import Values, coefficients

sys.path.insert(0, str(Path(__file__).parents[1]))
import oracles  # noqa: E402

SCHEDULES = st.sampled_from([VPLinear(), EDM(), Flow()])
MEAN = torch.tensor([0.1, -0.2], dtype=torch.float64)
MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]).double(),
    torch.tensor([[0.5, 0.1], [-0.4, 0.3]]).double(),
    torch.tensor([0.2, 0.4]).double(),
)

numbers = st.floats(-0.5, 0.5)
scales = st.one_of(
    st.sampled_from([Scale("none"), Scale("bh1"), Scale("bh2")]),
    st.builds(Scale, st.just("linear"), numbers),
    st.builds(Scale, st.just("const"), numbers),
)


@st.composite
def derivatives(draw, usable, most):
    """Estimates of up to `most` derivatives, each from enough of the usable nodes."""
    count = draw(st.integers(0, min(most, len(usable))))
    return tuple(
        Derivative(
            tuple(draw(st.lists(st.sampled_from(usable), min_size=k, max_size=len(usable), unique=True))),
            draw(scales),
        )
        for k in range(1, count + 1)
    )


@st.composite
def steps(draw, i, last, taylor_only):
    start = draw(st.sampled_from([i, i, i, draw(st.integers(0, i))]))
    pred = draw(st.sampled_from(["x0", "eps"]))
    kind = "taylor" if taylor_only else draw(st.sampled_from(["taylor", "taylor", "raw", "eta"]))
    if kind == "raw":
        nodes = draw(st.lists(st.integers(0, i), min_size=1, unique=True))
        weights = tuple((m, draw(numbers)) for m in sorted(nodes))
        return Step(start, i + 1, pred, raw=Raw(draw(numbers), weights))
    if kind == "eta":
        return Step(start, i + 1, pred, eta=draw(st.floats(0, 1)))
    deriv = draw(derivatives([m for m in range(i + 1) if m != start], 3))
    corr = None
    if not last and draw(st.booleans()):
        usable = [m for m in range(i + 2) if m != start]
        corr = Corrector(draw(st.sampled_from(["pseudo", "implicit"])), draw(derivatives(usable, 3)))
    return Step(start, i + 1, pred, deriv, corr=corr)


@st.composite
def plans(draw, taylor_only=False):
    """Valid plans of 1 to 5 steps; with `taylor_only` as a literal reader understands them."""
    schedule = draw(SCHEDULES)
    n_steps = draw(st.integers(1, 5))
    # gaps of one size: derivative estimates from nodes of very unequal distance amplify rounding
    gaps = draw(st.lists(st.floats(0.3, 1.0), min_size=n_steps, max_size=n_steps))
    lambdas = [-2.0]
    for gap in gaps:
        lambdas.append(lambdas[-1] + gap)
    nodes = tuple(
        Node(
            float(schedule.t_of_lambda(value)),
            value,
            eval="none"
            if i == n_steps
            else draw(st.sampled_from(["net", "afs_zero", "afs_mean"]))
            if i == 0
            else "net",
            t_cond=None if taylor_only else draw(st.none() | st.floats(0.1, 0.9)),
            eps_scale=draw(st.sampled_from([1.0, 0.9, 1.05])) if i < n_steps else 1.0,
            quant=None if taylor_only else draw(st.none() | st.just("w4a8")),
            width=None if taylor_only else draw(st.none() | st.integers(0, 3)),
        )
        for i, value in enumerate(lambdas)
    )
    return Plan(
        schedule.config(),
        nodes,
        tuple(draw(steps(i, i == n_steps - 1, taylor_only)) for i in range(n_steps)),
        name=draw(st.text(st.characters(categories="LNPS", exclude_characters="/\\."), max_size=5)),
        guidance=None if taylor_only else draw(st.none() | st.floats(1, 5)),
        skip_scale=None if taylor_only else draw(st.none() | st.just((1.0, 0.9))),
    ), schedule


@given(plans())
@settings(max_examples=60, deadline=None)
def test_plans_survive_json_exactly(tmp_path_factory, drawn):
    plan, _ = drawn
    again = plan_from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False)))
    assert again == plan and again.hash == plan.hash and again.nfe == plan.nfe
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    save_plan(plan, path)
    assert load_plan(path) == plan


@given(plans())
@settings(max_examples=40, deadline=None)
def test_values_go_out_and_back(drawn):
    plan, schedule = drawn
    assert Values.of(plan).put_into(plan, schedule) == plan


@given(plans(taylor_only=True))
@settings(max_examples=60, deadline=None)
def test_compiled_plans_do_what_the_file_says(drawn):
    plan, schedule = drawn
    x = torch.randn(3, 2, generator=generator(0), dtype=torch.float64)

    def eps_of(x, t):
        return MIXTURE.eps(x, torch.full((len(x),), float(t), dtype=torch.float64), schedule)

    expected, calls = oracles.run_plan(plan.to_json(), eps_of, schedule, x, MEAN)
    costs = Costs()
    actual = solve(MIXTURE.model(schedule), plan, x, data_mean=MEAN, costs=costs)
    # extrapolation to order 4 may amplify rounding by the size of its weights
    size = max(1.0, float(expected.abs().max()), *(_largest(plan, schedule)))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10 * size)
    assert calls == costs.nfe == plan.nfe


def _largest(plan, schedule):
    return [
        abs(weight)
        for pair in coefficients(plan, schedule)
        for c in filter(None, pair)
        for weight in c.c.values()
    ]


@given(plans(taylor_only=True))
@settings(max_examples=40, deadline=None)
def test_constant_data_is_reached_whatever_the_plan(drawn):
    """x0_hat never changes, so every difference is 0 and every step is DDIM, which is exact."""
    plan, schedule = drawn
    for i in range(len(plan.nodes) - 1):
        plan = plan.with_node(i, eval="net", eps_scale=1.0)
    model = Model(lambda x, t: MEAN.expand_as(x), schedule=schedule, prediction="x0", shape=(2,))
    x = torch.randn(3, 2, generator=generator(0), dtype=torch.float64)
    first, last = plan.nodes[0].t, plan.nodes[-1].t
    eps = (x - schedule.alpha(first) * MEAN) / schedule.sigma(first)
    size = max(1.0, *_largest(plan, schedule))
    expected = schedule.alpha(last) * MEAN + schedule.sigma(last) * eps
    torch.testing.assert_close(solve(model, plan, x), expected, rtol=1e-10, atol=1e-12 * size**2)
