import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.checks import ConfigError
from fewstep.diffusion.grids import GRIDS, PUBLISHED, grid_named, shifted_to_zero
from fewstep.diffusion.schedule import EDM, Cosine, DDPMTable, Flow, VPLinear, schedule_from_config

ALL = [
    VPLinear(),
    DDPMTable.linear(),
    DDPMTable.scaled_linear(),
    DDPMTable.cosine(n_rows=100),
    Cosine(),
    EDM(),
    Flow(),
]
each = pytest.mark.parametrize("schedule", ALL, ids=repr)


def times(schedule, n=257):
    return torch.linspace(schedule.t_min, schedule.t_max, n, dtype=torch.float64)


@each
def test_lambda_falls_and_is_inverted(schedule):
    t = times(schedule)
    lambda_t = schedule.lambda_(t)
    assert bool((lambda_t.diff() < 0).all())
    # 1e-12: conditioning of the inverse at t_max of EDM, where t is 80
    torch.testing.assert_close(schedule.t_of_lambda(lambda_t), t, rtol=1e-12, atol=1e-12)


@each
def test_lambda_is_the_log_ratio_of_amplitudes(schedule):
    t = times(schedule)
    torch.testing.assert_close(
        schedule.lambda_(t), (schedule.alpha(t) / schedule.sigma(t)).log(), rtol=1e-9, atol=1e-12
    )


@each
def test_rates_are_the_derivatives(schedule):
    # midpoints of the table's rows: between rows its log alpha is linear, at rows it has a kink
    t = schedule.t_min + (times(schedule, 12)[1:-1] * 1000).floor() / 1000 + 0.0004
    t = t.clamp(max=schedule.t_max - 0.001).requires_grad_()
    rates = schedule.rates(t)
    for amplitude, rate in zip((schedule.alpha, schedule.sigma), rates, strict=True):
        value = amplitude(t)
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value.sum(), t, allow_unused=True)
            torch.testing.assert_close(
                rate, slope if slope is not None else torch.zeros_like(t), rtol=1e-9, atol=1e-12
            )
        else:
            assert not rate.any()


@each
def test_config_round_trip(schedule):
    again = schedule_from_config(schedule.config())
    assert again == schedule
    assert hash(again) == hash(schedule)
    torch.testing.assert_close(again.alpha(times(schedule)), schedule.alpha(times(schedule)), rtol=0, atol=0)


@each
def test_elementwise_in_t(schedule):
    """A time per pixel gives each pixel what its time alone would give."""
    t = times(schedule, 12).reshape(2, 1, 2, 3)
    pixel = schedule.sigma(t)
    assert pixel.shape == t.shape
    torch.testing.assert_close(pixel[1, 0, 1, 2], schedule.sigma(float(t[1, 0, 1, 2])), rtol=0, atol=0)


