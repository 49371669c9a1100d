"""Trained solvers read from the files of their programs: the plan, and every way in which a file can be wrong."""

import json
import pickle
import sys
from unittest import mock

import oracles
import pytest
import torch

from fewstep.app.cli import main
from fewstep.app.commands.plan import TRAINED
from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.grids import karras, uniform_lambda, uniform_t
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import EDM, VPLinear
from fewstep.interop.bundle import export_bundle
from fewstep.interop.diffusers_plan import to_diffusers
from fewstep.interop.trained_solvers import SOLVERS, read_solver
from fewstep.rng import generator
from fewstep.sampling.sample import solve

SIGMAS, VP = EDM(), VPLinear()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def saved(path, value):
    """As programs save: single precision, and read back as they were rounded."""
    torch.save(value, path)
    return path


def f32(tensor):
    return tensor.float()


def eps_in(schedule):
    means = torch.tensor([[0.5, -0.3, 0.1], [-0.6, 0.2, 0.4]], dtype=torch.float64)
    weights, stds = (torch.tensor(values, dtype=torch.float64) for values in ([0.4, 0.6], [0.3, 0.2]))
    model = GaussianMixture(weights, means, stds).model(schedule)

    def eps_of(x, t):
        return model.fn(x, torch.as_tensor(t, dtype=torch.float64).expand(len(x)))

    return model, eps_of, lambda x, t: (x - schedule.sigma(t) * eps_of(x, t)) / schedule.alpha(t)


def dyweight_file(path, n=5, analytic=True):
    weights = f32(torch.eye(n) + 0.05 * noise(n, n))
    mask = torch.ones(n, n).tril() - torch.ones(n, n).tril(-3)
    told = f32(1 + 0.1 * noise(n - analytic, seed=1))
    if not analytic:
        told[0] = 1
    return saved(path, {"hybrid_weights": weights, "mask": mask, "t_scale": told})


@pytest.mark.parametrize("analytic", [True, False])
def test_dyweight(tmp_path, analytic):
    path = dyweight_file(tmp_path / "w.pt", analytic=analytic)
    plan = read_solver(path, "dyweight", SIGMAS, {})
    held = {name: value.double() for name, value in torch.load(path).items()}
    model, _, x0_of = eps_in(SIGMAS)
    x = 80 * noise(4, 3, seed=2)
    weights = held["hybrid_weights"] * held["mask"]
    expected = oracles.dyweight(x0_of, x, karras(SIGMAS, 5), weights, held["t_scale"], analytic)
    torch.testing.assert_close(solve(model, plan, x), expected, rtol=1e-9, atol=1e-9)
    assert (plan.nfe, plan.provenance["trained"]) == (5 - analytic, "dyweight")


def epd_file(folder, n=3, k=2, **settings):
    folder.mkdir(exist_ok=True)
    names = ("r_params", "scale_dir_params", "scale_time_params", "weight_s")
    options = {"afs": True, "scale_dir": 0.05, "scale_time": 0.05, "fcn": False, "sampler_stu": "epd"}
    options |= {"schedule_type": "time_uniform", "schedule_rho": 1.0, "num_steps": n + 1, **settings}
    (folder / "training_options.json").write_text(json.dumps({"pred_kwargs": options, "seed": 0}))
    return saved(folder / "epd.pt", {name: f32(noise(n, k, seed=i)) for i, name in enumerate(names)})


def test_epd_with_the_settings_beside_it(tmp_path):
    schedule = EDM(0.01, 80.0)
    path = epd_file(tmp_path / "exp", fcn=True)
    held = {name: value.double() for name, value in torch.load(path).items()}
    near = [2 * torch.sigmoid(held[f"{n}_params"] / 2) * 0.05 + 0.95 for n in ("scale_dir", "scale_time")]
    near[0][-1] = 1
    # uniform in the time of the variance-preserving schedule whose noise levels end at 0.01 and 80
    frame = VPLinear(*_betas(0.01, 80.0))
    ts = frame.edm_sigma(uniform_t(frame, 3))
    model, _, x0_of = eps_in(schedule)
    x = 80 * noise(4, 3, seed=9)
    split, weights = held["r_params"].sigmoid(), held["weight_s"].softmax(1)
    expected = oracles.epd(x0_of, x, ts, split, *near, weights, True)
    plan = read_solver(path, "epd", schedule, {})
    torch.testing.assert_close(solve(model, plan, x), expected, rtol=1e-9, atol=1e-9)
    assert (plan.nfe, plan.depth) == (8, 5)
    # what is given counts before what stands beside
    assert read_solver(path, "epd", schedule, {"afs": False}).nfe == 9


