import math
from dataclasses import replace

import pytest
import torch
from unit.methods.aligner.clocks import (
    GATE,
    SEEDS,
    VP,
    aligned,
    clock,
    ddim,
    images,
    model,
    net_model,
    rmse,
    told,
    with_all_told,
)

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.denoiser import Model
from fewstep.methods.aligner import optimise
from fewstep.methods.aligner.align import align
from fewstep.methods.aligner.objectives import OBJECTIVES
from fewstep.rng import ImageNoise
from fewstep.sampling.document import save_plan
from fewstep.sampling.linear import in_linear_form
from fewstep.sampling.plan import load_plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve
from fewstep.sampling.task import Task

DETERMINISTIC = ["dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3-bh1-noise", "deis-2", "ipndm-3", "dpm-solver-3s"]


# A plan that tells each time itself


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_times_told_as_they_are_change_no_bit(name, to_zero):
    plan = PRESETS[name](VP, 7, to_zero=to_zero)
    explicit, seeds = with_all_told(plan), range(5)
    made = [
        solve(model(), one, ImageNoise(seeds, (8,))(), noise=ImageNoise(range(9, 14), (8,)))
        for one in (plan, explicit)
    ]
    assert torch.equal(*made)


# Every kind of plan


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_multistep_and_single_step_plans_gain(name, to_zero):
    plan = PRESETS[name](VP, 6, grid="quadratic-t", to_zero=to_zero)
    found = aligned(plan, magnitude=True, gate="plan")
    if not found.accepted:
        assert found.plan is plan and found.plan.hash == plan.hash
    else:
        assert found.endpoint.after < found.endpoint.before and found.plan.nfe == plan.nfe
        assert rmse(found.plan) < (1.05 if to_zero else 1) * rmse(plan)  # the truth ends at t_min
    # the first step alone is one of order 1, which can always be told better
    assert found.nodes[0].held_out is None or found.nodes[0].fit.after <= found.nodes[0].fit.before


