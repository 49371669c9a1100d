"""What a search will cost, told before it starts."""

import time
from collections.abc import Sequence

import torch

from fewstep.diffusion.denoiser import Denoiser
from fewstep.methods.s3.stage.known import KNOWN, SECOND_LOOK
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.methods.s3.teacher import TRAJECTORY_NOISES, TRAJECTORY_STEPS
from fewstep.rng import ImageNoise
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task

GRADIENT = 3.5  # forward calls that a call with its gradient takes, with the network computed again
SPACINGS = 6  # of each known sampler
CHECKS = 7  # validations of a polish


def evaluations(settings: SearchSettings, numbers: Sequence[int]) -> int:
    """About how many evaluations on one image a search makes at some numbers of calls, gradients as `GRADIENT`."""
    teacher = 2 * settings.noises * settings.teacher_nfe + TRAJECTORY_NOISES * TRAJECTORY_STEPS
    images = (
        len(PRESETS) * SPACINGS * settings.look_noises
        + SECOND_LOOK * settings.noises
        + (settings.trials + KNOWN) * settings.trial_noises
        + settings.polish_iterations * settings.polish_noises * (1 + GRADIENT)
        + (CHECKS + 3 * settings.finalists) * settings.noises
    )
    return int(teacher + images * sum(numbers))


def told_cost(task: Task, settings: SearchSettings, numbers: Sequence[int]) -> str:
    """Evaluations, rows of the network, time from one call that is made, and the memory of the network's weights."""
    model, n = task.model, evaluations(settings, numbers)
    seeds = range(settings.seed, settings.seed + min(settings.batch_size, settings.noises))
    x = ImageNoise(seeds, model.shape)().to(model.device)
    denoiser = Denoiser(model, condition=model.condition_of(seeds), guidance=task.guidance)
    with torch.inference_mode():
        started = time.perf_counter()
        denoiser.output(x, 0.5 * (model.schedule.t_min + model.schedule.t_max))
        seconds = (time.perf_counter() - started) / len(seeds)
    weights = (
        sum(p.numel() * p.element_size() for p in model.net.parameters()) if model.net is not None else 0
    )
    hours = n * seconds / 3600
    length = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return (
        f"search: about {n:,} evaluations of {model.rows} network rows each, {length} at {1000 * seconds:.3g} ms an "
        f"evaluation; weights of the network {weights / 1e9:.2g} GB"
    )
