"""A plan gives the same images inside the pipelines of diffusers, which are as they are installed."""

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import diffusers
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fewstep as fs
from fewstep.app.cli import main
from fewstep.checks import ConfigError
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.grids import of_rows
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import EDM, DDPMTable, Flow, VPLinear
from fewstep.interop.diffusers_plan import export_diffusers, to_diffusers
from fewstep.interop.diffusers_scheduler import PlanScheduler
from fewstep.rng import ImageNoise, generator
from fewstep.sampling.plan import Plan, Raw, Step
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import start_std

# numpy 2 about diffusers' own arrays
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

FLOAT32 = 1e-4  # in [0, 1]; what two orders of float32 sums may differ by
SCHEDULE = DDPMTable.linear()


def random_raw(schedule, nfe=4, seed=0, **changes):
    """A plan of raw steps on DDIM's grid, every weight moved at random."""
    plan = PRESETS["dpmpp-3m"](schedule, nfe)
    rng = generator(seed)
    compiled = fs.sampling.solver.compile_plan(plan, schedule)
    steps = []
    for i, (update, _) in enumerate(compiled.coefficients):
        moved = (1 + 0.1 * torch.randn(i + 2, generator=rng, dtype=torch.float64)).tolist()
        c = tuple((m, w * moved[m]) for m, w in sorted(update.c.items()))
        steps.append(Step(i, i + 1, "x0", raw=Raw(update.A * moved[-1], c)))
    return Plan(plan.schedule, plan.nodes, tuple(steps), name="raw", **changes)


PLANS = {
    "dpmpp-2m": lambda schedule: PRESETS["dpmpp-2m"](schedule, 4),
    "unipc-2": lambda schedule: PRESETS["unipc-2"](schedule, 4, to_zero=True),
    "heun": lambda schedule: PRESETS["heun"](schedule, 5, to_zero=True),
    "raw": lambda schedule: random_raw(schedule, clip=1.5),
}


def solved(model, plan, **options):
    return fs.solve(model, plan, start_std(model, plan) * ImageNoise([0, 1], model.shape)(), **options)


def ours(model, plan, **options):
    x0 = solved(model, plan, **options)
    return tiny.as_pipelines_give(x0 if model.decode is None else model.decode(x0))


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "ldm"])
def test_pipelines_give_our_images(saved, kind, name):
    model, pipe = fs.load_model(saved[kind]), tiny.pipeline(kind)
    plan = PLANS[name](model.schedule)
    pipe.scheduler = to_diffusers(plan, model)
    decoder = pipe.vqvae if kind == "ldm" else None
    decode = decoder and decoder.decode
    for _ in range(2):
        with mock.patch.object(decoder, "decode", wraps=decode) if decoder else nullcontext() as seen:
            images = pipe(
                batch_size=2, num_inference_steps=plan.nfe, generator=tiny.generators(2), output_type="np"
            ).images
        if seen is None:
            assert abs(images - ours(model, plan)).max() < FLOAT32
        else:  # a latent between two entries of the codebook may round to either, so images are of the same latents
            latents = seen.call_args.args[0] * decoder.config.scaling_factor
            assert abs(latents - solved(model, plan)).max() < FLOAT32
            assert abs(images - tiny.as_pipelines_give(model.decode(latents))).max() < FLOAT32
    assert np.median(images.std((1, 2))) > 0.01


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_guidance_is_the_pipelines(saved, guidance):
    model, pipe = fs.load_model(saved["dit"]), tiny.pipeline("dit")
    plan = PRESETS["unipc-3"](model.schedule, 4)
    pipe.scheduler = to_diffusers(plan, model)
    images = pipe(
        [3, 7], guidance_scale=guidance, num_inference_steps=4, generator=tiny.generators(2), output_type="np"
    ).images
    expected = ours(model, plan, condition=model.condition_of([3, 7]), guidance=guidance)
    assert abs(images - expected).max() < FLOAT32


def test_the_guidance_of_a_plan_is_passed_on(saved, tmp_path):
    model = fs.load_model(saved["dit"])
    plan = PRESETS["ddim"](model.schedule, 2)
    for made, said in ((plan, 1), (replace(plan, guidance=2.5), 2.5)):
        scheduler = export_diffusers(made, model, tmp_path / "scheduler")
        assert scheduler.config.guidance_scale == made.guidance
        text = (tmp_path / "scheduler/README.md").read_text()
        assert f"pipe(num_inference_steps=2, guidance_scale={said}, ...)" in text


