"""Text-to-image pipelines as functions: equal to their own runs, with gradients, and left as they were."""

import functools

import diffusers
import pytest
import tiny_text
import torch
from tiny_text import CALLS, KINDS, PROMPTS

import fewstep as fs
from fewstep.checks import ConfigError, DataError
from fewstep.data.prompts import prompts_condition
from fewstep.diffusion.grids import of_rows
from fewstep.diffusion.schedule import Flow
from fewstep.interop.diffusers_plan import to_diffusers
from fewstep.interop.text_model import pipeline_model, with_prompts
from fewstep.rng import ImageNoise, generator
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import Costs
from fewstep.sampling.solver import Values

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about processors that are not used

QUICK = ("sd15", "flux")
ALL = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
FLOAT32 = 1e-4  # of the standard deviation of what is compared
NOT_DOUBLE = ("sana", "sana-pag", "lumina", "lumina2")
"""Their text encoder, Gemma, gives no finite numbers in float64."""
HEARD = 0.1  # another prompt moves the output by more


def off(a, b):
    """Largest difference in standard deviations."""
    return float((a - b).abs().max() / b.std())


@functools.cache
def model_of(kind):
    model = pipeline_model(tiny_text.pipeline(kind), CALLS[kind], name=kind)
    return with_prompts(model, prompts_condition(PROMPTS))


def own_run(kind, n, **more):
    """Outputs, timesteps and states that the pipeline hands to its own scheduler, and its result."""
    pipe, seen = tiny_text.pipeline(kind), []
    own = pipe.scheduler.step

    @functools.wraps(own)
    def step(output, t, x, *args, **kwargs):
        seen.append((output.clone(), float(t), x.clone()))
        return own(output, t, x, *args, **kwargs)

    pipe.scheduler.step = step
    try:
        noise = [torch.Generator().manual_seed(i) for i in (0, 1)]
        arguments = {"output_type": "latent", "generator": noise, **CALLS[kind], **more}
        made = pipe(prompt=list(PROMPTS[:2]), num_inference_steps=n, **arguments).images
    finally:
        del pipe.scheduler.__dict__["step"]
    return seen, made


@pytest.mark.parametrize("kind", ALL)
def test_a_function_is_what_the_pipeline_hands_to_its_scheduler(kind):
    asked = model_of(kind).fn.asked
    seen, latents = own_run(kind, 3)
    scheduler = tiny_text.pipeline(kind).scheduler
    heard = 0.0
    for k, (output, t, x) in enumerate(seen):
        if isinstance(scheduler, diffusers.EulerDiscreteScheduler):  # its states are not of unit variance
            x = x / (1 + float(scheduler.sigmas[k]) ** 2) ** 0.5
        with torch.no_grad():
            assert off(asked(x, torch.tensor(t), PROMPTS[:2]), output) < FLOAT32
            heard = max(heard, off(asked(x, torch.tensor(t), PROMPTS[2:]), output))
    assert heard > HEARD
    images = own_run(kind, 3, output_type="pt")[1]
    with torch.no_grad():
        assert torch.equal(asked.decode(latents), 2 * images - 1)
    assert model_of(kind).rows == tiny_text.ROWS.get(kind, 2)


def loop_against_scheduler(kind):
    """DDIM, or Euler from sigma = 1 - 1e-6, on the timesteps that the pipeline's scheduler takes: the difference."""
    model, pipe, n = model_of(kind), tiny_text.pipeline(kind), 4
    x_T = ImageNoise([0, 1], model.shape)()
    own = pipe.scheduler
    if isinstance(model.schedule, Flow):
        seen, theirs = own_run(kind, n, latents=x_T)
        ts = [min(t / 1000, Flow.t_max) for _, t, _ in seen]
        plan = PRESETS["ddim"](model.schedule, n, grid=ts, to_zero=True)
    else:
        pipe.scheduler = diffusers.DDIMScheduler.from_config(
            own.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
        )
        try:
            seen, theirs = own_run(kind, n, latents=x_T)
        finally:
            pipe.scheduler = own
        rows = of_rows(model.schedule, [int(t) for _, t, _ in seen])
        plan = PRESETS["ddim"](model.schedule, n, grid=rows, to_zero=True)
    return off(fs.solve(model, plan, x_T, condition=model.condition_of([0, 1])), theirs)


