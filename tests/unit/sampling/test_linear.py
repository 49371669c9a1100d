from dataclasses import replace

import pytest
import torch
from toys import reference_mixture, reference_noise, small_mixture

from fewstep.checks import ConfigError
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import EDM, VPLinear
from fewstep.rng import generator
from fewstep.sampling.linear import in_linear_form, linear_form
from fewstep.sampling.plan import Derivative
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve
from fewstep.sampling.solver import Values

VP = VPLinear()
STOCHASTIC = ("ddim-eta", "ddpm")
IMPLICIT = ("heun",)
# both sides are float64; extrapolation at few steps amplifies rounding a thousandfold
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def noise(n=4):
    return torch.randn(n, 3, generator=generator(3), dtype=torch.float64)


def mixture_in(prediction, schedule=VP):
    """The small mixture as a network of another prediction."""
    eps_model = small_mixture().model(schedule)

    def fn(x, t):
        alpha, sigma, eps = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None], eps_model.fn(x, t)
        x0 = (x - sigma * eps) / alpha
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]

    return replace(eps_model, fn=fn, prediction=prediction)


def run(rows, model, x, mean=0.0):
    """The rows, literally."""
    known = []
    for row in rows:
        asked = row.kind == "net"
        output = model.fn(x, torch.full((len(x),), float(row.t), dtype=torch.float64)) if asked else mean
        known.append(row.x0[0] * x + row.x0[1] * output)
        x = row.A * x + sum(weight * x0 for weight, x0 in zip(row.c, known, strict=True))
    return x


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("name", [name for name in PRESETS if name not in STOCHASTIC + IMPLICIT])
def test_linear_form_is_the_same_sampler(name, to_zero):
    model, x = reference_mixture().model(VP), reference_noise(4)
    for nfe in (5, 6):
        plan = PRESETS[name](VP, nfe, to_zero=to_zero)
        expected = solve(model, plan, x)
        torch.testing.assert_close(run(linear_form(plan, VP), model, x), expected, **CLOSE)
        raw = in_linear_form(plan, VP)
        assert raw.nfe == nfe and all(step.raw and step.pred == "x0" for step in raw.steps)
        torch.testing.assert_close(solve(model, raw, x), expected, **CLOSE)


def test_linear_form_of_a_linear_form_is_itself():
    raw = in_linear_form(PRESETS["unipc-3"](EDM(), 6, to_zero=True), EDM())
    again = in_linear_form(raw, EDM())
    for a, b in zip(raw.steps, again.steps, strict=True):
        # one more pass through the symbols
        assert [a.raw.A, *dict(a.raw.c).values()] == pytest.approx(
            [b.raw.A, *dict(b.raw.c).values()], abs=1e-12
        )


def test_rows_have_a_weight_for_each_evaluation_so_far():
    rows = linear_form(PRESETS["dpmpp-2m"](VP, 5, to_zero=True), VP)
    assert [len(row.c) for row in rows] == [1, 2, 3, 4, 5]
    assert [row.node for row in rows] == [0, 1, 2, 3, 4]
    assert rows[3].c[0] == pytest.approx(0, abs=1e-14)  # a method of two steps forgets
    # to clean data the last step is the last prediction
    assert (rows[-1].A, *rows[-1].c) == pytest.approx((0, 0, 0, 0, 0, 1), abs=1e-15)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_every_prediction_has_the_same_weights_and_its_own_reading(prediction):
    plan = PRESETS["unipc-2-noise"](VP, 5)
    model, x = mixture_in(prediction), noise()
    rows = linear_form(plan, VP, prediction)
    torch.testing.assert_close(run(rows, model, x), solve(model, plan, x), **CLOSE)
    for row, of_eps in zip(rows, linear_form(plan, VP, "eps"), strict=True):
        # the reading cancels in exact arithmetic
        assert (row.A, *row.c) == pytest.approx((of_eps.A, *of_eps.c), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", ["afs_zero", "afs_mean"])
@pytest.mark.parametrize("name", ["unipc-2", "unipc-2-noise", "dpmpp-2m"])
def test_analytic_first_steps(name, kind):
    plan = PRESETS[name](VP, 5, to_zero=True).with_node(0, eval=kind)
    model, x = small_mixture().model(VP), noise()
    mean = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64) if kind == "afs_mean" else None
    expected = solve(model, plan, x, data_mean=mean)
    rows = linear_form(plan, VP)
    assert [row.kind for row in rows] == [kind, "net", "net", "net", "net"]
    torch.testing.assert_close(run(rows, model, x, 0.0 if mean is None else mean), expected, **CLOSE)
    raw = in_linear_form(plan, VP)
    torch.testing.assert_close(solve(model, raw, x, data_mean=mean), expected, **CLOSE)


