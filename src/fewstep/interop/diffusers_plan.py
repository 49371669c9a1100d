"""Plans as schedulers of diffusers, for pipelines that know nothing of fewstep."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Classes
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import DDPMTable, Flow, Schedule
from fewstep.files import atomic_dir
from fewstep.interop import diffusers_scheduler
from fewstep.interop.diffusers_scheduler import PlanScheduler
from fewstep.interop.text_model import SETTINGS
from fewstep.sampling.linear import linear_form
from fewstep.sampling.plan import Plan, require_no_parallel_calls
from fewstep.sampling.sample import check_fingerprint, start_std

MODULE = "fewstep_scheduler"

README = """# {name}

A sampler of {n} network evaluations for diffusers, made by fewstep; it needs torch and diffusers alone.

    import sys; sys.path.insert(0, "{place}")
    from {module} import PlanScheduler
    pipe = DiffusionPipeline.from_pretrained(..., scheduler=PlanScheduler.from_pretrained("{place}"))
    pipe({prompt}num_inference_steps={n}{guidance}, ...)

In a pipeline that is loaded already, `pipe.scheduler = PlanScheduler.from_pretrained("{place}")`. A pipeline that
was saved with it loads again where `{module}.py` is copied into its folder `scheduler`, with trust_remote_code=True.
It is for text-to-image and unconditional pipelines: image-to-image and inpainting start in the middle, and are refused.

It starts at noise of standard deviation {start:.6g}{start_note}.
Plan {hash}, for the model {fingerprint}.
"""
START_NOTE = """, which the pipeline takes from `scheduler.init_noise_sigma`;
DDPMPipeline, DDIMPipeline and DiTPipeline do not, and are refused where it differs from 1 by more than {tolerance}"""


def to_diffusers(plan: Plan, model: Model) -> PlanScheduler:
    """The scheduler that does in a pipeline of diffusers what `solve` does here.

    `afs_zero` becomes a factor on the starting noise: the clean image that it assumes adds nothing.

    Raises:
        ConfigError: the plan is for another model, or does what a scheduler cannot: it draws noise, starts from the
            mean of the data, changes the network, or reads outputs of EDM's preconditioning.
    """
    check_fingerprint(model, plan)
    if plan.changes_network or plan.uses_sub_networks:
        raise ConfigError(
            "A scheduler cannot change the network, so width, quant and skip_scale must be null; "
            f"{plan.name or 'the plan'} sets one, so sample it here."
        )
    if plan.nodes[0].eval == "afs_mean":
        raise ConfigError(
            "A scheduler does not know the mean of the data, so nodes[0].eval must not be afs_mean; "
            "use afs_zero or net."
        )
    require_no_parallel_calls(plan, "A scheduler")
    if model.prediction == "edm":
        raise ConfigError(
            "A scheduler reads eps, x0, v or u, but the model predicts edm, whose input is scaled, too; sample it here."
        )
    rows = linear_form(plan, model.schedule, model.prediction)
    start = start_std(model, plan)
    analytic = sum(row.kind == "afs_zero" for row in rows)
    for row in rows[:analytic]:
        start *= float(row.A)
    times = torch.tensor([float(row.t) for row in rows[analytic:]], dtype=torch.float64)
    if not len(times):
        raise ConfigError(f"The plan {plan.name!r} must call the network at least once; got 0 calls.")
    return PlanScheduler(
        timesteps=model.schedule.time_input(times).tolist(),
        rows=[
            [*map(float, row.x0), float(row.A), [float(weight) for weight in row.c[analytic:]]]
            for row in rows[analytic:]
        ],
        init_noise_sigma=start,
        clip=plan.clip,
        num_train_timesteps=len(model.schedule.alpha_bar) if isinstance(model.schedule, DDPMTable) else 1000,
        guidance_scale=plan.guidance,
        plan_name=plan.name,
        plan_hash=plan.hash,
        model_fingerprint=model.fingerprint,
        state_sigmas=_state_sigmas(plan, model.schedule, [row.node for row in rows[analytic:]]),
    )


def _state_sigmas(plan: Plan, schedule: Schedule, nodes: Sequence[int]) -> list[float]:
    """Noise of the states at some nodes, as schedulers of diffusers count it."""
    lambdas = torch.tensor([plan.nodes[i].lambda_ for i in nodes], dtype=torch.float64)
    t = schedule.t_of_lambda(lambdas)
    noise: list[float] = (t if isinstance(schedule, Flow) else schedule.edm_sigma(t)).tolist()
    return noise


def said_of_call(call: Mapping[str, Any]) -> str:
    """The arguments of a pipeline's call, as code; how the pipeline was loaded is not among them."""
    given = {name: value for name, value in call.items() if name not in (*SETTINGS, "pipeline")}
    return "".join(f", {name}={value!r}" for name, value in given.items())


def export_diffusers(plan: Plan, model: Model, out: str | Path) -> PlanScheduler:
    """Write the scheduler as a folder: its numbers, its code, and how to use them; the folder appears whole.
    Raises: ConfigError: as in `to_diffusers`, or `out` holds something else, such as a pipeline's own scheduler.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / f"{MODULE}.py").exists()):
        raise ConfigError(
            f"{out} must be a new folder or an earlier export, but it holds something else; choose another place."
        )
    scheduler = to_diffusers(plan, model)
    config = scheduler.config
    # a pipeline for classes has a scale of its own, where ours is 1
    scale = 1.0 if plan.guidance is None and isinstance(model.conditions, Classes) else plan.guidance
    text = README.format(
        name=plan.name or "A sampling plan",
        n=scheduler.num_inference_steps,
        place=out.name,
        module=MODULE,
        prompt="" if model.call is None else "prompt, ",
        guidance=said_of_call(model.call)
        if model.call is not None
        else ""
        if scale is None
        else f", guidance_scale={scale:g}",
        start=config.init_noise_sigma,
        start_note=""
        if config.init_noise_sigma == 1
        else START_NOTE.format(tolerance=diffusers_scheduler.START_TOLERANCE),
        hash=config.plan_hash,
        fingerprint=config.model_fingerprint or "of any weights",
    )
    with atomic_dir(out) as folder:
        scheduler.save_pretrained(folder)
        shutil.copyfile(diffusers_scheduler.__file__, folder / f"{MODULE}.py")
        (folder / "README.md").write_text(text, encoding="utf-8")
    return scheduler
