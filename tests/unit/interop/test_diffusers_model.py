"""Models of diffusers give here what they give there, and what cannot be read is refused in one sentence."""

import json
import shutil
import subprocess
import sys

import diffusers
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fewstep as fs
from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.grids import of_rows
from fewstep.diffusion.schedule import Flow, VPLinear, schedule_from_config
from fewstep.files import sha256_file
from fewstep.interop.diffusers_model import load_diffusers
from fewstep.nets.folder import save_model
from fewstep.nets.unet import UNet
from fewstep.rng import ImageNoise, generator
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import Costs

# numpy 2 about diffusers' own arrays
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

KINDS = ("ddpm", "ddim", "ldm", "dit")
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}


def edited(folder, copy, file, **changes):
    """A copy of a saved pipeline with fields of one JSON file changed."""
    shutil.copytree(folder, copy)
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


def scheduler_folder(copy, scheduler):
    """A saved pipeline with another scheduler's configuration."""
    scheduler.save_pretrained(copy / "scheduler")
    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_the_network_at_any_time(saved, kind):
    model, pipe = fs.load_model(saved[kind]), tiny.pipeline(kind)
    rng = generator(5)
    x = torch.randn(3, *model.shape, generator=rng)
    for t in torch.rand(4, generator=rng).mul(0.999).add(0.001).tolist():
        k = torch.full((3,), 1000 * t - 1)
        if kind == "dit":
            labels = torch.tensor([0, 7, tiny.N_CLASSES])
            expected = pipe.transformer(x, k, labels).sample.chunk(2, dim=1)[0]
            actual = Denoiser(model, condition=fs.Condition({"label": labels})).output(x, t)
        else:
            expected = pipe.unet(x, k).sample[:, :3]
            actual = Denoiser(model).output(x, t)
        torch.testing.assert_close(actual, expected, **FLOAT32)


@pytest.mark.parametrize("kind", ["ddim", "ldm", "dit"])
def test_images_are_those_of_the_pipeline(saved, kind):
    """DDIM on the timesteps that diffusers chooses, by their pipeline and by our loop."""
    model, pipe = fs.load_model(saved[kind]), tiny.pipeline(kind)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    ours, theirs = {}, {"batch_size": 2}
    if kind == "dit":
        ours = {"condition": model.condition_of([3, 7]), "guidance": 2.5}
        theirs = {"class_labels": [3, 7], "guidance_scale": 2.5}
    expected = pipe(num_inference_steps=4, generator=tiny.generators(2), output_type="np", **theirs).images
    grid = of_rows(model.schedule, pipe.scheduler.timesteps.tolist())
    plan = PRESETS["ddim"](model.schedule, 4, grid=grid, to_zero=True)
    x0 = fs.solve(model, plan, ImageNoise([0, 1], model.shape)(), **ours)
    image = x0 if model.decode is None else model.decode(x0)
    assert abs(tiny.as_pipelines_give(image) - expected).max() < 1e-4
    drawn = fs.sample(model, plan, seeds=[0, 1], **ours)
    assert drawn.dtype == torch.uint8 and drawn.shape[1:] == model.image_shape == image.shape[1:]
    assert abs(drawn.permute(0, 2, 3, 1).numpy() - 255 * expected).max() < 0.6


def test_guidance_costs_two_calls(saved):
    model = fs.load_model(saved["dit"])
    plan = PRESETS["ddim"](model.schedule, 2)
    costs = Costs()
    fs.sample(model, plan, seeds=[0], condition=model.condition_of([1]), guidance=2.0, costs=costs)
    assert (costs.nfe, costs.network_calls) == (2, 4)


