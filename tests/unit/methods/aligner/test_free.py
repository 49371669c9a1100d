import pytest
import torch
from unit.methods.aligner.clocks import VP, aligned, ddim, model, net_model, task, with_all_told

from fewstep.methods.aligner.free import FreeTimes
from fewstep.metrics.loss import FrechetLoss
from fewstep.metrics.statistics import Statistics
from fewstep.sampling.descent import frechet_gradient, polish, trajectory_gradient
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve
from fewstep.sampling.task import Task, distances

SEEDS, VALIDATION = range(64), range(1000, 1128)


def solutions(seeds, to_zero=False):
    return task().solve(PRESETS["unipc-3"](VP, 60, to_zero=to_zero), seeds)


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("name", ["ddim", "unipc-3", "heun", "dpm-solver-2s", "ddpm"])
def test_before_it_moves_a_free_plan_is_its_origin(name, magnitude):
    plan = PRESETS[name](VP, 5)
    free = FreeTimes(plan, VP, magnitude=magnitude)
    assert free.plan() is plan
    if not plan.stochastic:
        told = ((free.form, free.values()), (plan, None))
        made, expected = (task().solve(one, range(4), values=v) for one, v in told)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)  # float32; times by their logarithms


def test_polish_goes_below_the_greedy_fit():
    """On noises that it has not seen; greedy times are each best for their own step only."""
    greedy = aligned(ddim(5), magnitude=True).plan
    known = {seeds: solutions(seeds) for seeds in (SEEDS, VALIDATION)}

    def error(plan):
        return float(distances(task().solve(plan, VALIDATION), known[VALIDATION]).mean())

    free = FreeTimes(greedy, VP, magnitude=True)
    gradient = trajectory_gradient(task(), lambda x0, _: distances(x0, known[SEEDS]))
    polish(free, gradient, lambda i: SEEDS, error, iterations=60, lr=0.01)
    assert error(free.plan()) < 0.95 * error(greedy) < 0.95 * error(ddim(5))
    assert free.plan().nfe == 5 and free.plan().steps == greedy.steps


def test_descent_on_the_distance_between_sets():
    rows = solutions(range(2000, 2400)).double().numpy()
    loss = FrechetLoss(Statistics.from_features(rows))
    free = FreeTimes(ddim(4), VP, magnitude=True)
    gradient = frechet_gradient(Task(model(), batch_size=100), loss, lambda x0: x0)

    def score(plan):
        return float(loss(task().solve(plan, VALIDATION)))

    seen = polish(free, gradient, lambda i: range(200 * i, 200 * i + 200), score, iterations=12, lr=0.02)
    assert min(point.validation for point in seen) < 0.9 * seen[0].validation


def test_all_numbers_have_slopes_and_the_network_has_none():
    frozen = net_model()
    free = FreeTimes(ddim(3), VP, magnitude=True)
    loss = Task(frozen).solve(free.form, range(4), values=free.values()).square().sum()
    slopes = torch.autograd.grad(loss, list(free.parameters()))
    assert all(bool((slope != 0).all()) for slope in slopes)
    assert all(p.grad is None for p in frozen.net.parameters())


def test_numbers_stay_within_their_bounds_and_can_come_back():
    free = FreeTimes(ddim(3), VP, magnitude=True)
    with torch.no_grad():
        free.log_ratio += torch.tensor([0.5, 0.0, -20.0])
        free.log_scale += torch.tensor([1.0, 0.0, -1.0])
    values = free.values()
    assert values.t_cond.tolist() == pytest.approx([VP.t_max, ddim(3).nodes[1].t, VP.t_min])
    assert values.eps_scale.tolist() == pytest.approx([1.2, 1.0, 0.8, 1.0])
    (values.t_cond.sum() + values.eps_scale.sum()).backward()
    assert all(bool((p.grad > 0).all()) for p in free.parameters())
    made = free.plan()
    assert made.nodes[1].t_cond is None and made.nodes[0].t_cond is None
    assert made.nodes[2].t_cond == pytest.approx(VP.t_min)


def test_scales_stay_without_magnitude():
    plan = ddim(3).with_node(1, eps_scale=0.9)
    free = FreeTimes(plan, VP)
    assert [p.numel() for p in free.parameters()] == [3, 0]
    with torch.no_grad():
        free.log_ratio -= 0.01
    assert [node.eps_scale for node in free.plan().nodes] == [1, 0.9, 1, 1]


def test_numbers_travel():
    free, other = (FreeTimes(ddim(3), VP, magnitude=True) for _ in range(2))
    with torch.no_grad():
        free.log_ratio -= torch.tensor([0.1, 0.2, 0.03])
    other.load_numbers(free.numbers_now())
    assert other.plan() == free.plan()


def test_times_that_were_told_are_where_it_starts():
    plan = ddim(3).with_node(1, t_cond=0.6)
    explicit = with_all_told(plan).with_node(1, t_cond=0.6)
    free = FreeTimes(plan, VP)
    assert free.form == explicit
    torch.testing.assert_close(
        solve(model(), free.form, torch.ones(1, 8)), solve(model(), plan, torch.ones(1, 8)), rtol=0, atol=0
    )
