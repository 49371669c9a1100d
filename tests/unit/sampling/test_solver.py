import math
from dataclasses import replace
from fractions import Fraction

import oracles
import pytest
import torch
from toys import predictors, small_mixture

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import EDM, DDPMTable, Flow, VPLinear
from fewstep.rng import generator
from fewstep.sampling.plan import Derivative, Scale
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve
from fewstep.sampling.solver import (
    Evaluate,
    Update,
    Values,
    coefficients,
    compile_plan,
    difference_weights,
    phi,
    scale_factor,
)

VP = VPLinear()


def exact_phi(k, z):
    """sum_j z^j / (j + k)! in rational arithmetic."""
    z, total, term = Fraction(z), Fraction(0), Fraction(1, math.factorial(k))
    for j in range(1, 120):
        total += term
        term *= z / (k + j)
    return float(total)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("z", [1e-8, 1e-3, 0.01, 0.3, 0.999, 1.001, 3.0, 10.0])
def test_phi_has_full_precision(k, z):
    for signed in (z, -z):
        # just above 1 the recursion loses a digit per order
        assert phi(k, signed) == pytest.approx(exact_phi(k, signed), rel=1e-15 * 10 ** (k - 1) + 1e-15)
        tensor = torch.tensor(signed, dtype=torch.float64)
        assert float(phi(k, tensor)) == pytest.approx(phi(k, signed), rel=1e-13)
    assert phi(k, 0.0) == 1 / math.factorial(k)


@pytest.mark.parametrize("kind, slope", [("bh1", -1 / 3), ("bh2", 1 / 6), ("none", 0.0)])
def test_named_scales_start_at_one_with_known_slopes(kind, slope):
    h = 1e-4
    assert (scale_factor(kind, None, h, "eps") - 1) / h == pytest.approx(slope, abs=1e-4)
    assert (scale_factor(kind, None, h, "x0") - 1) / h == pytest.approx(-slope, abs=1e-4)


def test_free_scales():
    assert scale_factor("linear", 0.2, 0.5, "x0") == scale_factor("linear", 0.2, 0.5, "eps") == 1.1
    assert scale_factor("const", 0.7, 0.5, "x0") == 0.7


def test_difference_weights_are_exact_for_polynomials():
    distances = [-1.0, -2.5, 1.0]
    for degree in range(4):
        differences = [r**degree - 0.0**degree for r in distances]
        for k in (1, 2, 3):
            estimate = sum(w * d for w, d in zip(difference_weights(distances, k), differences, strict=True))
            assert estimate == pytest.approx(math.factorial(k) if degree == k else 0.0, abs=1e-12)