def test_what_a_model_says_of_itself(saved, tmp_path):
    model = fs.load_model(saved["ddpm"])
    weights = saved["ddpm"] / "unet/diffusion_pytorch_model.safetensors"
    assert (model.shape, model.conditions, model.prediction, model.name) == ((3, 8, 8), None, "x0", "ddpm")
    assert model.fingerprint == sha256_file(weights) and model.decode is None
    assert not model.net.training and not any(p.requires_grad for p in model.net.parameters())
    assert fs.load_model(saved["dit"]).conditions == fs.Classes(tiny.N_CLASSES)
    # the decoder is a part of what made the images
    other = shutil.copytree(saved["dit"], tmp_path / "dit")
    with torch.no_grad():
        changed = tiny.vae()
        changed.decoder.conv_out.bias += 1
    changed.save_pretrained(other / "vae")
    assert fs.load_model(other).fingerprint != fs.load_model(saved["dit"]).fingerprint


def test_loading_leaves_the_global_stream_alone(saved):
    before = torch.get_rng_state()
    fs.load_model(saved["ldm"])
    assert torch.equal(before, torch.get_rng_state())


def test_shift_and_scale_of_the_latents(saved, tmp_path):
    folder = shutil.copytree(saved["dit"], tmp_path / "dit")
    vae = tiny.vae(scaling_factor=0.5, shift_factor=0.25)
    vae.save_pretrained(folder / "vae")
    latent = torch.randn(2, 4, 8, 8, generator=generator(0))
    expected = vae.decode(latent / 0.5 + 0.25).sample
    torch.testing.assert_close(fs.load_model(folder).decode(latent), expected, **FLOAT32)


def test_layouts(saved, tmp_path):
    """A network beside its scheduler, both in one folder, a part of a pipeline, and many files of weights."""
    whole = fs.load_model(saved["ddim"])
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in [*(saved["ddim"] / "unet").iterdir(), saved["ddim"] / "scheduler/scheduler_config.json"]:
        shutil.copy(file, flat)
    beside = tmp_path / "beside"
    shutil.copytree(saved["ddim"], beside, ignore=shutil.ignore_patterns("model_index.json"))
    old = shutil.copytree(flat, tmp_path / "old")
    shutil.copy(saved["ddim"] / "model_index.json", old)
    for folder in (flat, beside / "unet", old):
        model = fs.load_model(folder)
        assert (model.fingerprint, model.schedule) == (whole.fingerprint, whole.schedule)
    latent = fs.load_model(saved["ldm"] / "unet")
    assert latent.decode is not None and latent.image_shape == (3, 16, 16)
    shards = shutil.copytree(saved["ddim"], tmp_path / "shards")
    shutil.rmtree(shards / "unet")
    tiny.unet().save_pretrained(shards / "unet", max_shard_size="20KB")
    x = torch.randn(1, 3, 8, 8, generator=generator(1))
    torch.testing.assert_close(Denoiser(fs.load_model(shards)).x0(x, 0.5), Denoiser(whole).x0(x, 0.5))
    assert fs.load_model(shards).fingerprint != whole.fingerprint


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["whole", "shards"])
def test_a_variant_that_stands_alone_is_read(saved, tmp_path, variant, options):
    """As pipe.half().save_pretrained(..., variant="fp16") leaves it, and downloads of that variant alone."""
    folder = shutil.copytree(saved["ddim"], tmp_path / "variant")
    shutil.rmtree(folder / "unet")
    tiny.unet().half().save_pretrained(folder / "unet", variant=variant, **options)
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"pickled")
    model = fs.load_model(folder)
    assert {p.dtype for p in model.net.parameters()} == {torch.float32}
    x = torch.randn(2, 3, 8, 8, generator=generator(1))
    expected = tiny.unet().half().float()(x, torch.tensor(499.0)).sample
    torch.testing.assert_close(Denoiser(model).output(x, 0.5), expected, **FLOAT32)
    assert model.fingerprint != fs.load_model(saved["ddim"]).fingerprint
    # the usual weights go before, and of several variants none is meant
    shutil.copy(saved["ddim"] / "unet/diffusion_pytorch_model.safetensors", folder / "unet")
    assert fs.load_model(folder).fingerprint == fs.load_model(saved["ddim"]).fingerprint
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bf16.safetensors"))
    with pytest.raises(DataError, match=f"or one variant of it, but holds bf16, {variant}; copy the folder"):
        fs.load_model(folder)


