import pytest
import torch
from unit.methods.aligner.clocks import (
    aligned,
    clock,
    ddim,
    images,
    rmse,
    task,
    told,
)

from fewstep.methods.aligner import optimise
from fewstep.methods.aligner.calibration import calibrate

DETERMINISTIC = ["dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3-bh1-noise", "deis-2", "ipndm-3", "dpm-solver-3s"]


# Finding the network's clock


def test_denoise_recovers_a_known_clock():
    """At each time the network told the fitted time predicts for that time; at both ends there is nothing to see."""
    for bias in (0.15, -0.15):
        found = calibrate(
            task(bias), images(), seeds=range(1024), gate_seeds=range(1024, 2048), points=12, grid="uniform-t"
        )
        off = [
            abs(clock(tau, bias) - t)
            for t, tau in zip(found.ts, found.t_cond, strict=True)
            if 0.1 <= t <= 0.9
        ]
        # the bias is up to 0.0375; 1024 noises see the time of least error to a few thousandths
        assert len(off) == 9 and max(off) < 0.01


def test_a_calibrated_teacher_leads_to_the_truth():
    """A biased network followed finely leads astray; told by the clock it was found to have it does not."""
    bias, plan = -0.15, ddim(10)
    found = calibrate(task(bias), images(), seeds=range(512), gate_seeds=range(512, 1024))
    own, calibrated = (aligned(plan, bias=bias, calibration=c).plan for c in (None, found))
    oracle = rmse(aligned(plan, bias=bias).plan, bias)
    assert rmse(calibrated, bias) < 0.9 * rmse(own, bias)
    assert rmse(calibrated, bias) == pytest.approx(oracle, rel=0.1)


# What the objectives do to DDIM


def test_gains_on_a_network_with_a_late_clock():
    plan = ddim(10)
    base = rmse(plan, 0.15)
    assert rmse(aligned(plan, "paper", 0.15).plan, 0.15) < 0.75 * base
    assert rmse(aligned(plan, "trajectory", 0.15).plan, 0.15) < 0.7 * base


def test_the_published_objective_shifts_times_down_whatever_the_bias():
    """So it harms an exact network whose steps are short: a property of the objective, not an error here."""
    for kind, bias in (("wide", 0.0), ("wide", -0.15), ("narrow", -0.15)):
        found = aligned(ddim(10), "paper", bias, kind)
        assert rmse(found.plan, bias, kind) > 1.1 * rmse(ddim(10), bias, kind)
    late = slice(5, 8)
    for bias in (-0.15, 0.0, 0.15):
        times = told(aligned(ddim(10), "paper", bias))
        shift = (clock(times, bias) - torch.tensor([n.t for n in ddim(10).nodes[:-1]]))[late]
        assert float(shift.min()) > -0.12 and float(shift.max()) < -0.02


@pytest.mark.parametrize("bias", [-0.15, 0.0, 0.15])
@pytest.mark.parametrize("n", [5, 10])
def test_trajectory_with_its_gate_is_never_worse(n, bias):
    found = aligned(ddim(n), bias=bias, gate="plan")
    assert found.accepted and rmse(found.plan, bias) < rmse(ddim(n), bias)


def test_parallel_and_sequential_agree():
    parallel, sequential = (told(aligned(ddim(10), name)) for name in ("paper", "paper-sequential"))
    assert not torch.equal(parallel, sequential)
    assert float((parallel - sequential).abs().mean()) < 0.03  # as in the paper, which calls them on par


@pytest.mark.parametrize("objective", ["paper", "paper-sequential"])
def test_the_published_objective_leaves_the_last_step(objective):
    last = aligned(ddim(4), objective).nodes[-1]
    assert (last.t_cond, last.tried, last.kept) == (last.t, None, False) and "last step" in last.why


# Optimisers


@pytest.mark.parametrize("objective", ["paper", "trajectory"])
def test_adam_and_search_agree(objective):
    few = {"seeds": range(64), "gate_seeds": range(100, 102)}
    search, adam = (aligned(ddim(3), objective, optimiser=name, **few) for name in ("search", "adam"))
    torch.testing.assert_close(told(search), told(adam), rtol=0, atol=0.01)


@pytest.mark.parametrize("least", [0.137, -0.4, 0.5, -0.7, 0.0])
def test_golden_section_finds_the_bottom(least):
    found = optimise.golden(lambda x: (x - least) ** 2, -0.7, 0.5, also=0.0)
    assert found == pytest.approx(least, abs=optimise.TOLERANCE)


def test_a_flat_valley_leaves_the_start():
    assert optimise.golden(lambda x: 1.0, -0.7, 0.5, also=0.123) == 0.123