def test_most_known_samplers_are_improved():
    plans = [PRESETS[name](VP, 6, grid="uniform-t") for name in DETERMINISTIC]
    ratios = [rmse(aligned(plan, magnitude=True, gate="plan").plan) / rmse(plan) for plan in plans]
    assert max(ratios) <= 1 and sorted(ratios)[len(ratios) // 2] < 0.8


@pytest.mark.parametrize("name", ["unipc-3", "dpm-solver-2s"])
def test_a_plan_in_raw_steps_is_told_the_same(name):
    plan = PRESETS[name](VP, 6, to_zero=True)
    first, raw = (aligned(one, magnitude=True) for one in (plan, in_linear_form(plan, VP)))
    # float32 states; the golden section ends at 1e-3
    torch.testing.assert_close(told(first), told(raw), rtol=0, atol=2e-3)


def test_a_node_that_is_evaluated_twice_has_one_time():
    plan = PRESETS["heun"](VP, 9, grid="uniform-t")
    found = aligned(plan, magnitude=True)
    assert plan.nfe == 9 and len(found.nodes) == 5
    assert all(node.fit.after < node.fit.before for node in found.nodes if node.kept)
    assert any(node.eps_scale != 1 for node in found.nodes[1:])


def test_an_analytic_first_step_is_left_alone():
    plan = PRESETS["dpmpp-2m"](VP, 5).with_node(0, eval="afs_zero")
    found = aligned(plan)
    assert [node.node for node in found.nodes] == [1, 2, 3, 4] and found.plan.nodes[0] == plan.nodes[0]


@pytest.mark.parametrize("objective", ["paper", "paper-sequential", "denoise"])
def test_plans_with_noise_have_common_random_numbers(objective):
    plan = PRESETS["ddpm"](VP, 6)
    first, second = (aligned(plan, objective, 0.15, gate="steps") for _ in range(2))
    assert first == second and first.endpoint is None
    if objective == "denoise":
        assert first.accepted
        middle = first.nodes[2]
        assert clock(middle.t_cond, 0.15) == pytest.approx(middle.t, abs=0.02)  # 256 noises


@pytest.mark.parametrize("objective", ["trajectory", "local"])
def test_plans_with_noise_have_no_fine_path(objective):
    with pytest.raises(ConfigError, match=f"The objective {objective} compares .* use paper or denoise"):
        aligned(PRESETS["ddpm"](VP, 6), objective)


def test_narrow_networks_are_told_times_and_the_teacher_is_wide():
    """The narrow network has the biased clock, the full one is exact: as if a biased one had the right teacher."""
    wide = model()
    slim = replace(wide, widths=(1.0, 0.5), at_width=lambda width: model(0.15).fn)
    plan = ddim(6)
    narrow = replace(plan, nodes=tuple(replace(n, width=1) if n.eval == "net" else n for n in plan.nodes))
    found = align(Task(slim, batch_size=1024), narrow, seeds=SEEDS, gate_seeds=GATE, gate="none")
    same = aligned(plan, bias=0.15)
    # the oracle clock is linear between 400 times
    torch.testing.assert_close(told(found), told(same), rtol=0, atol=2e-3)
    assert [n.width for n in found.plan.nodes] == [n.width for n in narrow.nodes]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("prediction", ["eps", "v", "edm"])
def test_every_objective_takes_every_prediction(prediction, objective):
    found = align(
        Task(replace(net_model(), prediction=prediction), batch_size=64),
        PRESETS["unipc-2"](VP, 4, to_zero=True),
        seeds=range(32),
        gate_seeds=range(32, 64),
        images=images()[:64],
        objective=objective,
        magnitude=True,
        gate="none",
    )
    for node in found.nodes:
        assert VP.t_min <= node.t_cond <= VP.t_max and abs(math.log(node.t_cond / node.t)) <= 0.7 + 1e-9
        assert 0.8 <= node.eps_scale <= 1.2
        # rounding: what is tried is no worse than what was told before
        assert node.fit is None or node.fit.after <= node.fit.before * (1 + 1e-6)


def test_outputs_are_converted_at_the_step_or_at_the_time_told():
    v = replace(net_model(), prediction="v")
    plans = [replace(ddim(5), convert_at=where) for where in ("step", "tau")]
    found = [align(Task(v), plan, seeds=range(64), gate_seeds=range(64, 128), gate="none") for plan in plans]
    assert not torch.allclose(told(found[0]), told(found[1]), atol=1e-3)
    for plan, one in zip(plans, found, strict=True):
        assert one.plan.convert_at == plan.convert_at and one.endpoint.after < one.endpoint.before


# Gates


def test_without_a_gain_the_plan_comes_back():
    """Through steps so short that no time is surely better, on few noises."""
    plan = PRESETS["unipc-3"](VP, 40)
    found = aligned(plan, "denoise", seeds=range(8), gate_seeds=range(100, 108), gate="steps")
    refused = [node for node in found.nodes if not node.kept]
    assert len(refused) >= 36  # a false alarm at two standard errors has a probability of 0.02 a step
    assert all("standard errors" in node.why or "nothing is better" in node.why for node in refused)
    assert all((node.t_cond, node.eps_scale) == (node.t, 1.0) for node in refused)
    assert all(found.plan.nodes[node.node].t_cond is None for node in refused)


def test_a_plan_that_is_worse_as_a_whole_is_refused():
    plan = ddim(10)
    found = aligned(plan, "paper", kind="wide", gate="plan")
    assert found.plan is plan and not found.accepted and "as a whole" in found.why
    assert found.endpoint.after > found.endpoint.before and found.found.hash != plan.hash
    assert sum(node.kept for node in found.nodes) > 3


def test_what_cannot_move_is_the_plan_itself():
    plan = PRESETS["ddim"](VP, 1)
    found = aligned(plan, "paper", gate="plan")
    assert found.plan is plan and found.endpoint is None and found.why == "no step has moved"


def test_aligning_twice_starts_from_what_is_told():
    first = aligned(ddim(5), magnitude=True)
    second = aligned(first.plan, magnitude=True, gate="steps")
    # nothing is left to be gained but the end of the golden section
    torch.testing.assert_close(told(second), told(first), rtol=0, atol=2e-3)
    assert second.nodes[0].fit is None or second.nodes[0].fit.before <= first.nodes[0].fit.after * (1 + 1e-6)


# What stays as it is


@pytest.mark.parametrize("optimiser", ["search", "adam"])
def test_the_network_is_frozen(optimiser, monkeypatch):
    monkeypatch.setattr(optimise, "ADAM_ITERATIONS", 5)
    frozen = net_model()
    before = {name: value.clone() for name, value in frozen.net.state_dict().items()}
    align(
        Task(frozen), ddim(3), seeds=range(16), gate_seeds=range(16, 32), optimiser=optimiser, objective="paper",
        images=images()[:32], magnitude=True, gate="none",
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in frozen.net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in frozen.net.parameters())
    assert not frozen.net.training


def test_calls_are_counted():
    calls = 0

    def fn(x, t):
        nonlocal calls
        calls += len(x)
        return model().fn(x, t)

    counted = Task(Model(fn, schedule=VP, shape=(8,)), batch_size=20)
    align(
        counted,
        PRESETS["heun"](VP, 5),
        seeds=range(32),
        gate_seeds=range(40, 72),
        magnitude=True,
        gate="plan",
    )
    assert counted.calls == calls


def test_sizes_of_batches_do_not_matter():
    found = [
        align(Task(model(), batch_size=size), ddim(4), seeds=range(30), gate_seeds=range(50, 80), gate="none")
        for size in (7, 1000)
    ]
    torch.testing.assert_close(told(found[0]), told(found[1]), rtol=0, atol=1e-6)


def test_classes_and_guidance_are_those_of_the_task():
    classes = net_model(classes=3)
    arguments = {"seeds": range(32), "gate_seeds": range(32, 64), "gate": "none"}
    plain, guided = (align(Task(classes, guidance), ddim(3), **arguments) for guidance in (1.0, 3.0))
    assert not torch.equal(told(plain), told(guided))
    assert (plain.plan.guidance, guided.plan.guidance) == (1.0, 3.0)
    assert guided.plan.fingerprint == classes.fingerprint
    with pytest.raises(ConfigError, match="for guidance 3.0, but the task has 1.0"):
        align(Task(classes), guided.plan, **arguments)
    labels = torch.arange(64) % 3
    told_of_images = [Condition({"label": y}) for y in (labels, labels.flip(0))]
    by_images = [
        align(Task(classes), ddim(3), objective="denoise", images=images()[:64], condition=c, **arguments)
        for c in told_of_images
    ]
    assert not torch.equal(told(by_images[0]), told(by_images[1]))


def test_an_aligned_plan_travels_as_a_file(tmp_path):
    found = aligned(ddim(5), magnitude=True).plan
    save_plan(found, tmp_path / "plan.json")
    read = load_plan(tmp_path / "plan.json")
    assert read == found and read.hash == found.hash
    x = ImageNoise(range(4), (8,))()
    assert torch.equal(solve(model(), read, x), solve(model(), found, x))


def test_progress_sees_every_call():
    seen = []
    aligned(ddim(3), progress=lambda items: [seen.append(i) or i for i in items])
    assert seen == [0, 1, 2]
