from dataclasses import replace

import pytest
import torch
from unit.methods.aligner.clocks import VP, clock, ddim, images, mixture, model, right_clock, task

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Classes, Condition
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import EDM, DDPMTable, Flow
from fewstep.methods.aligner.fine import Calibration, Fine, fine_plan
from fewstep.methods.aligner.objectives import OBJECTIVES, SCALES, Walk
from fewstep.methods.aligner.student import Position, Student
from fewstep.rng import ImageNoise, generator
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve
from fewstep.sampling.solver import Values
from fewstep.sampling.task import Task

SEEDS = range(6)


def unusual(plan):
    """The plan with other times told and scales at every call."""
    nodes = tuple(
        replace(n, t_cond=0.9 * n.t + 0.01, eps_scale=1 - 0.01 * i) if n.eval == "net" else n
        for i, n in enumerate(plan.nodes)
    )
    return replace(plan, nodes=nodes)


def double(draw):
    """The draw in float64, for finite differences."""
    return replace(draw, eps=draw.eps.double(), x0=None if draw.x0 is None else draw.x0.double())


# Taking a plan apart


@pytest.mark.parametrize("prediction, where", [("eps", "step"), ("v", "step"), ("v", "tau")])
@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_segments_one_after_the_other_are_the_sampler(name, to_zero, prediction, where):
    one = Model(model().fn, schedule=VP, shape=(8,), prediction=prediction)
    plan = replace(unusual(PRESETS[name](VP, 7, grid="quadratic-t", to_zero=to_zero)), convert_at=where)
    student = Student(Task(one), plan)
    draw = student.draw(SEEDS)
    x, history = draw.eps, ()
    for segment, fresh in zip(student.segments, draw.fresh, strict=True):
        node = plan.nodes[segment.node]
        at = Position(x, history, fresh, None)
        x, history = student.land(segment, at, node.t_cond, node.eps_scale)
        if len(segment.rows) == 1:
            still, moved = student.parts(segment, at, node.t_cond)
            # the two forms differ by rounding of sums of up to 1 / alpha
            torch.testing.assert_close(still + node.eps_scale * moved, x, rtol=1e-3, atol=1e-3)
    noise = ImageNoise(SEEDS, (8,))
    expected = solve(one, plan, noise(), noise=noise)
    # float32 states, in another order of sums; a v read from a noise predictor reaches thousands
    scale = float(expected.abs().max())
    torch.testing.assert_close(x / scale, expected / scale, rtol=1e-3, atol=1e-3)


def test_a_class_follows_from_the_seed_or_from_the_image():
    classes = Model(lambda x, t, y: x, schedule=VP, shape=(8,), conditions=Classes(3))
    student = Student.__new__(Student)
    student.task, student.segments = Task(classes), ()
    assert student.draw([4, 5, 9]).condition == Condition({"label": torch.tensor([1, 2, 0])})
    of_images = Condition({"label": torch.tensor([2, 2])})
    assert student.draw([4, 5], images()[:2], of_images).condition is of_images


# What a call is judged by


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_slope_in_the_time_told(objective):
    """Through one or two network calls; central differences in float64."""
    student = Student(task(0.15), PRESETS["dpmpp-2m"](VP, 6, grid="uniform-t"))
    draw = double(student.draw(range(16), images()[:16]))
    walk = Walk(student, OBJECTIVES[objective], draw, Fine(student.task))
    walk.advance(walk.judge(0), 0.98, 1.0)
    judge, t = walk.judge(1), student.plan.nodes[1].t
    judge = replace(judge, target=judge.target.double())

    def loss(ratio):
        return judge.losses(ratio * t, 1.05).mean()

    ratio = torch.tensor(0.97, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(ratio), [ratio])
    h = 1e-5
    with torch.no_grad():
        expected = (loss(0.97 + h) - loss(0.97 - h)) / (2 * h)
    assert float(slope) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["unipc-3", "dpmpp-2m", "dpm-solver-3s", "deis-2", "heun"])
def test_slopes_of_a_whole_plan(name):
    """In every time told and every scale, by central differences in float64."""
    plan, one = unusual(PRESETS[name](VP, 5, grid="uniform-t")), model(0.15)
    x = torch.randn(4, 8, generator=generator(3), dtype=torch.float64)
    weights = torch.randn(4, 8, generator=generator(4), dtype=torch.float64)

    def loss(values):
        return (solve(one, plan, x, values=values) * weights).sum()

    values = Values.of(plan)
    for field in ("t_cond", "eps_scale"):
        number = getattr(values, field)
        leaf = number.clone().requires_grad_()
        loss(replace(values, **{field: leaf})).backward()
        for i, node in enumerate(plan.nodes):
            if node.eval != "net":
                continue
            shift = torch.zeros_like(number)
            shift[i] = 1e-6
            with torch.no_grad():
                up, down = (float(loss(replace(values, **{field: number + s * shift}))) for s in (1, -1))
            # float64, curvature of order one: 1e-12 / 1e-6 of rounding
            assert float(leaf.grad[i]) == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("objective", ["trajectory", "denoise", "local"])