def test_half_precision_keeps_the_history_in_float32():
    """A pipeline in bfloat16 gets bfloat16 back, from sums in float32."""
    plan = PRESETS["dpmpp-2m"](SCHEDULE, 3)
    scheduler = to_diffusers(plan, Model(torch.zeros_like, SCHEDULE))
    x = torch.randn(1, 3, 4, 4, generator=generator(0)).bfloat16()
    out = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    assert out.dtype == torch.bfloat16 and scheduler._x0[0].dtype == torch.float32


# Schedulers by hand


MIXTURE = GaussianMixture(
    torch.tensor([0.4, 0.6]).double(),
    torch.tensor([[0.5, -0.3, 0.1], [-0.6, 0.2, 0.4]]).double(),
    torch.tensor([0.3, 0.2]).double(),
)


def mixture(schedule, prediction):
    """The mixture as a model of another prediction."""
    noise = MIXTURE.model(schedule)
    read = fs.diffusion.prediction

    def fn(x, t):
        of = read.weights(prediction, schedule, t[0])
        return (noise.fn(x, t) - of.eps_of_x * x) / of.eps_of_output

    return Model(fn, schedule, prediction, shape=(3,))


def by_hand(scheduler, model, noise):
    """The loop of diffusers' documentation."""
    scheduler.set_timesteps(scheduler.num_inference_steps)
    x = noise * scheduler.init_noise_sigma
    # what is fed is float32, which is too coarse to compare solvers by
    for k, exact in zip(scheduler.timesteps, scheduler.config.timesteps, strict=True):
        assert float(k) == pytest.approx(exact, rel=1e-6)
        t = torch.full((len(x),), exact, dtype=torch.float64)
        t = (t + 1) / 1000 if isinstance(model.schedule, DDPMTable) else t / 1000
        x = scheduler.step(model.fn(scheduler.scale_model_input(x, k), t), k, x).prev_sample
    return x


@settings(max_examples=25, deadline=None)
@given(
    preset=st.sampled_from(
        ["ddim", "unipc-3", "unipc-2-bh1-noise", "ipndm-3", "dpm-solver-3s", "deis-3", "raw"]
    ),
    schedule=st.sampled_from([SCHEDULE, VPLinear(), Flow(), DDPMTable.cosine()]),
    prediction=st.sampled_from(["eps", "x0", "v", "u"]),
    nfe=st.integers(2, 6),
    afs=st.booleans(),
    t_start=st.sampled_from([None, 0.8]),
    changes=st.fixed_dictionaries({}, optional={"eps_scale": st.floats(0.9, 1.1), "t_cond": st.just(0.5)}),
)
def test_any_plan_is_its_scheduler(preset, schedule, prediction, nfe, afs, t_start, changes):
    raw = preset == "raw"
    plan = random_raw(schedule, nfe) if raw else PRESETS[preset](schedule, nfe, t_start=t_start)
    plan = plan.with_node(0, eval="afs_zero") if afs else plan
    plan = plan.with_node(1, **changes)
    model = mixture(schedule, prediction)
    scheduler = to_diffusers(plan, model)
    noise = torch.randn(4, 3, generator=generator(3), dtype=torch.float64)
    expected = fs.solve(model, plan, start_std(model, plan) * noise)
    torch.testing.assert_close(by_hand(scheduler, model, noise), expected, rtol=1e-6, atol=1e-6)
    assert len(scheduler.timesteps) == plan.nfe


def exported(tmp_path, plan=None, model=None):
    model = model or Model(torch.zeros_like, SCHEDULE, shape=(3,))
    return export_diffusers(plan or PRESETS["dpmpp-2m"](SCHEDULE, 3), model, tmp_path / "scheduler")


def test_the_folder_is_read_back(tmp_path):
    made = exported(tmp_path)
    again = PlanScheduler.from_pretrained(tmp_path / "scheduler")
    assert {key: again.config[key] for key in made.config} == dict(made.config)
    assert made.config.timesteps[0] == 999 and not all(k.is_integer() for k in made.config.timesteps)
    text = (tmp_path / "scheduler/README.md").read_text()
    assert "pipe(num_inference_steps=3, ...)" in text and made.config.plan_hash in text
    assert sorted(path.name for path in (tmp_path / "scheduler").iterdir()) == [
        "README.md",
        "fewstep_scheduler.py",
        "scheduler_config.json",
    ]