def test_a_list_of_parts_without_the_parts(saved, tmp_path):
    folder = shutil.copytree(saved["ddim"], tmp_path / "variant")
    shutil.rmtree(folder / "unet")
    tiny.unet().save_pretrained(folder / "unet", variant="fp16", max_shard_size="20KB")
    shards = sorted((folder / "unet").glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(DataError, match="must be a complete UNet2DModel"):
        fs.load_model(folder)
    for shard in [shards[0], *shards[2:]]:
        shard.unlink()
    with pytest.raises(DataError, match=r"must hold diffusion_pytorch_model\.safetensors, .* got no weights"):
        fs.load_model(folder)


def test_a_network_beside_that_of_the_pipeline_is_itself(saved, tmp_path):
    """unet_ema of a training stands beside unet, with the same scheduler."""
    folder = shutil.copytree(saved["ldm"], tmp_path / "ldm")
    ema = tiny.unet()
    with torch.no_grad():
        ema.conv_out.bias += 1
    ema.save_pretrained(folder / "unet_ema")
    own, other = fs.load_model(folder), fs.load_model(folder / "unet_ema")
    assert own.fingerprint != other.fingerprint and other.image_shape == own.image_shape == (3, 16, 16)
    x = torch.randn(2, 3, 8, 8, generator=generator(3))
    torch.testing.assert_close(Denoiser(other).output(x, 0.5), Denoiser(own).output(x, 0.5) + 1, **FLOAT32)


def test_a_network_without_a_scheduler_says_what_to_name_or_put_there(saved, tmp_path):
    checkpoint = tmp_path / "out/checkpoint-500"
    shutil.copytree(saved["ddim"] / "unet", checkpoint / "unet_ema")
    with pytest.raises(ConfigError) as refusal:
        fs.load_model(checkpoint / "unet_ema")
    sentence = str(refusal.value)
    assert "name the folder of the whole pipeline, with model_index.json" in sentence
    assert f"copy the pipeline's scheduler/scheduler_config.json to {checkpoint / 'scheduler'}" in sentence
    shutil.copytree(saved["ddim"] / "scheduler", checkpoint / "scheduler")
    assert fs.load_model(checkpoint / "unet_ema").fingerprint == fs.load_model(saved["ddim"]).fingerprint


def test_folders_that_hold_models_further_down_name_them(saved, tmp_path):
    cache = tmp_path / "hub/models--google--ddpm"
    for hash in ("ab12", "cd34"):
        shutil.copytree(saved["ddim"], cache / "snapshots" / hash)
    (cache / "refs").mkdir()
    checkpoint = tmp_path / "out/checkpoint-500"
    for name in ("unet", "unet_ema"):
        shutil.copytree(saved["ddim"] / "unet", checkpoint / name)
    shutil.copytree(saved["dit"] / "vae", checkpoint / "vae")  # no model that samples
    (checkpoint / "text").mkdir()
    (checkpoint / "text/config.json").write_text("{")
    for folder, inside in (
        (cache, ["snapshots/ab12", "snapshots/cd34"]),
        (tmp_path / "hub", ["models--google--ddpm/snapshots/ab12", "models--google--ddpm/snapshots/cd34"]),
        (checkpoint, ["unet", "unet_ema"]),
    ):
        with pytest.raises(DataError) as refusal:
            fs.load_model(folder)
        named = ", ".join(str(folder / name) for name in inside)
        assert str(refusal.value).endswith(f"holds them further down; name one of {named}.")
    shutil.rmtree(cache / "snapshots/cd34")
    with pytest.raises(DataError, match=r"further down; name /.*/snapshots/ab12\.$"):
        fs.load_model(cache)
    with pytest.raises(DataError, match=r"config\.json must exist"):
        fs.load_model(cache / "refs")


def test_dit_under_its_older_name(saved, tmp_path):
    folder = edited(
        saved["dit"], tmp_path / "dit", "transformer/config.json", _class_name="Transformer2DModel"
    )
    assert fs.load_model(folder).fingerprint == fs.load_model(saved["dit"]).fingerprint


# Schedules


@pytest.mark.parametrize(
    "values",
    [
        {"beta_schedule": "linear", "beta_start": 1e-3, "beta_end": 0.03, "num_train_timesteps": 200},
        {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.1, 0.2, 0.3, 0.25]},
    ],
    ids=lambda values: values.get("beta_schedule", "trained"),
)
def test_tables_are_those_of_diffusers(saved, tmp_path, values):
    folder = shutil.copytree(saved["ddpm"], tmp_path / "ddpm")
    scheduler = diffusers.DDPMScheduler(**values, prediction_type="epsilon")
    schedule = fs.load_model(scheduler_folder(folder, scheduler)).schedule
    # diffusers computes in float32; 1 - beta loses digits where beta nears 1
    torch.testing.assert_close(schedule.alpha_bar.float(), scheduler.alphas_cumprod, rtol=2e-4, atol=1e-7)
    assert schedule_from_config(json.loads(json.dumps(schedule.config()))) == schedule