@pytest.mark.parametrize("kind", ALL)
def test_our_loop_is_their_scheduler(kind):
    # flows start at 1 there, not at 1 - 1e-6, which moves the result by up to 3e-4, and Chroma's by 1.4e-3
    allowed = FLOAT32 if not isinstance(model_of(kind).schedule, Flow) else 2e-3 if kind == "chroma" else 5e-4
    assert loop_against_scheduler(kind) < allowed


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("preset", ["unipc-2", "dpmpp-3m"])
def test_exported_plans_run_in_the_pipeline(kind, preset):
    model, pipe = model_of(kind), tiny_text.pipeline(kind)
    grid = "shifted:3" if isinstance(model.schedule, Flow) else "uniform-lambda"
    plan = PRESETS[preset](model.schedule, 5, grid=grid, to_zero=True)
    x_T = ImageNoise([0, 1], model.shape)()
    ours = fs.solve(model, plan, x_T, condition=model.condition_of([0, 1]))
    own, pipe.scheduler = pipe.scheduler, to_diffusers(plan, model)
    try:
        more = {**CALLS[kind], "output_type": "latent", "latents": x_T}
        theirs = pipe(prompt=list(PROMPTS[:2]), num_inference_steps=5, **more).images
    finally:
        pipe.scheduler = own
    # extrapolation over five steps multiplies float32's rounding by up to 50 between the two orders of sums
    assert off(theirs, ours) < 5e-4


def test_export_refuses_what_starts_in_the_middle():
    pipe = tiny_text.pipeline("sd15")
    model = model_of("sd15")
    middle = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    middle.scheduler = to_diffusers(PRESETS["ddim"](model.schedule, 4), model)
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="not for image-to-image and inpainting"):
        middle(prompt=PROMPTS[0], image=image, num_inference_steps=4, strength=0.5, output_type="latent")
    with pytest.raises(ValueError, match="num_inference_steps must be 4, .* got 3 sigmas"):
        middle.scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.3])


@pytest.mark.parametrize("kind", QUICK)
def test_the_pipeline_is_as_before(kind):
    pipe, model = tiny_text.pipeline(kind), model_of(kind)
    before = dict(pipe.__dict__), torch.get_rng_state()
    hooks = sum(len(m._forward_pre_hooks) for m in pipe.components.values() if isinstance(m, torch.nn.Module))
    x = ImageNoise([0, 1], model.shape)()
    fs.sample(model, PRESETS["ddim"](model.schedule, 2), seeds=[0, 1], condition=model.condition_of([0, 1]))
    k = torch.tensor(500.0, requires_grad=True)
    model.fn.asked(x, k, PROMPTS[:2]).sum().backward()
    with pytest.raises(DataError, match="A state of .* must be"):
        model.fn.asked(x[:, :1, :3], torch.tensor(500.0), ["x"])
    assert dict(pipe.__dict__) == before[0] and torch.equal(torch.get_rng_state(), before[1])
    after = sum(len(m._forward_pre_hooks) for m in pipe.components.values() if isinstance(m, torch.nn.Module))
    assert hooks == after


@functools.cache
def double_model(kind):
    """In float64, where finite differences have digits; a pipeline of its own."""
    pipe = KINDS[kind]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.double()
    return with_prompts(pipeline_model(pipe, CALLS[kind]), prompts_condition(PROMPTS))


@pytest.mark.parametrize(
    "kind",
    ["flux", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k not in ("flux", *NOT_DOUBLE))],
)
def test_slopes_are_those_of_finite_differences(kind):
    """Of a loss in one log-SNR and one conditioning time; checkpointing changes no bit."""
    model = double_model(kind)
    plan = PRESETS["dpmpp-2m"](model.schedule, 3, grid="uniform-lambda", to_zero=True)
    plan = plan.with_node(1, t_cond=plan.nodes[1].t * 0.98)
    x, w = (torch.randn(1, *model.shape, generator=generator(s), dtype=torch.float64) for s in (3, 4))
    values = Values.of(plan)

    def loss(moved, told):
        from dataclasses import replace

        put = replace(values, lambdas=moved, t_cond=told)
        made = fs.solve(model, plan, x, condition=model.condition_of([1]), values=put)
        return (made * w).mean()

    slopes = {}
    for checkpointed in (True, False):
        model.fn.asked.checkpointed = checkpointed
        leaves = values.lambdas.clone().requires_grad_(), values.t_cond.clone().requires_grad_()
        loss(*leaves).backward()
        slopes[checkpointed] = float(leaves[0].grad[1]), float(leaves[1].grad[0])
    assert slopes[True] == slopes[False]
    step = torch.zeros_like(values.lambdas)
    step[1] = 1e-4
    with torch.no_grad():
        by_lambda = (
            loss(values.lambdas + step, values.t_cond) - loss(values.lambdas - step, values.t_cond)
        ) / 2e-4
        by_told = (
            loss(values.lambdas, values.t_cond + 2e-5) - loss(values.lambdas, values.t_cond - 2e-5)
        ) / 4e-5
    assert slopes[True] == pytest.approx(
        (float(by_lambda), float(by_told)), rel=0.03
    )  # between rows of tables slopes have kinks