def test_the_closed_form_scale_is_the_best(objective):
    student = Student(task(0.15), PRESETS["unipc-2"](VP, 5, grid="uniform-t"))
    walk = Walk(
        student, OBJECTIVES[objective], double(student.draw(range(64), images()[:64])), Fine(student.task)
    )
    walk.advance(walk.judge(0), 1.0, 1.0)
    judge, clamped = walk.judge(1), 0
    with torch.no_grad():
        for told in (0.5, 0.7, 0.8, 0.9):
            best, losses = judge.best_scale(told)
            assert SCALES[0] <= best <= SCALES[1]
            torch.testing.assert_close(losses, judge.losses(told, best), rtol=1e-9, atol=1e-12)
            others = [float(judge.losses(told, s).mean()) for s in torch.linspace(*SCALES, 41).tolist()]
            assert float(losses.mean()) <= min(others) + 1e-12
            clamped += best in SCALES
    assert clamped < 4


def test_the_published_loss_as_it_is_written():
    """|| eps(x_t, t) - eps(f(x_t; t -> s, tau), s) ||^2 with DDIM's f, by hand."""
    student = Student(task(), ddim(4))
    draw = double(student.draw(range(8), images()[:8]))
    walk = Walk(student, OBJECTIVES["paper"], draw, Fine(student.task))
    for i in range(2):
        walk.advance(walk.judge(i), 0.5, 1.0)
    judge = walk.judge(2)
    t, s, tau = student.plan.nodes[2].t, student.plan.nodes[3].t, 0.41
    (alpha_t, alpha_s), (sigma_t, sigma_s) = ([float(f(u)) for u in (t, s)] for f in (VP.alpha, VP.sigma))

    def eps(x, u):
        return mixture().eps(x, torch.full((8,), u, dtype=torch.float64), VP)

    x_t = alpha_t * draw.x0 + sigma_t * draw.eps
    told = eps(x_t, tau)
    landed = alpha_s * (x_t - sigma_t * told) / alpha_t + sigma_s * told
    expected = (eps(x_t, t) - eps(landed, s)).square().sum(1)
    torch.testing.assert_close(judge.losses(tau, 1.0), expected, rtol=1e-9, atol=1e-12)


# The fine path


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("schedule", [VP, EDM(), DDPMTable.linear(), Flow()], ids=lambda s: type(s).__name__)
def test_the_fine_plan_passes_every_node(schedule, to_zero):
    nodes = PRESETS["ddim"](schedule, 6, grid="karras", to_zero=to_zero).nodes
    plan, places = fine_plan(schedule, nodes, 5)
    assert [plan.nodes[place].t for place in places] == [node.t for node in nodes]
    # between t_min and clean data there is nothing to ask
    assert plan.nfe == (5 * 5 + 1 if to_zero else 5 * 6)
    assert all(node.width is None for node in plan.nodes)


def test_the_fine_path_is_of_second_order():
    student = Student(task(), ddim(5))
    draw = student.draw(range(64))
    nodes = student.plan.nodes
    coarse, fine, exact = (Fine(student.task, n).path(draw.eps.double(), None, nodes) for n in (8, 16, 256))
    off = [[float((a - b).norm()) for a, b in zip(path, exact, strict=True)] for path in (coarse, fine)]
    assert off[0][0] == off[1][0] == 0
    # four, but for higher orders where the last interval is long
    assert all(2.5 < first / second < 6 for first, second in zip(off[0][1:], off[1][1:], strict=True))


def test_a_teacher_is_told_by_a_calibration():
    biased, exact = (Student(task(bias), ddim(5)) for bias in (0.15, 0.0))
    draw = exact.draw(range(64))
    nodes = exact.plan.nodes
    told = Fine(biased.task, 8, right_clock(0.15)).path(draw.eps, None, nodes)[-1]
    own, expected = (Fine(one.task, 8).path(draw.eps, None, nodes)[-1] for one in (biased, exact))
    # the clock is linear between 400 times; float32
    torch.testing.assert_close(told, expected, rtol=0, atol=5e-3)
    assert float((own - expected).abs().max()) > 0.1


def test_a_calibration_between_and_beyond_its_times():
    found = Calibration((0.8, 0.4, 0.2), (0.7, 0.4, 0.25))
    assert [found(t) for t in (0.8, 0.4, 0.2)] == pytest.approx([0.7, 0.4, 0.25])
    assert found(0.6) == pytest.approx(0.55) and found(0.3) == pytest.approx(0.325)
    assert found(0.9) == pytest.approx(0.8) and found(0.1) == pytest.approx(0.15)
    assert clock(right_clock(0.15)(0.5), 0.15) == pytest.approx(0.5, abs=1e-5)  # linear between 400 times


@pytest.mark.parametrize("ts, told", [((0.5,), (0.5,)), ((0.1, 0.5), (0.1, 0.5)), ((0.5, 0.1), (0.5,))])
def test_a_calibration_must_be_a_curve(ts, told):
    with pytest.raises(ConfigError, match="two or more falling times"):
        Calibration(ts, told)