@pytest.mark.parametrize("schedule", [VP, DDPMTable.linear(), EDM(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["dpmpp-3m-exact", "unipc-3", "unipc-3-bh1-noise", "dpm-solver-3s", "heun"])
def test_weights_of_every_step_add_up_to_those_of_ddim(name, schedule):
    plan = PRESETS[name](schedule, 7)
    for step, (update, corrected) in zip(plan.steps, coefficients(plan, schedule), strict=True):
        start, end = plan.nodes[step.start], plan.nodes[step.end]
        h = end.lambda_ - start.lambda_
        ddim = (
            float(schedule.alpha(end.t)) * -math.expm1(-h)
            if step.pred == "x0"
            else -float(schedule.sigma(end.t)) * math.expm1(h)
        )
        for numbers in filter(None, (update, corrected)):
            scale = max(1.0, *(abs(weight) for weight in numbers.c.values()))
            assert sum(numbers.c.values()) == pytest.approx(ddim, abs=1e-10 * scale)


def test_program_frees_tensors_after_their_last_use():
    compiled = compile_plan(PRESETS["dpmpp-2m"](VP, 8), VP)
    alive, most = {("x", 0)}, 0
    for operation in compiled.operations:
        if isinstance(operation, Evaluate):
            alive |= {read.key for read in operation.reads}
        else:
            assert {key for key, _ in operation.terms} <= alive
            alive.add(("x", operation.end))
        most = max(most, len(alive))
        alive -= set(operation.release)
    assert alive == {("x", 8)}
    # two predictions, the state and the new state
    assert most == 4


def test_reading_costs_nothing_where_the_output_is_what_the_steps_use():
    plan = PRESETS["dpmpp-2m"](VP, 3)
    reads = [
        read
        for operation in compile_plan(plan, VP, "x0").operations
        if isinstance(operation, Evaluate)
        for read in operation.reads
    ]
    assert [(read.key, read.of_x, read.of_output) for read in reads] == [
        (("x0", node), 0.0, 1.0) for node in range(3)
    ]


def test_order_one_step_to_clean_data_returns_x0():
    for pred in ("x0", "eps"):
        plan = PRESETS["ddim"](EDM(), 3, to_zero=True).with_step(2, pred=pred)
        last = [
            operation
            for operation in compile_plan(plan, EDM(), pred).operations
            if isinstance(operation, Update)
        ][-1]
        if pred == "x0":
            assert last.terms == ((("x0", 2), 1.0),)
        else:
            (x_key, x_weight), (eps_key, eps_weight) = last.terms
            assert (x_key, x_weight, eps_key) == (("x", 2), 1.0, ("eps", 2))
            assert eps_weight == pytest.approx(-plan.nodes[2].t)


@pytest.mark.parametrize("mode", ["pseudo", "implicit"])
@pytest.mark.parametrize("first", ["net", "afs_zero", "afs_mean"])
def test_compiled_plan_equals_the_literal_one(mode, first):
    model = small_mixture().model(VP)
    mean = torch.tensor([0.1, -0.1, 0.2], dtype=torch.float64)
    plan = PRESETS["unipc-3"](VP, 6).with_node(0, eval=first).with_node(2, eps_scale=1.1)
    plan = replace(
        plan,
        steps=tuple(
            replace(step, corr=step.corr and replace(step.corr, mode=mode), pred=("x0", "eps")[i % 2])
            for i, step in enumerate(plan.steps)
        ),
    )
    x = torch.randn(4, 3, generator=generator(0), dtype=torch.float64)
    expected, calls = oracles.run_plan(plan.to_json(), predictors(model)[0], VP, x, mean)
    torch.testing.assert_close(solve(model, plan, x, data_mean=mean), expected, rtol=1e-9, atol=1e-9)
    assert calls == plan.nfe


def test_compiled_coefficients_are_the_plan_without_this_program():
    """Running x = A x + sum c f by hand gives the same samples."""
    model = small_mixture().model(VP)
    _, x0_of = predictors(model)
    plan = PRESETS["dpmpp-3m"](VP, 6)
    x = start = torch.randn(4, 3, generator=generator(0), dtype=torch.float64)
    history = []
    for node, step in zip(plan.nodes, compile_plan(plan, VP).to_json()["steps"], strict=False):
        history.append(x0_of(x, node.t))
        x = step["A"] * x + sum(weight * history[int(m)] for m, weight in step["c"].items())
    torch.testing.assert_close(x, solve(model, plan, start), rtol=1e-10, atol=1e-10)


# Gradients


def tunable():
    plan = PRESETS["unipc-3"](VP, 4)
    return plan.with_step(1, deriv=(Derivative((0,), Scale("linear", 0.1)),)).with_step(
        2, deriv=(Derivative((1, 0), Scale("const", 0.9)), Derivative((1, 0)))
    )


def flat(plan, schedule, values):
    return torch.stack(
        [
            torch.as_tensor(number, dtype=torch.float64)
            for pair in coefficients(plan, schedule, values)
            for numbers in filter(None, pair)
            for number in (numbers.A, *numbers.c.values(), numbers.noise_std)
        ]
    )


@pytest.mark.parametrize("schedule", [VP, EDM(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("which", ["tunable", "unipc-2-bh1-noise", "ddim-eta", "ipndm-2"])
def test_coefficients_are_differentiable(which, schedule):
    plan = (
        PRESETS[which](schedule, 4) if which != "tunable" else replace(tunable(), schedule=schedule.config())
    )
    values = Values.of(plan)
    lambdas = torch.linspace(-2.0, 2.5, 5, dtype=torch.float64, requires_grad=True)

    def numbers(lambdas, scales, raw):
        return flat(plan, schedule, replace(values, lambdas=lambdas, scales=scales, raw=raw))

    assert torch.autograd.gradcheck(
        numbers, (lambdas, values.scales.requires_grad_(), values.raw.requires_grad_()), atol=1e-6
    )


@pytest.mark.parametrize("to_zero", [False, True])
def test_gradients_reach_every_value_through_the_sampler(to_zero):
    model = small_mixture().model(VP)
    x = torch.randn(4, 3, generator=generator(0), dtype=torch.float64)
    plan = PRESETS["unipc-2"](VP, 5, to_zero=to_zero)
    plan = plan.with_step(1, deriv=(Derivative((0,), Scale("linear", 0.1)),))
    values = Values.of(plan)
    for tensor in (values.lambdas, values.scales):
        tensor.requires_grad_()
    solve(model, plan, x, values=values).square().sum().backward()
    assert values.lambdas.grad.isfinite().all() and values.scales.grad.isfinite().all()

    def loss(i, change):
        lambdas = values.lambdas.detach().clone()
        lambdas[i] += change
        return float(solve(model, plan, x, values=replace(Values.of(plan), lambdas=lambdas)).square().sum())

    for i in (1, 2, 3):
        slope = (loss(i, 1e-6) - loss(i, -1e-6)) / 2e-6
        assert float(values.lambdas.grad[i]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_values_put_into_a_plan_change_what_runs():
    model = small_mixture().model(VP)
    x = torch.randn(4, 3, generator=generator(0), dtype=torch.float64)
    plan = tunable()
    values = Values.of(plan)
    values.lambdas[1:-1] += 0.05
    values.scales[:] += 0.01
    moved = values.put_into(plan, VP)
    torch.testing.assert_close(
        solve(model, moved, x), solve(model, plan, x, values=values), rtol=1e-9, atol=1e-9
    )
    with pytest.raises(ConfigError, match="must exceed"):
        replace(values, lambdas=values.lambdas.flip(0)).put_into(plan, VP)


# Refusals


def test_plan_for_another_schedule_is_refused_unless_forced():
    plan = PRESETS["dpmpp-2m"](VP, 5)
    with pytest.raises(ConfigError, match="The plan is for the schedule"):
        compile_plan(plan, DDPMTable.linear())
    forced = compile_plan(plan, DDPMTable.linear(), force=True)
    lambdas = DDPMTable.linear().lambda_(
        torch.tensor([op.t for op in forced.operations if isinstance(op, Evaluate)], dtype=torch.float64)
    )
    torch.testing.assert_close(
        lambdas, torch.tensor([n.lambda_ for n in plan.nodes[:-1]], dtype=torch.float64)
    )
    with pytest.raises(ConfigError, match="t_cond belongs to another schedule"):
        compile_plan(plan.with_node(1, t_cond=0.5), DDPMTable.linear(), force=True)


def test_node_must_be_where_its_time_says():
    plan = PRESETS["dpmpp-2m"](VP, 5)
    with pytest.raises(ConfigError, match=r"nodes\[1\].t must be the time of its lambda"):
        compile_plan(plan.with_node(1, t=0.9), VP)


def test_network_is_not_asked_outside_its_range():
    schedule = EDM(0.01, 10.0)
    plan = PRESETS["ddim"](EDM(0.002, 80.0), 5)
    with pytest.raises(
        ConfigError, match=r"nodes\[0\].t must lie within the model's range \[0.01, 10\]; got 80"
    ):
        compile_plan(plan, schedule, force=True)
