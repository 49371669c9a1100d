"""Grids as lists of other programs and back; what a list cannot say is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import DDPMTable, Flow, VPLinear
from fewstep.sampling.lists import KINDS, list_of, read_list, sampler_of, text_of, times_of
from fewstep.sampling.presets import PRESETS

diffusers = pytest.importorskip("diffusers")

TABLE = DDPMTable.scaled_linear()
ROWS = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
"""The list that Align Your Steps published for Stable Diffusion 1.5."""


@given(
    st.sampled_from(["ddim", "dpmpp-2m", "unipc-2"]),
    st.sampled_from([TABLE, Flow(), VPLinear()]),
    st.sampled_from(KINDS[:3]),
    st.integers(1, 8),
    st.sampled_from([1.0, 3.0]),
)
def test_lists_come_back_as_the_plan(preset, schedule, kind, n, shift):
    grid = "shifted:3" if isinstance(schedule, Flow) else "uniform-t"
    plan = PRESETS[preset](schedule, n, grid=grid, to_zero=True)
    shift = shift if isinstance(schedule, Flow) else 1.0
    times = times_of(list_of(plan, kind, shift=shift), kind, schedule, shift=shift)
    again = PRESETS[preset](schedule, n, grid=times, to_zero=True)
    # 1e-9: the inverse of the log-SNR
    assert [node.t for node in again.nodes] == pytest.approx([node.t for node in plan.nodes], rel=1e-9)


def test_rows_come_back_as_they_are():
    times = times_of(ROWS, "ays", TABLE)
    plan = PRESETS["dpmpp-2m"](TABLE, len(ROWS), grid=times, to_zero=True)
    assert list_of(plan, "ays") == ROWS and text_of(list_of(plan, "ays"), "ays").startswith("999, 850, ")


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_diffusers_takes_the_list_of_a_flow(shift):
    plan = PRESETS["ddim"](Flow(), 4, grid="shifted:3", to_zero=True)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=list_of(plan, "diffusers-sigmas", shift=shift))
    expected = [node.t for node in plan.nodes]
    assert scheduler.sigmas.tolist() == pytest.approx(expected, abs=2e-6)  # float32, of 1 - 1e-6


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # numpy 2 about diffusers' own arrays
def test_diffusers_takes_the_list_of_a_table():
    plan = PRESETS["ddim"](TABLE, 4, grid="karras", to_zero=True)
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    scheduler.set_timesteps(sigmas=list_of(plan, "diffusers-sigmas"))
    t = torch.tensor([node.t for node in plan.nodes[:-1]], dtype=torch.float64)
    assert scheduler.sigmas.tolist() == pytest.approx([*TABLE.edm_sigma(t).tolist(), 0.0], rel=1e-5)


def test_the_sampler_of_a_plan_is_known():
    for name in ("ddim", "dpmpp-2m", "unipc-3", "deis-2"):
        assert sampler_of(PRESETS[name](TABLE, 5, to_zero=True)).name == name


@pytest.mark.parametrize(
    "changed, words",
    [
        (lambda plan: plan.with_node(1, t_cond=0.5), "steps are a known sampler's"),
        (lambda plan: plan.with_node(1, eps_scale=0.9), "steps are a known sampler's"),
        (lambda plan: plan.with_step(1, pred="eps"), "steps are a known sampler's"),
        (lambda plan: PRESETS["ddim"](TABLE, 4), "ends at 0.001"),
    ],
)
def test_what_a_list_cannot_say_is_refused(changed, words):
    plan = changed(PRESETS["dpmpp-2m"](TABLE, 4, to_zero=True))
    with pytest.raises(ConfigError, match=words):
        list_of(plan, "sigmas")


@pytest.mark.parametrize(
    "values, kind, words",
    [
        ([5.0, 1.0], "sigmas", "must end with 0"),
        ([1.0, 5.0, 0.0], "sigmas", "must fall within"),
        ([999.5, 10], "ays", "whole rows"),
        ([999, 10], "steps", "must be one of sigmas, comfyui"),
        ([300.0, 1.0, 0.0], "sigmas", "must fall within"),
    ],
)
def test_lists_that_cannot_be(values, kind, words):
    with pytest.raises(ConfigError, match=words):
        times_of(values, kind, TABLE)


def test_rounding_is_refused():
    plan = PRESETS["ddim"](TABLE, 4, to_zero=True)
    with pytest.raises(ConfigError, match="would have to be rounded"):
        list_of(plan, "ays")
    with pytest.raises(ConfigError, match="A shift is for flows"):
        list_of(plan, "diffusers-sigmas", shift=3.0)


def test_files(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("[14.6, 5.1\n 0.0]\n")
    assert read_list(file) == [14.6, 5.1, 0.0]
    file.write_text("14.6, x")
    with pytest.raises(DataError, match="must hold numbers"):
        read_list(file)
    assert math.isclose(float(text_of([14.614642], "comfyui")), 14.614642)