@pytest.mark.parametrize("schedule", ALL[:5], ids=repr)
def test_variance_is_preserved(schedule):
    t = times(schedule)
    torch.testing.assert_close(
        schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("schedule", [VPLinear(), DDPMTable.linear(), Cosine(), Flow()], ids=repr)
def test_time_zero_is_clean_data(schedule):
    assert float(schedule.alpha(0.0)) == 1.0
    assert float(schedule.sigma(0.0)) == 0.0


def test_table_rows_are_ddpm():
    """alpha_bar of DDPM at its rows: the product of 1 - beta, and k is what the network is told."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    schedule = DDPMTable.linear()
    k = torch.tensor([0, 1, 499, 999])
    t = (k + 1).double() / 1000
    torch.testing.assert_close(schedule.alpha(t) ** 2, (1 - betas).cumprod(0)[k], rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.time_input(t), k.double(), rtol=0, atol=1e-9)
    assert float(schedule.sigma(0.0)) == 0.0


def test_known_values_of_vp_linear():
    """log alpha(1) = -(20 - 0.1)/4 - 0.1/2 by hand."""
    assert float(VPLinear().log_alpha(1.0)) == pytest.approx(-5.025)
    assert float(VPLinear().lambda_(1.0)) == pytest.approx(-5.0249784, abs=1e-6)


@given(st.sampled_from(ALL), st.sampled_from(sorted(GRIDS)), st.integers(1, 60))
def test_grids_fall_from_end_to_end(schedule, grid, n_steps):
    ts = GRIDS[grid](schedule, n_steps)
    assert ts.shape == (n_steps + 1,)
    assert ts.dtype == torch.float64
    assert float(ts[0]) == (schedule.t_max if grid == "shifted" else schedule.t_start)
    assert float(ts[-1]) == schedule.t_min
    assert bool((ts.diff() < 0).all())


def test_published_grids_are_the_lists_that_other_programs_have():
    """diffusers has the lists of Align Your Steps as rounded levels and as rows; a list ends at clean data."""
    from fewstep.sampling.presets import PRESETS

    AysSchedules = pytest.importorskip("diffusers.schedulers").AysSchedules
    table = DDPMTable.scaled_linear()
    for name, kind in (("ays-sd1", "StableDiffusion"), ("ays-sdxl", "StableDiffusionXL")):
        plan = PRESETS["ddim"](table, 10, grid=name, to_zero=True)
        ts = torch.tensor([node.t for node in plan.nodes[:-1]], dtype=torch.float64)
        levels = [*table.edm_sigma(ts).tolist(), 0.0]
        # their roundings, at most 1e-3 for one list and 3e-3 for the other
        assert levels == pytest.approx(AysSchedules[f"{kind}Sigmas"], rel=1e-2, abs=2e-3)
        assert table.time_input(ts).tolist() == pytest.approx(AysSchedules[f"{kind}Timesteps"], abs=1.5)
    video = EDM(0.002, 700.0)
    plan = PRESETS["ddim"](video, 10, grid="ays-svd", to_zero=True)
    assert [node.t for node in plan.nodes] == pytest.approx(
        AysSchedules["StableDiffusionVideoSigmas"], rel=1e-9
    )


def test_published_grids_are_interpolated_in_log_snr():
    """Twice the steps: every other level is the list's, the others are geometric means; NVIDIA's loglinear_interp."""
    schedule = EDM(0.0291671582, 14.6146412293)
    listed, finer = (GRIDS["ays-sd1"](schedule, n) for n in (10, 20))
    torch.testing.assert_close(finer[::2], listed, rtol=1e-12, atol=0)
    torch.testing.assert_close(finer[1::2], (listed[1:] * listed[:-1]).sqrt(), rtol=1e-12, atol=0)
    assert listed.tolist() == pytest.approx(PUBLISHED["ays-sd1"], rel=1e-12)


@given(st.floats(0.2, 8.0), st.integers(1, 20))
def test_the_shifted_grid_is_that_of_flow_pipelines(shift, n):
    """t' = s t / (1 + (s - 1) t) of t = 1 - i / n, which is lambda - log s; 1 - 1e-6 stands for 1."""
    ts = shifted_to_zero(Flow(), n, shift=shift)
    t = 1 - torch.arange(1, n, dtype=torch.float64) / n
    published = shift * t / (1 + (shift - 1) * t)
    torch.testing.assert_close(ts[1:], published, rtol=1e-12, atol=0)
    by = Flow().lambda_(ts[1:]) - Flow().lambda_(shifted_to_zero(Flow(), n)[1:])
    assert by.numpy() == pytest.approx(-math.log(shift), abs=1e-9)
    whole = grid_named(f"shifted:{shift}")(Flow(), n)
    assert (float(whole[0]), float(whole[-1])) == (Flow().t_max, Flow().t_min)


def test_names_of_shifted_grids():
    assert torch.equal(grid_named("shifted")(Flow(), 4), grid_named("shifted:1")(Flow(), 4))
    with pytest.raises(ConfigError, match="must be positive, 1 for none; got 0"):
        grid_named("shifted:0")(Flow(), 4)
    with pytest.raises(ConfigError, match="must be a number such as 3; got 'x'"):
        grid_named("shifted:x")
    with pytest.raises(ConfigError, match="grid must be one of .*, shifted:S; got 'karras:2'"):
        grid_named("karras:2")


def test_karras_grid_is_the_published_formula():
    schedule, n = EDM(), 7
    i = torch.arange(n + 1, dtype=torch.float64)
    published = (80 ** (1 / 7) + i / n * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(GRIDS["karras"](schedule, n), published, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"type": "quintic"}, "ddpm, vp-linear, cosine, edm, flow"),
        ({"type": "vp-linear", "b2": 1.0}, "b2"),
        ({"type": "ddpm", "table": "linnear"}, "linear, scaled_linear, cosine"),
        ({"type": "ddpm"}, "either"),
        ({"type": "ddpm", "alpha_bar": [0.5, 0.7]}, "must fall"),
        ({"type": "ddpm", "alpha_bar": [0.5, 0.0]}, "(0, 1)"),
        ({"type": "edm", "sigma_min": 3.0, "sigma_max": 1.0}, "sigma_min < sigma_max"),
    ],
)
def test_bad_schedules_are_refused(config, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(").replace(")", r"\)")):
        schedule_from_config(config)


@pytest.mark.parametrize("ends", [(0.5, 0.5), (0.2, 0.6), (1.5, 0.1), (1.0, 1e-6)])
def test_bad_grid_ends_are_refused(ends):
    with pytest.raises(ConfigError, match="must fall from t_start to t_end"):
        GRIDS["uniform-t"](VPLinear(), 4, t_start=ends[0], t_end=ends[1])


def test_cosine_is_the_square_of_a_cosine():
    t = torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64)
    f = [math.cos((float(x) + 0.008) / 1.008 * math.pi / 2) ** 2 for x in t]
    torch.testing.assert_close(Cosine().alpha(t) ** 2, torch.tensor(f).double() / f[0], rtol=1e-6, atol=0)