def test_the_copied_file_needs_no_fewstep(saved, tmp_path):
    model = fs.load_model(saved["ddim"])
    plan = PRESETS["unipc-2"](model.schedule, 3)
    exported(tmp_path, plan, model)
    code = (
        "import sys; sys.modules['fewstep'] = None; sys.path.insert(0, 'scheduler')\n"
        "import numpy, torch\n"
        "from diffusers import DDIMPipeline\n"
        "from fewstep_scheduler import PlanScheduler\n"
        f"pipe = DDIMPipeline.from_pretrained({str(saved['ddim'])!r}, local_files_only=True)\n"
        "pipe.scheduler = PlanScheduler.from_pretrained('scheduler')\n"
        "noise = [torch.Generator().manual_seed(seed) for seed in (0, 1)]\n"
        "images = pipe(num_inference_steps=3, batch_size=2, generator=noise, output_type='np').images\n"
        "numpy.save('images.npy', images)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    assert abs(np.load(tmp_path / "images.npy") - ours(model, plan)).max() < FLOAT32


def test_misuse_of_a_scheduler():
    model = Model(torch.zeros_like, SCHEDULE, shape=(3,))
    scheduler = to_diffusers(PRESETS["dpmpp-2m"](SCHEDULE, 3), model)
    x = torch.ones(1, 3)
    first, second, _ = scheduler.timesteps
    with pytest.raises(ValueError, match="num_inference_steps must be 3, .*'dpmpp-2m.*; got 50"):
        scheduler.set_timesteps(50)
    with pytest.raises(ValueError, match="in order; expected 999, got"):
        scheduler.step(x, second, x)
    with pytest.raises(ValueError, match="eta must be 0 .* got 0.5"):
        scheduler.step(x, first, x, eta=0.5)
    with pytest.raises(ValueError, match="use_clipped_model_output False"):
        scheduler.step(x, first, x, use_clipped_model_output=True)
    for k in scheduler.timesteps.long():  # as pipelines that round
        (out,) = scheduler.step(x, k, x, return_dict=False)
    assert out.shape == x.shape
    with pytest.raises(ValueError, match="expected none more"):
        scheduler.step(x, first, x)


def test_a_start_that_the_pipeline_does_not_scale_is_refused(saved):
    model, pipe = fs.load_model(saved["ddim"]), tiny.pipeline("ddim")
    pipe.scheduler = to_diffusers(PRESETS["dpmpp-2m"](model.schedule, 3, t_start=0.3), model)
    with pytest.raises(ValueError, match="standard deviation .* but this pipeline starts at unit noise"):
        pipe(num_inference_steps=3, output_type="np")
    model, pipe = fs.load_model(saved["ldm"]), tiny.pipeline("ldm")
    plan = PRESETS["dpmpp-2m"](model.schedule, 3, t_start=0.3).with_node(0, eval="afs_zero")
    pipe.scheduler = to_diffusers(plan, model)
    images = pipe(batch_size=2, num_inference_steps=2, generator=tiny.generators(2), output_type="np").images
    assert abs(images - ours(model, plan)).max() < FLOAT32


def test_an_export_replaces_an_export_and_nothing_else(tmp_path):
    exported(tmp_path)
    exported(tmp_path, PRESETS["ddim"](SCHEDULE, 2))
    assert len(PlanScheduler.from_pretrained(tmp_path / "scheduler").timesteps) == 2
    (tmp_path / "scheduler/fewstep_scheduler.py").unlink()
    with pytest.raises(ConfigError, match="must be a new folder or an earlier export"):
        exported(tmp_path)
    assert (tmp_path / "scheduler/scheduler_config.json").exists()


PLAIN = PRESETS["ddim"](SCHEDULE, 3)


@pytest.mark.parametrize(
    "plan, sentence",
    [
        (PLAIN.with_node(0, eval="afs_mean"), "must not be afs_mean"),
        (PLAIN.with_node(1, width=1), "width, quant and skip_scale must be null; ddim.* sets one"),
        (PLAIN.with_node(1, quant="w4a8"), "width, quant and skip_scale must be null"),
        (replace(PLAIN, skip_scale=(1.0,)), "skip_scale must be null"),
        (
            replace(PLAIN, fingerprint="ab" * 32),
            "fingerprint abab.* has none",
        ),
        (PRESETS["ddpm"](SCHEDULE, 3), "draws noise has no linear form"),
        (PRESETS["ddim"](DDPMTable.cosine(), 3), "The plan is for the schedule"),
        (PRESETS["ddim"](SCHEDULE, 1).with_node(0, eval="afs_zero"), "at least once; got 0 calls"),
    ],
)
def test_plans_that_cannot_travel(tmp_path, plan, sentence):
    with pytest.raises(ConfigError, match=sentence):
        exported(tmp_path, plan)
    assert not (tmp_path / "scheduler").exists()


def test_edm_networks_are_refused():
    with pytest.raises(ConfigError, match="reads eps, x0, v or u, but the model predicts edm"):
        to_diffusers(PRESETS["ddim"](EDM(), 3), Model(torch.zeros_like, EDM(), "edm"))


# Timesteps


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 999), min_size=2, max_size=8, unique=True))
def test_rows_are_times_whose_input_is_the_row(rows):
    rows = sorted(rows, reverse=True)
    times = torch.tensor(of_rows(SCHEDULE, rows), dtype=torch.float64)
    torch.testing.assert_close(SCHEDULE.time_input(times), torch.tensor(rows).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("rows", [[], [0, 999], [500, 500], [1000, 3], [5, -1]])
def test_rows_must_fall_within_the_table(rows):
    with pytest.raises(ConfigError, match="Timesteps must fall within 999 to 0; got"):
        of_rows(SCHEDULE, rows)
    with pytest.raises(ConfigError, match="Timesteps are rows of a DDPM table, but the model has VPLinear"):
        of_rows(VPLinear(), [999, 0])


@pytest.mark.parametrize("timesteps", [[999, 850, 630, 400, 120], [900, 333, 20]])
def test_custom_timesteps_are_those_of_diffusers(timesteps):
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(timesteps=timesteps)
    model = MIXTURE.model(SCHEDULE)
    noise = torch.randn(4, 3, generator=generator(3), dtype=torch.float64)
    x = noise
    for k in scheduler.timesteps:
        t = torch.full((4,), (float(k) + 1) / 1000, dtype=torch.float64)
        x = scheduler.step(model.fn(x, t), k, x).prev_sample
    plan = PRESETS["dpmpp-2m"](
        SCHEDULE, len(timesteps), grid=of_rows(SCHEDULE, timesteps), to_zero=True, lower_final=True
    )
    torch.testing.assert_close(fs.solve(model, plan, noise), x, rtol=1e-5, atol=1e-5)


# The commands


def fewstep(*arguments):
    with (
        mock.patch.object(sys, "argv", ["fewstep", *map(str, arguments)]),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return int(ended.value.code or 0)


def test_from_timesteps_to_a_scheduler(saved, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    arguments = ("plan", "ddim", "--model", saved["ldm"], "--nfe", 3, "--to-zero", "--out", plan)
    assert fewstep(*arguments, "--timesteps", "999,666,333") == 0
    written = json.loads(plan.read_text())
    assert [node["t"] for node in written["nodes"]] == [1.0, 0.667, 0.334, 0.0]
    assert fewstep("sample", saved["ldm"], plan, "--seeds", "0-1", "--out", tmp_path / "s.npz") == 0
    with np.load(tmp_path / "s.npz") as samples:
        assert samples["arr_0"].shape == (2, 16, 16, 3)
    out = tmp_path / "scheduler"
    assert fewstep("export", saved["ldm"], plan, "--to", "diffusers", "--out", out) == 0
    assert f"{out}: scheduler of diffusers, num_inference_steps=3" in capsys.readouterr().out
    assert PlanScheduler.from_pretrained(out).timesteps.tolist() == pytest.approx([999, 666, 333])
    assert fewstep(*arguments, "--timesteps", "999,x") == 2
    assert fewstep(*arguments, "--timesteps", "999,500") == 2
    assert fewstep(*arguments, "--timesteps", "999,500,2", "--grid", "karras") == 2
    assert fewstep("export", saved["ldm"], plan, "--to", "torchscript", "--out", out) == 2
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in shown if line.startswith("fewstep:")] == [
        "fewstep: --timesteps must be whole numbers such as 999,666,333",
        "fewstep: grid must hold 3 times for 2 steps",
        "fewstep: --timesteps and --grid both say where the times are",
        "fewstep: --to must be one of diffusers, onnx",
    ]
