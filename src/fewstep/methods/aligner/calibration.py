"""The conditioning timestep with which a network predicts the drawn noise best, over all times: its calibration."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from fewstep.diffusion.condition import Condition
from fewstep.methods.aligner.align import align
from fewstep.methods.aligner.fine import Calibration
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task


def calibrate(
    task: Task,
    images: Tensor,
    *,
    seeds: Sequence[int],
    gate_seeds: Sequence[int],
    condition: Condition | None = None,
    points: int = 24,
    grid: str = "uniform-lambda",
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Calibration:
    """Fit the conditioning timestep at some times, by the objective `denoise`; the time itself where none is better.

    Args:
        task: model and how it is called.
        images: x0 in [-1, 1] (N, *shape), or latents, as many as seeds of both kinds.
        seeds: noises of the fit.
        gate_seeds: noises that decide.
        condition: of each image, N of them, for models that take one.
        points: how many times.
        grid: their spacing, a key of GRIDS.
        progress: wraps the times.

    Returns:
        For the fine path of `align`.
    """
    plan = PRESETS["ddim"](task.model.schedule, points, grid=grid)
    found = align(
        task,
        plan,
        seeds=seeds,
        gate_seeds=gate_seeds,
        objective="denoise",
        images=images,
        condition=condition,
        gate="steps",
        progress=progress,
    )
    return Calibration(tuple(n.t for n in found.nodes), tuple(n.t_cond for n in found.nodes))