def _betas(low, high, t=1e-3):
    """Of the schedule with these noise levels at t and at 1, from log(1 + sigma^2) = b0 t + (b1 - b0) t^2 / 2."""
    matrix = torch.tensor([[t, t**2 / 2], [1, 0.5]], dtype=torch.float64)
    right = torch.tensor([low, high], dtype=torch.float64).square().log1p()
    b0, difference = torch.linalg.solve(matrix, right).tolist()
    return b0, b0 + difference


def gs_file(path, n=4, order=4):
    values = [f32(noise(n - 1, seed=1)), f32(-0.01 * noise(n, seed=2).abs())]
    values += [f32(0.02 * noise(n, seed=3 + i)) for i in range(2 * order)]
    averaged = {"decay": 0.999, "num_updates": 10, "shadow_params": values, "collected_params": None}
    model = [torch.nn.Parameter(value) for value in values]
    return saved(
        path, {"ema": averaged, "model": model, "optim": {"state": {}, "param_groups": []}, "step": 10}
    )


@pytest.mark.parametrize("schedule", [VP, EDM(0.002, 160.0)], ids=["vp", "edm"])
def test_gs(tmp_path, schedule):
    path = gs_file(tmp_path / "10.pt")
    logits, told, *rest = (v.double() for v in torch.load(path, weights_only=True)["ema"]["shadow_params"])
    share = 1 - torch.cumprod(torch.sigmoid(logits) * (1 - 2e-5) + 1e-5, 0)
    ts = [1.0, *(share * (1 - 1e-3) + 1e-3).flip(0).tolist(), 1e-3]
    # of EDM's networks GAS has the schedule of 0.1 and 20, within the network's range
    model, _, _ = eps_in(schedule)

    def eps_of(x, t):
        own = schedule.t_of_lambda(VP.lambda_(t))
        return model.fn(schedule.alpha(own) / VP.alpha(t) * x, own.expand(len(x)))

    x = noise(4, 3, seed=7)
    first, last = (schedule.alpha(schedule.t_of_lambda(VP.lambda_(t))) / VP.alpha(t) for t in (1.0, 1e-3))
    expected = oracles.generalized_solver(eps_of, VP, x, ts, told, rest[1::2], rest[0::2])
    plan = read_solver(path, "gs", schedule, {"t_eps": 1e-3})
    torch.testing.assert_close(solve(model, plan, first * x) / last, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name, order", [("uni_pc", 3), ("ipndm", 4), ("dpm_solver++", 2)])
def test_ld3_with_the_settings_beside_it(tmp_path, name, order):
    ts = uniform_lambda(VP, 5)
    shift = torch.tensor([0, 0.2, -0.2, 0.1, -0.1, 0], dtype=torch.float64)
    told = VP.t_of_lambda(VP.lambda_(ts) + shift)
    told[0] = ts[0]
    both = torch.cat([ts, told])
    path = saved(tmp_path / "best_v2.pt", {"params1": ts, "params2": told, "best_t_steps": both})
    (tmp_path / "config.yml").write_text(
        f"solver_name: {name}\norder: {order}\nunipc_variant: bh1\nsteps: 5\n"
    )
    model, eps_of, x0_of = eps_in(VP)
    x, times = noise(4, 3), ts.tolist()
    if name == "uni_pc":
        expected = oracles.ld3_unipc(x0_of, VP, x, times, told, order, "bh1")
    elif name == "ipndm":
        expected = oracles.ld3_ipndm(eps_of, VP, x, times, told, order)
    else:
        expected = oracles.dpmpp_multistep(
            lambda x, t: x0_of(x, told[times.index(t)]), VP, x, times, order, lower_final=True
        )
    plan = read_solver(path, "ld3", VP, {})
    torch.testing.assert_close(solve(model, plan, x), expected, rtol=1e-9, atol=1e-9)


def test_dual_solver(tmp_path):
    numbers, steps = f32(0.4 * noise(4, 2, 5)), f32(0.3 * noise(4, seed=1))
    path = saved(tmp_path / "d.pt", {"params": numbers, "log_deltas": steps})
    gone = (steps.double().softmax(0) * (1 - 1e-3)).cumsum(0)
    ts = torch.cat([torch.ones(1, dtype=torch.float64), 1 - gone])
    model, eps_of, x0_of = eps_in(VP)
    x = noise(4, 3, seed=2)
    expected = oracles.dual_solver(lambda x, t: (x0_of(x, t), eps_of(x, t)), VP, x, ts, numbers.double(), 2)
    plan = read_solver(path, "dual-solver", VP, {"order": 2})
    torch.testing.assert_close(solve(model, plan, x), expected, rtol=1e-9, atol=1e-9)


def test_means_of_amed(tmp_path):
    split, direction = torch.tensor([0.5, 0.4]), torch.tensor([1.0, 0.99])
    path = saved(tmp_path / "a.pt", {"r": split, "scale_dir": direction})
    plan = read_solver(path, "amed", SIGMAS, {"afs": False, "schedule_type": "logsnr"})
    model, _, x0_of = eps_in(SIGMAS)
    x, ones = 80 * noise(4, 3), torch.ones(2, 1, dtype=torch.float64)
    columns = [values.double()[:, None] for values in (split, direction)]
    expected = oracles.epd(x0_of, x, uniform_lambda(SIGMAS, 2), *columns, ones, ones, False)
    torch.testing.assert_close(solve(model, plan, x), expected, rtol=1e-9, atol=1e-9)
    assert (plan.nfe, plan.depth) == (4, 4)


# Files that are wrong


class Code:
    """What a pickle can do."""

    ran = False

    def __reduce__(self):
        return (setattr, (Code, "ran", True))


@pytest.mark.parametrize("how", ["torch", "pickle", "text", "empty", "cut"])
def test_code_is_never_run(tmp_path, how):
    path = tmp_path / "solver.pkl"
    if how == "torch":
        torch.save({"hybrid_weights": Code()}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps({"model": Code()}))
    elif how == "cut":
        path.write_bytes(dyweight_file(tmp_path / "w.pt").read_bytes()[:500])
    else:
        path.write_text("hybrid_weights" * (how == "text"))
    with pytest.raises(DataError, match=r"solver\.pkl must hold tensors and nothing else, as torch\.save"):
        read_solver(path, "dyweight", SIGMAS, {})
    assert not Code.ran


@pytest.mark.parametrize(
    "kind, value, words",
    [
        ("dyweight", {"t_scale": torch.ones(3)}, "must hold the tensor hybrid_weights; it has t_scale"),
        ("dyweight", torch.ones(3), "must hold the tensor hybrid_weights; it has Tensor"),
        ("dyweight", {"hybrid_weights": torch.ones(3, 2)}, r"finite and of shape \(3, 3\); got \(3, 2\)"),
        ("dyweight", {"hybrid_weights": torch.full((2, 2), torch.nan)}, "finite and of shape"),
        ("dyweight", {"hybrid_weights": torch.eye(2), "t_scale": torch.ones(5)}, r"shape \(2\); got \(5,\)"),
        ("dual-solver", {"params": torch.ones(3, 5)}, r"shape \(n, 2, 5\); got \(3, 5\)"),
        ("gs", {"model": []}, "must hold ema.shadow_params"),
        ("gs", {"ema": {"shadow_params": [torch.ones(2)] * 5}}, "must hold ema.shadow_params"),
        ("gs", {"ema": {"shadow_params": [torch.ones(2)] * 4}}, r"mu_logit of .* shape \(1\); got \(2,\)"),
        ("ld3", {"best_t_steps": torch.ones(5)}, "two grids of equal length; got 5"),
    ],
)
def test_missing_tensors_are_said(tmp_path, kind, value, words):
    path = saved(tmp_path / "file.pt", value)
    given = {"solver_name": "ipndm", "order": 2} if kind == "ld3" else {}
    with pytest.raises(DataError, match=words):
        read_solver(path, kind, VP, given)


def test_other_mistakes(tmp_path):
    path = dyweight_file(tmp_path / "w.pt")
    with pytest.raises(DataError, match="must be a file of tensors, but"):
        read_solver(tmp_path / "none.pt", "dyweight", SIGMAS, {})
    with pytest.raises(
        ConfigError, match="must be one of gs, dyweight, epd, amed, ld3, dual-solver; got 'usf'"
    ):
        read_solver(path, "usf", SIGMAS, {})
    with pytest.raises(ConfigError, match="A setting of dyweight must be one of afs, .* got 'rho'"):
        read_solver(path, "dyweight", SIGMAS, {"rho": 7})
    with pytest.raises(ConfigError, match="schedule_type must be polynomial, logsnr or time_uniform"):
        read_solver(path, "dyweight", SIGMAS, {"schedule_type": "discrete"})
    with pytest.raises(ConfigError, match="schedule_rho must be positive; got 0.002, 80 and -1"):
        read_solver(path, "dyweight", SIGMAS, {"schedule_rho": -1})
    with pytest.raises(ConfigError, match="schedule_rho must be a number; got 'seven'"):
        read_solver(path, "dyweight", SIGMAS, {"schedule_rho": "seven"})
    plain = epd_file(tmp_path / "exp")
    with pytest.raises(ConfigError, match="of EPD's own sampler; its plugin for 'ipndm'"):
        read_solver(plain, "epd", SIGMAS, {"sampler_stu": "ipndm"})
    (plain.parent / "training_options.json").unlink()
    with pytest.raises(ConfigError, match=r"afs of .* must be said, .* add --setting afs=\.\.\."):
        read_solver(plain, "epd", SIGMAS, {})
    (plain.parent / "config.yml").write_text("a: [")
    with pytest.raises(DataError, match=r"config\.yml must be YAML"):
        read_solver(plain, "epd", SIGMAS, {})
    times = saved(tmp_path / "t.pt", {"best_t_steps": torch.linspace(1, 0.1, 6).repeat(2)})
    with pytest.raises(ConfigError, match="solver_name must be uni_pc, ipndm or dpm_solver"):
        read_solver(times, "ld3", VP, {"solver_name": "heun", "order": 2})


# The command


def fewstep(*arguments):
    with (
        mock.patch.object(sys, "argv", ["fewstep", *map(str, arguments)]),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return int(ended.value.code or 0)


def test_kinds_of_the_command_are_those_that_can_be_read():
    assert set(TRAINED) == set(SOLVERS)


def test_from_tensors_to_images(saved, tmp_path, capsys):
    """A plan with calls side by side is written and sampled, and refused by runtimes that cannot make them."""
    path, plan = epd_file(tmp_path / "exp", n=2), tmp_path / "plan.json"
    asked = ("plan", "--kind", "epd", "--from", path, "--model", saved["ddpm"], "--out", plan)
    assert fewstep(*asked) == 0
    assert "epd.nfe5, 5 network calls per image, of depth 3" in capsys.readouterr().out
    assert fewstep("sample", saved["ddpm"], plan, "--seeds", "0-1", "--out", tmp_path / "s.npz") == 0
    capsys.readouterr()
    assert fewstep("export", saved["ddpm"], plan, "--to", "diffusers", "--out", tmp_path / "scheduler") == 2
    said = capsys.readouterr().err
    assert (
        "A scheduler makes one call after another, so depth must be nfe; epd.nfe5 has 5 calls of depth 3"
        in said
    )
    assert not (tmp_path / "scheduler").exists()


@pytest.mark.parametrize(
    "more, words",
    [
        (["ddim"], "is all of a plan"),
        (["--grid", "uniform-t"], "is all of a plan"),
        (["--to", "sigmas"], "is all of a plan"),
        (["--nfe", "7"], "--nfe must be 5, the calls of"),
        (["--setting", "afs"], "must be NAME=VALUE, such as afs=true"),
        (["--setting", "afs=maybe"], "afs must be true or false; got 'maybe'"),
        (["--setting", "sigma_max=300"], "sigma_max must be at most"),
        (["--kind", "sigmas", "--setting", "afs=true"], "--setting is of a trained solver"),
        (["--kind", "sigmas"], "PRESET must name a known sampler"),
    ],
)
def test_mistakes_in_the_command(saved, tmp_path, capsys, more, words):
    path, plan = epd_file(tmp_path / "exp", n=2), tmp_path / "plan.json"
    asked = ("plan", "--kind", "epd", "--from", path, "--model", saved["ddpm"], "--out", plan)
    assert fewstep(*asked, *more) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and not plan.exists()


def test_bundles_and_schedulers_refuse_calls_side_by_side(tmp_path):
    from fewstep.diffusion.denoiser import Model

    plan = read_solver(epd_file(tmp_path / "exp"), "epd", VP, {"sigma_min": 0.02})
    model = Model(lambda x, t: x, schedule=VP, shape=(1, 8, 8))
    with pytest.raises(ConfigError, match="A scheduler makes one call after another, so depth must be nfe"):
        to_diffusers(plan, model)
    with pytest.raises(ConfigError, match="A bundle makes one call after another, so depth must be nfe"):
        export_bundle(model, plan, tmp_path / "bundle")