@pytest.mark.parametrize("kind", QUICK)
def test_an_image_does_not_depend_on_its_batch(kind):
    model = model_of(kind)
    x = ImageNoise([0, 1], model.shape)()
    with torch.no_grad():
        both = model.fn.asked(x, torch.tensor(500.0), PROMPTS[:2])
        alone = model.fn.asked(x[1:], torch.tensor(500.0), PROMPTS[1:2])
    assert off(both[1:], alone) < FLOAT32


def test_guidance_counts_its_rows():
    model = model_of("sd15")
    costs = Costs()
    fs.sample(
        model, PRESETS["ddim"](model.schedule, 3), seeds=[0], condition=model.condition_of([0]), costs=costs
    )
    assert (costs.nfe, costs.network_calls) == (3, 6)


@pytest.mark.parametrize("kind", QUICK)
def test_default_guidance_is_the_same_at_each_step(kind):
    asked = model_of(kind).fn.asked
    assert asked.counts_steps(ImageNoise([0], asked.shape)(), PROMPTS[:1]) == 0


def test_guidance_by_the_number_of_the_step_is_refused():
    call = {**CALLS["sd3"], "skip_guidance_layers": [1], "skip_layer_guidance_start": 0.01}
    with pytest.raises(
        ConfigError, match="same at every step.*skip_guidance_layers, skip_layer_guidance_start"
    ):
        pipeline_model(tiny_text.pipeline("sd3"), {**call, "skip_layer_guidance_stop": 0.6})


def test_remembered_prompts_need_no_encoders():
    model = model_of("flux")
    asked, pipe = model.fn.asked, tiny_text.pipeline("flux")
    x = ImageNoise([0, 1], model.shape)()
    with torch.no_grad():
        before = asked(x, torch.tensor(500.0), PROMPTS[:2])
        kept = {name: pipe.__dict__[name] for name in ("text_encoder", "text_encoder_2")}
        asked.remember(PROMPTS)
        asked.drop_encoders()
        try:
            assert pipe.text_encoder is None
            assert torch.equal(asked(x, torch.tensor(500.0), PROMPTS[:2]), before)
            assert asked.decode(x).shape == (2, 3, 32, 32)
        finally:
            pipe.__dict__.update(kept)


@pytest.mark.parametrize(
    "call, words",
    [
        (
            {"guidance": 3.0},
            r"must hold arguments of StableDiffusionPipeline \(.*guidance_scale.*\).*; got 'guidance'",
        ),
        ({"num_inference_steps": 4}, "must not set num_inference_steps, which sampling sets"),
        ({"prompt_embeds": 1}, "must not set prompt_embeds"),
        ({"height": 31, "width": 32}, "must run with height=31, width=32, but fails .*divisible by 8"),
    ],
)
def test_calls_that_cannot_be(call, words):
    with pytest.raises(ConfigError, match=words):
        pipeline_model(tiny_text.pipeline("sd15"), call)


@pytest.mark.parametrize("scheduler", ["LCMScheduler", "TCDScheduler"])
def test_distilled_networks_are_refused(scheduler):
    pipe = tiny_text.pipeline("sd15")
    own, pipe.scheduler = pipe.scheduler, getattr(diffusers, scheduler)()
    try:
        with pytest.raises(ConfigError, match=f"this pipeline .{scheduler}. was distilled to jumps"):
            pipeline_model(pipe)
    finally:
        pipe.scheduler = own


def test_pipelines_without_the_interface_are_refused():
    from diffusers import DDIMScheduler, DDPMPipeline
    from tiny import unet

    with pytest.raises(ConfigError, match="DDPMPipeline lacks prepare_latents, encode_prompt, prompt"):
        pipeline_model(DDPMPipeline(unet(), DDIMScheduler()))


def test_prompts_that_are_cut_off_or_unknown_are_refused():
    model = pipeline_model(tiny_text.pipeline("sd15"))
    with pytest.raises(DataError, match="Prompt 2 must be at most 77 tokens.* 'a house with.* has"):
        with_prompts(model, prompts_condition(["a cat", "a house with " + "many " * 30 + "windows"]))
    with pytest.raises(DataError, match="Prompt 1 has <my-cat>, which no tokenizer"):
        with_prompts(model, prompts_condition(["a photo of <my-cat>"]))
