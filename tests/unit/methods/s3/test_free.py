import math
from dataclasses import replace

import pytest
import torch
from toys import moved, reference_mixture, reference_noise, small_mixture, times

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import EDM, DDPMTable, Flow, VPLinear
from fewstep.rng import generator
from fewstep.sampling.descent import polish, trajectory_gradient
from fewstep.sampling.document import save_plan
from fewstep.sampling.free import FreePlan
from fewstep.sampling.linear import in_linear_form
from fewstep.sampling.plan import load_plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve
from fewstep.sampling.solver import compile_plan
from fewstep.sampling.task import Task, distances

VP = VPLinear()
SEEDS, VALIDATION, HELD_OUT = range(64), range(1000, 1064), range(2000, 2256)


class Mixture:
    """The reference mixture with fine solutions of its three sets of seeds."""

    def __init__(self, to_zero):
        self.task = Task(reference_mixture().model(VP), batch_size=256)
        fine = PRESETS["unipc-3"](VP, 60, to_zero=to_zero)
        self.solutions = {seeds: self.task.solve(fine, seeds) for seeds in (SEEDS, VALIDATION, HELD_OUT)}
        self.gradient = trajectory_gradient(self.task, lambda x0, _: distances(x0, self.solutions[SEEDS]))

    def error(self, plan, seeds=VALIDATION):
        return float(distances(self.task.solve(plan, seeds), self.solutions[seeds]).mean())

    def polish(self, free, iterations, **changes):
        arguments = {"gradient": self.gradient, "validate": self.error} | changes
        return polish(free, seeds=lambda i: SEEDS, iterations=iterations, **arguments)


@pytest.fixture(scope="module", params=[False, True], ids=["to t_min", "to zero"])
def any_mixture(request):
    return Mixture(request.param), request.param


@pytest.fixture(scope="module")
def mixture():
    return Mixture(False)


# What moves