@settings(max_examples=8, deadline=None)
@given(betas=st.lists(st.floats(1e-4, 0.5), min_size=2, max_size=20))
def test_trained_betas_survive_the_round_trip(saved, tmp_path_factory, betas):
    folder = shutil.copytree(saved["ddpm"], tmp_path_factory.mktemp("betas") / "ddpm")
    scheduler = diffusers.DDPMScheduler(trained_betas=betas, num_train_timesteps=len(betas))
    schedule = fs.load_model(scheduler_folder(folder, scheduler)).schedule
    again = schedule_from_config(json.loads(json.dumps(schedule.config())))
    assert torch.equal(again.alpha_bar, schedule.alpha_bar) and again.config() == schedule.config()
    assert torch.equal(schedule.alpha_bar.float(), scheduler.alphas_cumprod)


def test_a_row_without_signal_is_dropped(saved, tmp_path):
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    folder = shutil.copytree(saved["ddim"], tmp_path / "ddim")
    model = fs.load_model(scheduler_folder(folder, scheduler))
    assert len(model.schedule.alpha_bar) == 999 and model.prediction == "v"
    assert float(model.schedule.time_input(torch.tensor(model.schedule.t_max))) == 998


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    ],
    ids=["euler", "unipc"],
)
def test_flow(saved, tmp_path, scheduler):
    folder = shutil.copytree(saved["ddim"], tmp_path / "flow")
    model = fs.load_model(scheduler_folder(folder, scheduler))
    assert (model.schedule, model.prediction) == (Flow(), "u")
    x = torch.randn(2, 3, 8, 8, generator=generator(2))
    velocity = tiny.unet()(x, torch.tensor(250.0)).sample
    torch.testing.assert_close(Denoiser(model).x0(x, 0.25), x - 0.25 * velocity, **FLOAT32)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500),
        # feeds the network a log of sigma
        diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
    ],
    ids=["inverted", "500", "continuous"],
)
def test_other_ways_of_telling_the_time_are_refused(saved, tmp_path, scheduler):
    folder = scheduler_folder(shutil.copytree(saved["ddim"], tmp_path / "other"), scheduler)
    with pytest.raises(
        ConfigError, match="must be a DDPM table or a flow of 1000 timesteps, but .*pass schedule"
    ):
        fs.load_model(folder)


def test_what_the_scheduler_does_not_say_can_be_passed(saved, tmp_path):
    folder = scheduler_folder(shutil.copytree(saved["ddim"], tmp_path / "edm"), diffusers.EDMEulerScheduler())
    with pytest.raises(ConfigError, match="EDMEulerScheduler; put the conf.* Python, pass schedule"):
        fs.load_model(folder)
    model = load_diffusers(folder, schedule=VPLinear(), prediction="v")
    assert (model.schedule, model.prediction) == (VPLinear(), "v")
    (folder / "scheduler/scheduler_config.json").unlink()
    assert load_diffusers(folder, schedule=VPLinear(), prediction="eps").prediction == "eps"
    with pytest.raises(
        ConfigError,
        match="has no scheduler_config.json beside it; name the folder of the whole pipeline, with model_",
    ):
        fs.load_model(folder)


# Refusals

PIPELINE, NET = "model_index.json", "unet/config.json"


