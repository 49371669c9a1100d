"""Plans that are nothing but a grid as the lists of numbers that other programs take, and such lists as grids.

sigmas            noise of the states, sigma / alpha, or a flow's time, down to 0, as k-diffusion has them
comfyui           the same in one line, for ComfyUI's node ManualSigmas
diffusers-sigmas  for the argument sigmas of diffusers: of flows without the 0, and before the scheduler's shift
ays               rows of a DDPM table, whole numbers, as Align Your Steps has them [sabour2024ays]
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.grids import of_rows
from fewstep.diffusion.schedule import DDPMTable, Flow, Schedule, schedule_from_config
from fewstep.sampling.plan import Plan
from fewstep.sampling.presets import PRESETS, Preset

KINDS = ("sigmas", "comfyui", "diffusers-sigmas", "ays")
WHOLE = 1e-6  # rows by which a time may be off a whole one


def sampler_of(plan: Plan) -> Preset:
    """The known sampler that a plan is on its times.
    Raises: ConfigError: it is none, so that a list of times would not say all of it.
    """
    times = [node.t for node in plan.nodes]
    schedule = schedule_from_config(dict(plan.schedule))
    named = [PRESETS[name] for name in (str(plan.provenance.get("preset")), *PRESETS) if name in PRESETS]
    for preset in named:
        try:
            same = preset.sampler(schedule, times)
        except ConfigError:
            continue
        if (
            (same.nodes, same.steps) == (plan.nodes, plan.steps)
            and plan.clip is None
            and plan.skip_scale is None
        ):
            return preset
    raise ConfigError(
        f"A list of times says all of a plan only where its steps are a known sampler's, but those of "
        f"{plan.name or 'this plan'} are its own; write it with fewstep export, or run its compiled rows."
    )


def list_of(plan: Plan, kind: str, *, shift: float = 1.0) -> list[float]:
    """The list of a kind that stands for a plan's times.

    Args: shift: of the scheduler that will be given diffusers-sigmas, which it applies again.
    Raises: ConfigError: the plan is more than a grid, or the list cannot say it.
    """
    _require_kind(kind)
    sampler_of(plan)
    if not plan.to_zero:
        raise ConfigError(
            f"Lists of {kind} end at clean data, but {plan.name or 'the plan'} ends at {plan.nodes[-1].t:g}."
        )
    schedule = schedule_from_config(dict(plan.schedule))
    t = torch.tensor([node.t for node in plan.nodes[:-1]], dtype=torch.float64)
    if kind == "ays":
        rows = schedule.time_input(t) if isinstance(schedule, DDPMTable) else torch.full_like(t, math.nan)
        if not bool(((rows - rows.round()).abs() <= WHOLE).all()):
            raise ConfigError(
                "A list of ays holds whole rows of a DDPM table, to which the plan's times would have to be rounded; "
                "take sigmas instead."
            )
        return rows.round().tolist()
    sigmas: list[float] = (t if isinstance(schedule, Flow) else schedule.edm_sigma(t)).tolist()
    if kind != "diffusers-sigmas":
        return [*sigmas, 0.0]
    if isinstance(schedule, Flow):
        return [sigma / (shift - (shift - 1) * sigma) for sigma in sigmas]
    if shift != 1.0:
        raise ConfigError(f"A shift is for flows; the plan's schedule is {dict(plan.schedule)!r:.60}.")
    return [*sigmas, 0.0]


def times_of(values: Sequence[float], kind: str, schedule: Schedule, *, shift: float = 1.0) -> list[float]:
    """Falling times of a list, without the 0 at its end: a grid for presets with `to_zero`.
    Raises: ConfigError: the list does not fall, or leaves the range of the model.
    """
    _require_kind(kind)
    if kind == "ays":
        if any(value != round(value) for value in values):
            raise ConfigError(f"A list of ays holds whole rows; got {values!r:.80}.")
        return of_rows(schedule, [int(value) for value in values])
    ending = kind != "diffusers-sigmas" or not isinstance(schedule, Flow)
    if ending and (not values or values[-1] != 0):
        raise ConfigError(
            f"A list of {kind} must end with 0; got {', '.join(f'{v:g}' for v in values[-3:])}."
        )
    sigmas = torch.tensor(values[:-1] if ending else values, dtype=torch.float64)
    if isinstance(schedule, Flow):
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas) if kind == "diffusers-sigmas" else sigmas
        t = sigmas.clamp(max=schedule.t_max)  # pipelines begin at 1
    else:
        t = schedule.t_of_lambda(-sigmas.log())
    slack = 1e-6 * schedule.t_max
    ts: list[float] = t.tolist()
    inside = all(schedule.t_min - slack <= value <= schedule.t_max + slack for value in ts)
    if not ts or not inside or not bool((t.diff() < 0).all()):
        raise ConfigError(
            f"A list of {kind} must fall within the model's noise levels; got {', '.join(f'{v:g}' for v in values)}."
        )
    return [min(value, schedule.t_max) for value in ts]


def read_list(path: Path) -> list[float]:
    """Numbers in a text, separated by commas, blanks or lines, in brackets or not.
    Raises: DataError: no such file, or something that is no number.
    """
    try:
        words = re.split(r"[\s,;]+", path.read_text(encoding="utf-8").strip().strip("[]()"))
        return [float(word) for word in words if word]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must hold numbers such as 14.6, 5.1, 0, but: {error}.") from None


def text_of(values: Sequence[float], kind: str) -> str:
    """A list as the text of a file."""
    written = [f"{value:.0f}" if kind == "ays" else repr(value) for value in values]
    return (", ".join(written) if kind != "sigmas" else "\n".join(written)) + "\n"


def _require_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ConfigError(f"A list must be one of {', '.join(KINDS)}; got {kind!r}.")