@pytest.mark.parametrize("convert_at", ["step", "tau"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_aligned_nodes(prediction, convert_at):
    plan = PRESETS["unipc-2"](VP, 5).with_node(2, t_cond=0.4, eps_scale=1.1).with_node(3, eps_scale=0.9)
    plan = replace(plan, convert_at=convert_at)
    model, x = mixture_in(prediction), noise()
    expected = solve(model, plan, x)
    rows = linear_form(plan, VP, prediction)
    assert rows[2].t == 0.4
    torch.testing.assert_close(run(rows, model, x), expected, **CLOSE)
    torch.testing.assert_close(solve(model, in_linear_form(plan, VP), x), expected, **CLOSE)


def test_what_does_not_concern_the_steps_is_kept():
    plan = replace(
        PRESETS["ddim"](VP, 3), clip=1.0, guidance=2.0, fingerprint="ab", skip_scale=(0.9,), convert_at="tau"
    )
    raw = in_linear_form(plan, VP)
    assert replace(raw, steps=plan.steps) == plan


@pytest.mark.parametrize(
    "name, fixed", [("dpmpp-3m", False), ("unipc-3-noise", False), ("unipc-2", True), ("ipndm-3", False)]
)
def test_gradients_reach_all_numbers(name, fixed):
    """Finite differences of all weights in the log-SNRs, scales and raw weights; `fixed` is a clean last node."""
    plan = PRESETS[name](VP, 4, t_start=0.8, t_end=0.01, to_zero=fixed)
    own = Values.of(plan)
    moving = slice(0, -1) if fixed else slice(None)

    def weights(lambdas, scales, raw):
        lambdas = torch.cat([lambdas, own.lambdas[-1:]]) if fixed else lambdas
        rows = linear_form(plan, VP, values=replace(own, lambdas=lambdas, scales=scales, raw=raw))
        return torch.stack([torch.as_tensor(w, dtype=torch.float64) for row in rows for w in (row.A, *row.c)])

    leaves = [own.lambdas[moving].clone(), own.scales.clone(), own.raw.clone()]
    assert torch.autograd.gradcheck(
        weights,
        [leaf.requires_grad_() for leaf in leaves],
        eps=1e-6,
        # weights up to 100, with their rounding of 1e-14 over a step of 1e-6
        rtol=1e-6,
        atol=3e-6,
    )


def test_numbers_without_gradients_are_floats():
    plan = PRESETS["unipc-2"](VP, 4)
    values = Values.of(plan)
    assert all(isinstance(w, float) for row in linear_form(plan, VP, values=values) for w in (row.A, *row.c))
    assert linear_form(plan, VP, values=values)[2].c == pytest.approx(linear_form(plan, VP)[2].c, rel=1e-9)


def test_stochastic_plans_have_no_linear_form():
    plan = PRESETS["ddpm"](VP, 4)
    for make in (linear_form, in_linear_form):
        with pytest.raises(ConfigError, match=r"draws noise has no linear form; ddpm.* has eta > 0"):
            make(plan, VP)


def test_implicit_correctors_have_rows_but_no_raw_steps():
    plan = PRESETS["heun"](VP, 5)
    model, x = small_mixture().model(VP), noise()
    rows = linear_form(plan, VP)
    assert [row.node for row in rows] == [0, 1, 1, 2, 2]
    torch.testing.assert_close(run(rows, model, x), solve(model, plan, x), **CLOSE)
    with pytest.raises(ConfigError, match=r"evaluates a node twice, .* write heun.* with pseudo correctors"):
        in_linear_form(plan, VP)


def test_constant_predictions_are_solved_exactly():
    """With x0_hat always the same, any plan of Taylor steps ends at alpha x0 + sigma eps."""
    x0, eps = noise(), torch.randn(4, 3, generator=generator(4), dtype=torch.float64)
    model = Model(lambda x, t: x0, schedule=VP, prediction="x0", shape=(3,))
    plan = PRESETS["unipc-3"](VP, 6).with_step(2, deriv=(Derivative((0,)),), corr=None)
    start, end = plan.nodes[0].t, plan.nodes[-1].t
    x = VP.alpha(start) * x0 + VP.sigma(start) * eps
    expected = VP.alpha(end) * x0 + VP.sigma(end) * eps
    torch.testing.assert_close(run(linear_form(plan, VP, "x0"), model, x), expected, **CLOSE)