@pytest.mark.parametrize(
    "file, changes, sentence",
    [
        (
            PIPELINE,
            {"_class_name": "ConsistencyModelPipeline"},
            "must be of one of DDPMPipeline, .*'Consistency",
        ),
        (PIPELINE, {"_class_name": ["my_code", "MyPipeline"]}, "must be of one of DDPMPipeline, .*'my_code'"),
        (PIPELINE, {"unet": ["my_code", "MyUNet"]}, "no code of a folder is run; got .*'MyUNet'"),
        (PIPELINE, {"unet": "UNet2DModel"}, "unet must be a class of diffusers"),
        (PIPELINE, {"unet": None}, "unet must be a class of diffusers"),
        (
            NET,
            {"_class_name": "UNet2DConditionModel"},
            "must be of one of UNet2DModel.*'UNet2DConditionModel'",
        ),
        (NET, {"sample_size": None}, "sample_size must be the side of an image"),
        (NET, {"block_out_channels": [8, 32]}, "must be a complete UNet2DModel"),
        (NET, {"layers_per_block": 2}, "must be a complete UNet2DModel.*size mismatch"),
        (
            NET,
            {"mid_block_type": None},
            "must hold the tensors of its config.json, but 0 are missing and .* unknown",
        ),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "score"},
            "prediction_type 'score'; put the configuration .*; in Python, pass prediction",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "MyScheduler"},
            "of MyScheduler, which is no scheduler",
        ),
        ("scheduler/scheduler_config.json", {"beta_schedule": "steep"}, "that DDIMScheduler accepts"),
    ],
)
def test_refusals(saved, tmp_path, file, changes, sentence):
    with pytest.raises((ConfigError, DataError), match=sentence) as refusal:
        fs.load_model(edited(saved["ddim"], tmp_path / "bad", file, **changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            {"time_embedding_type": "learned", "num_train_timesteps": 1000},
            "time_embedding_type must be positional",
        ),
        ({"num_class_embeds": 10}, "must have no class embedding"),
        ({"out_channels": 5}, "out_channels must be in_channels, or twice that.*got 3 in and 5 out"),
    ],
)
def test_networks_that_cannot_be_sampled(saved, tmp_path, changes, sentence):
    folder = shutil.copytree(saved["ddim"], tmp_path / "bad")
    tiny.unet(**changes).save_pretrained(folder / "unet")
    with pytest.raises(ConfigError, match=sentence):
        fs.load_model(folder)


def test_pickled_weights_are_never_opened(saved, tmp_path):
    folder = shutil.copytree(saved["ddim"], tmp_path / "pickled")
    shutil.rmtree(folder / "unet")
    tiny.unet().save_pretrained(folder / "unet", safe_serialization=False)
    with pytest.raises(
        DataError, match=r"pickled weights are never opened; got diffusion_pytorch_model\.bin"
    ):
        fs.load_model(folder)


def test_damaged_and_missing_files(saved, tmp_path):
    folder = shutil.copytree(saved["ddim"], tmp_path / "damaged")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="must be a complete UNet2DModel, but reading it fails"):
        fs.load_model(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(DataError, match="must be JSON"):
        fs.load_model(folder)
    with pytest.raises(ConfigError, match="must be a UNet2DModel, or a pipeline.*got a AutoencoderKL"):
        fs.load_model(saved["dit"] / "vae")
    with pytest.raises(DataError, match="no model folder at"):
        fs.load_model(tmp_path / "nowhere")


# The dispatcher


def test_a_folder_of_this_project_needs_no_diffusers(tmp_path, saved):
    save_model(
        tmp_path / "own", UNet(8, 1, 8, multipliers=(1,), blocks=1, attention=()), schedule=fs.VPLinear(),
        prediction="v", shape=(1, 8, 8), name="own", card={},
    )  # fmt: skip
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import fewstep as fs\n"
        f"assert fs.load_model({str(tmp_path / 'own')!r}).name == 'own'\n"
        f"try: fs.load_model({str(saved['ddim'])!r})\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "install it with pip install 'fewstep[diffusers]'" in done.stdout