@pytest.mark.parametrize("schedule", [VP, EDM(), DDPMTable.linear(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["unipc-3", "unipc-2-noise", "ipndm-3", "dpm-solver-3s"])
def test_before_it_moves_a_free_plan_is_its_origin(name, schedule):
    model = small_mixture().model(schedule)
    x = schedule.prior_std * torch.randn(4, 3, generator=generator(3), dtype=torch.float64)
    for to_zero in (False, True):
        plan = PRESETS[name](schedule, 5, to_zero=to_zero)
        made = FreePlan(plan, schedule).plan()
        # float64; Flow's noise form divides by an alpha of 1e-3
        torch.testing.assert_close(solve(model, made, x), solve(model, plan, x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("name", ["dpmpp-2m", "dpmpp-3m", "unipc-3", "unipc-2-bh1-noise"])
def test_a_solver_keeps_its_order_while_its_grid_moves(name, to_zero):
    plan = PRESETS[name](VP, 5, to_zero=to_zero)
    free = FreePlan(plan, VP)
    with torch.no_grad():
        free.gaps += torch.linspace(-0.3, 0.4, len(free.gaps), dtype=torch.float64)
    made = free.plan()
    assert max(abs(a - b) for a, b in zip(times(made)[1:4], times(plan)[1:4], strict=True)) > 1e-3
    elsewhere = moved(plan, VP, times(made))
    model, x = small_mixture().model(VP), torch.randn(4, 3, generator=generator(3), dtype=torch.float64)
    # the times went through the log-SNR and back
    torch.testing.assert_close(solve(model, made, x), solve(model, elsewhere, x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", [VP, EDM(), DDPMTable.linear()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("to_zero", [False, True])
def test_nodes_stay_within_the_range_of_the_network(schedule, to_zero):
    plan = PRESETS["unipc-2"](schedule, 5, to_zero=to_zero)
    for seed in range(20):
        free = FreePlan(plan, schedule)
        with torch.no_grad():
            free.gaps += 2 * torch.randn(len(free.gaps), generator=generator(seed), dtype=torch.float64)
        try:
            made = free.plan()
        except ConfigError:  # two of the nodes have come too close
            continue
        ts = times(made)
        assert ts[0] == schedule.t_max and all(a > b for a, b in zip(ts[:-1], ts[1:], strict=True))
        assert schedule.t_min * (1 - 1e-9) <= ts[-2] if to_zero else ts[-1] == pytest.approx(schedule.t_min)
        compile_plan(made, schedule)  # refuses nodes out of range


def test_all_numbers_have_slopes():
    free = FreePlan(PRESETS["unipc-2"](VP, 4, to_zero=True), VP)
    values = free.values()
    (values.lambdas[:-1].square().sum() + values.raw.square().sum()).backward()
    assert all((parameter.grad[parameter.grad.isfinite()] != 0).any() for parameter in free.parameters())
    # weights of evaluations that are still to come do not exist
    assert torch.equal(free.of_x0.grad, free.of_x0.grad.tril())
    assert all(parameter.grad.isfinite().all() for parameter in free.parameters())


def test_shifts_are_in_units_of_the_first_order_weight():
    """A shift s of the newest weight adds s times DDIM's, and a shift of the state's factor multiplies it."""
    plan = PRESETS["ddim"](VP, 4)
    free = FreePlan(plan, VP)
    with torch.no_grad():
        free.of_x0[2, 2], free.of_x0[2, 0], free.of_state[2] = 0.1, -0.2, 0.03
    before, after = in_linear_form(plan, VP).steps[2].raw, free.plan().steps[2].raw
    own = dict(before.c)[2]
    found = [after.A / before.A, *(weight / own for _, weight in after.c)]
    assert found == pytest.approx([1.03, -0.2, 0.0, 1.1], abs=1e-12)


def test_implicit_correctors_cannot_be_freed():
    with pytest.raises(ConfigError, match="evaluates a node twice"):
        FreePlan(PRESETS["heun"](VP, 5), VP)


# Descent


def test_polish_beats_the_best_preset_on_unseen_noises(mixture):
    """The best known solver on three grids at 5 calls, on the mixture of a published table of its own."""
    known = [
        PRESETS[name](VP, 5, grid=grid)
        for name in ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3", "unipc-3-bh1-noise")
        for grid in ("uniform-lambda", "uniform-t", "quadratic-t")
    ]
    errors = [mixture.error(plan, HELD_OUT) for plan in known]
    best = known[errors.index(min(errors))]
    free = FreePlan(best, VP)
    seen = mixture.polish(free, 80)
    polished = free.plan()
    assert mixture.error(polished, HELD_OUT) < 0.6 * min(errors)
    assert polished.nfe == 5 and polished.hash != best.hash
    assert [point.iteration for point in seen] == [0, 13, 26, 39, 52, 65, 78, 80]
    assert seen[0].loss is None and seen[0].validation == pytest.approx(mixture.error(best), rel=1e-5)
    # what it is left at is the best it saw
    assert mixture.error(polished) == pytest.approx(min(point.validation for point in seen), rel=1e-6)


@pytest.mark.parametrize("lr, iterations", [(0.03, 1), (0.03, 10), (3.0, 12)])
def test_polish_is_never_worse_than_its_start(any_mixture, lr, iterations):
    mixture, to_zero = any_mixture
    start = PRESETS["unipc-3"](VP, 5, grid="quadratic-t", to_zero=to_zero)
    free = FreePlan(start, VP)
    mixture.polish(free, iterations, lr=lr)
    made = free.plan()
    # float32 images of one plan in two forms
    assert mixture.error(made) <= mixture.error(start) * (1 + 1e-5)
    if to_zero:
        assert VP.t_min <= made.nodes[-2].t < made.nodes[-3].t and made.to_zero
    else:
        assert made.nodes[-1].t == pytest.approx(VP.t_min)


def test_polish_goes_on_from_where_it_is(mixture):
    free = FreePlan(PRESETS["unipc-3"](VP, 5, grid="quadratic-t"), VP)
    mixture.polish(free, 20)
    first = free.plan()
    seen = mixture.polish(free, 20, lr=3.0)  # too large a step to be of use
    assert seen[0].validation == pytest.approx(mixture.error(first), rel=1e-6)
    assert mixture.error(free.plan()) <= mixture.error(first) * (1 + 1e-6)


def test_no_iterations_leave_the_start(any_mixture):
    mixture, to_zero = any_mixture
    start = PRESETS["unipc-3"](VP, 5, grid="quadratic-t", to_zero=to_zero)
    free = FreePlan(start, VP)
    assert len(mixture.polish(free, 0)) == 1
    assert mixture.error(free.plan()) == pytest.approx(mixture.error(start), rel=1e-5)


def raising(plan, values, seeds):
    raise DataError("the state is not finite")


def not_a_number(plan, values, seeds):
    return math.nan


def infinite_slopes(plan, values, seeds):
    values.raw.grad = torch.full_like(values.raw, math.inf)
    return 1.0


@pytest.mark.parametrize("broken", [raising, not_a_number, infinite_slopes])
def test_a_broken_gradient_leaves_the_start(mixture, broken):
    start = PRESETS["unipc-3"](VP, 5, grid="quadratic-t")
    free = FreePlan(start, VP)
    seen = mixture.polish(free, 6, gradient=broken)
    assert free.plan() == replace(in_linear_form(start, VP), provenance={})
    assert len(seen) == 1


def test_a_gradient_that_breaks_now_and_then_is_survived(mixture):
    calls = iter(range(1000))

    def gradient(plan, values, seeds):
        bad = {3: raising, 5: not_a_number, 8: infinite_slopes}
        return bad.get(next(calls), mixture.gradient)(plan, values, seeds)

    start = PRESETS["unipc-3"](VP, 5, grid="quadratic-t")
    free = FreePlan(start, VP)
    mixture.polish(free, 24, gradient=gradient)
    assert mixture.error(free.plan()) < 0.9 * mixture.error(start)


def test_a_start_that_cannot_be_validated_is_worse_than_anything(mixture):
    start = PRESETS["unipc-3"](VP, 5, grid="quadratic-t")
    free = FreePlan(start, VP)

    def validate(plan):
        if plan.steps == in_linear_form(start, VP).steps:
            raise DataError("the state is not finite")
        return mixture.error(plan)

    seen = mixture.polish(free, 4, validate=validate)
    assert seen[0].validation == math.inf and math.isfinite(mixture.error(free.plan()))
    assert free.plan().steps != in_linear_form(start, VP).steps


def test_progress_sees_every_iteration(mixture):
    seen = []
    free = FreePlan(PRESETS["ddim"](VP, 3), VP)
    mixture.polish(free, 4, progress=lambda items: [seen.append(i) or i for i in items])
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("to_zero", [False, True])
def test_a_polished_plan_travels_as_a_file(tmp_path, to_zero):
    mixture = Mixture(to_zero)
    free = FreePlan(PRESETS["unipc-3"](VP, 5, to_zero=to_zero), VP)
    mixture.polish(free, 12, lr=0.1)
    made = free.plan()
    save_plan(made, tmp_path / "plan.json")
    read = load_plan(tmp_path / "plan.json")
    assert read == made and read.hash == made.hash
    model, x = mixture.task.model, reference_noise(4)
    assert torch.equal(solve(model, read, x), solve(model, made, x))
