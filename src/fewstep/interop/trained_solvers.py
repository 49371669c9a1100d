"""Solvers that other programs trained, read from their files of tensors as plans.

A file is read by torch's reader of tensors, which runs no code: whole pickled predictors, as DyWeight, EPD and AMED
save them, are refused. What such a file does not say, such as the grid, stands in the file of settings that its
program leaves beside it (`training_options.json`, `config.yml`), or is given.
"""

import math
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import EDM, Schedule, VPLinear
from fewstep.files import read_json
from fewstep.sampling.plan import Plan
from fewstep.sampling.presets import dpmpp_2m, dpmpp_3m, ipndm, unipc
from fewstep.sampling.trained import (
    dual_solver,
    dyweight,
    generalized_solver,
    parallel_directions,
    plan_of,
    told_otherwise,
)

SIGMA_MAX = 80.0  # where EDM's sampler, and those that follow it, start
VP_SIGMAS = (
    0.1,
    19.9,
)  # beta_min and beta_d of the schedule that GAS has of EDM's networks [karras2022edm, Table 1]
SETTINGS_FILES = ("training_options.json", "config.yml")

Settings = Mapping[str, Any]
Read = Callable[[Any, Schedule, Settings, str], Plan]


@dataclass(frozen=True)
class Kind:
    """A program's trained solver.

    Attributes:
        read: from what its file holds, the model's schedule, settings and the file's name to a plan.
        settings: what it reads of the settings, with the values that its program has where nothing is said; ... where
            something must be.
    """

    read: Read
    settings: Mapping[str, Any]


def read_solver(path: Path, kind: str, schedule: Schedule, given: Settings) -> Plan:
    """A trained solver as a plan for a model of `schedule`.

    Args:
        path: file of its tensors.
        kind: a key of `SOLVERS`.
        schedule: of the model that it was trained for.
        given: settings, which count before those in the file beside it.

    Raises:
        ConfigError: an unknown kind or setting, or a solver that no plan can say.
        DataError: no such file, pickled code, or a tensor that is missing or of another shape.
    """
    if kind not in SOLVERS:
        raise ConfigError(f"A trained solver must be one of {', '.join(SOLVERS)}; got {kind!r}.")
    chosen = SOLVERS[kind]
    unknown = [name for name in given if name not in chosen.settings]
    if unknown:
        raise ConfigError(
            f"A setting of {kind} must be one of {', '.join(chosen.settings)}; got {unknown[0]!r}."
        )
    beside = {name: value for name, value in _beside(path).items() if name in chosen.settings}
    settings = {**chosen.settings, **beside, **given}
    for name, value in settings.items():
        if value is ...:
            raise ConfigError(
                f"{name} of {path} must be said, but neither the file nor {' or '.join(SETTINGS_FILES)} beside it "
                f"says it; add --setting {name}=..."
            )
    plan = chosen.read(_tensors(path), schedule, settings, str(path))
    return replace(plan, provenance={**plan.provenance, "trained": kind})


def _tensors(path: Path) -> Any:
    """What a file of tensors holds.
    Raises: DataError: no such file, or one with more than tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles by other protocols, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path} must be a file of tensors, but: {error}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError):
        raise DataError(
            f"{path} must hold tensors and nothing else, as torch.save(predictor.state_dict(), FILE) writes them; it "
            "is no such file or has pickled code, which is not run; save the tensors in the program that made it."
        ) from None


def _beside(path: Path) -> dict[str, Any]:
    """The settings that a program left beside its file, if it did."""
    options, config = (path.parent / name for name in SETTINGS_FILES)
    found = read_json(options) if options.is_file() else _yaml(config) if config.is_file() else {}
    found = found.get("pred_kwargs", found) if isinstance(found, dict) else {}
    return dict(found) if isinstance(found, dict) else {}


def _yaml(file: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise DataError(f"{file} must be YAML, but: {' '.join(str(error).split())}") from None


def _tensor(found: Any, name: str, file: str, shape: Sequence[int | None]) -> Tensor:
    """A tensor of a name in float64; None in `shape` is any length."""
    value = found.get(name) if isinstance(found, Mapping) else None
    if not isinstance(value, Tensor):
        has = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise DataError(f"{file} must hold the tensor {name}; it has {has or 'nothing'}.")
    fits = value.ndim == len(shape) and all(
        n in (None, m) and m > 0 for n, m in zip(shape, value.shape, strict=True)
    )
    if not fits or not bool(value.isfinite().all()):
        wanted = ", ".join("n" if n is None else str(n) for n in shape)
        raise DataError(f"{name} of {file} must be finite and of shape ({wanted}); got {tuple(value.shape)}.")
    return value.detach().double()


def _flag(settings: Settings, name: str) -> bool:
    value = settings[name]
    if not isinstance(value, bool):
        raise ConfigError(f"The setting {name} must be true or false; got {value!r}.")
    return value


def _number(settings: Settings, name: str) -> float:
    value = settings[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"The setting {name} must be a number; got {value!r}.")
    return float(value)


def _levels(settings: Settings, schedule: Schedule, n_steps: int) -> Tensor:
    """The grid of diff-sampler and those that follow it: edm_sigmas, (n_steps + 1,)."""
    ends = torch.tensor([schedule.t_min, schedule.t_start], dtype=torch.float64)
    low, most = schedule.edm_sigma(ends).tolist()
    low = low if settings["sigma_min"] is None else _number(settings, "sigma_min")
    high = min(most, SIGMA_MAX) if settings["sigma_max"] is None else _number(settings, "sigma_max")
    if high > most * (1 + 1e-9):
        raise ConfigError(f"The setting sigma_max must be at most the model's {most:g}; got {high:g}.")
    rho, share = _number(settings, "schedule_rho"), torch.arange(n_steps + 1, dtype=torch.float64) / n_steps
    if not 0 < low < high or not rho > 0:
        raise ConfigError(
            f"sigma_min < sigma_max and schedule_rho must be positive; got {low:g}, {high:g} and {rho:g}."
        )
    kind = settings["schedule_type"]
    levels: Tensor
    if kind == "polynomial":
        levels = (high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    elif kind == "logsnr":
        levels = (math.log(high) + share * (math.log(low) - math.log(high))).exp()
    elif kind == "time_uniform":
        last = 1e-3
        beta_d, beta_min = _betas(low, high, last)
        t = (1 + share * (last ** (1 / rho) - 1)) ** rho
        levels = (beta_d * t**2 / 2 + beta_min * t).expm1().sqrt()
    else:
        raise ConfigError(
            f"The setting schedule_type must be polynomial, logsnr or time_uniform; got {kind!r}; "
            "write the plan on its own times."
        )
    levels[0], levels[-1] = high, low
    return levels


def _betas(low: float, high: float, t_end: float) -> tuple[float, float]:
    """beta_d and beta_min of the variance-preserving schedule with edm_sigma `low` at t_end and `high` at 1."""
    ends = math.log1p(low**2), math.log1p(high**2)
    beta_d = 2 * (ends[0] / t_end - ends[1]) / (t_end - 1)
    return beta_d, ends[1] - beta_d / 2


def _edm_frame_plan(sampler: Any, schedule: Schedule, levels: Tensor, name: str) -> Plan:
    start, end = float(levels[0]), float(levels[-1])
    return plan_of(sampler, schedule, EDM(end, start), t_start=start, t_end=end, name=name)


def _dyweight(found: Any, schedule: Schedule, settings: Settings, file: str) -> Plan:
    weights = _tensor(found, "hybrid_weights", file, (None, None))
    n_steps = len(weights)
    weights = _tensor(found, "hybrid_weights", file, (n_steps, n_steps))
    if "mask" in found:
        weights = weights * _tensor(found, "mask", file, (n_steps, n_steps))
    if found.get("t_scale") is None:
        analytic = _flag(settings, "afs")
        told = torch.ones(n_steps - analytic, dtype=torch.float64)
    else:
        told = _tensor(found, "t_scale", file, (None,))
        analytic = len(told) == n_steps - 1
        told = _tensor(found, "t_scale", file, (n_steps - analytic,))
    levels = _levels(settings, schedule, n_steps)
    return _edm_frame_plan(dyweight(levels, weights, told, analytic=analytic), schedule, levels, "dyweight")


def _epd(found: Any, schedule: Schedule, settings: Settings, file: str) -> Plan:
    if settings["sampler_stu"] != "epd":
        raise ConfigError(
            f"{file} must be of EPD's own sampler; its plugin for {settings['sampler_stu']!r} cannot be read."
        )
    raw = _tensor(found, "r_params", file, (None, None))
    shape = tuple(raw.shape)
    weights = _tensor(found, "weight_s", file, shape).softmax(1)
    direction, told = (
        _near_one(found, f"{name}_params", file, shape, _number(settings, name))
        for name in ("scale_dir", "scale_time")
    )
    if _flag(settings, "fcn"):
        direction[-1] = 1
    levels = _levels(settings, schedule, shape[0])
    sampler = parallel_directions(
        levels, raw.sigmoid(), direction, told, weights, analytic=_flag(settings, "afs")
    )
    return _edm_frame_plan(sampler, schedule, levels, "epd")


def _near_one(found: Any, name: str, file: str, shape: Sequence[int], reach: float) -> Tensor:
    """Factors within 1 +- reach, of their logits; ones where there is no reach."""
    if reach == 0:
        return torch.ones(*shape, dtype=torch.float64)
    logits = _tensor(found, name, file, shape)
    factors: Tensor = 2 * (logits / 2).sigmoid() * reach + (1 - reach)
    return factors


def _amed(found: Any, schedule: Schedule, settings: Settings, file: str) -> Plan:
    split = _tensor(found, "r", file, (None,))[:, None]
    ones = torch.ones_like(split)
    direction, told = (
        _tensor(found, name, file, (len(split),))[:, None] if name in found else ones
        for name in ("scale_dir", "scale_time")
    )
    levels = _levels(settings, schedule, len(split))
    sampler = parallel_directions(levels, split, direction, told, ones, analytic=_flag(settings, "afs"))
    return _edm_frame_plan(sampler, schedule, levels, "amed-mean")


def _generalized_solver(found: Any, schedule: Schedule, settings: Settings, file: str) -> Plan:
    average = found.get("ema") if isinstance(found, Mapping) else None
    values = average.get("shadow_params") if isinstance(average, Mapping) else None
    if not isinstance(values, list) or len(values) < 4 or len(values) % 2:
        raise DataError(
            f"{file} must hold ema.shadow_params, the list of GAS's averaged tensors: logits of times, told times, and "
            f"two corrections for each order; got {len(values) if isinstance(values, list) else 'none'}."
        )
    n_steps = len(values[1]) if isinstance(values[1], Tensor) and values[1].ndim == 1 else 0
    names = ["mu_logit", "t_couple"]
    names += [f"{letter}{i}_diff" for i in range(1, len(values) // 2) for letter in "ca"]
    held = {
        name: _tensor({name: value}, name, file, (n_steps - 1 if name == "mu_logit" else n_steps,))
        for name, value in zip(names, values, strict=True)
    }
    t_end = _number(settings, "t_eps")
    if not 0 < t_end < 1:
        raise ConfigError(f"The setting t_eps must lie between 0 and 1; got {t_end:g}.")
    share = 1 - (held["mu_logit"].sigmoid() * (1 - 2e-5) + 1e-5).cumprod(0)  # their offset of the logits
    ends = torch.tensor([1.0, t_end], dtype=torch.float64)
    ts = torch.cat([ends[:1], (share * (1 - t_end) + t_end).flip(0), ends[1:]])
    frame = schedule
    if isinstance(schedule, EDM):
        beta_min, beta_d = VP_SIGMAS
        low, high = (math.sqrt(math.expm1(beta_d * t**2 / 2 + beta_min * t)) for t in (t_end, 1.0))
        beta_d, beta_min = _betas(max(low, schedule.t_min), min(high, schedule.t_max), t_end)
        frame = VPLinear(beta_min, beta_min + beta_d)
    orders = range(1, len(values) // 2)
    sampler = generalized_solver(
        frame,
        ts,
        held["t_couple"],
        [held[f"a{i}_diff"] for i in orders],
        [held[f"c{i}_diff"] for i in orders],
    )
    return plan_of(sampler, schedule, frame, t_start=1.0, t_end=t_end, name="gs")


def _ld3(found: Any, schedule: Schedule, settings: Settings, file: str) -> Plan:
    both = _tensor(found, "best_t_steps", file, (None,))
    if len(both) % 2 or len(both) < 4:
        raise DataError(f"best_t_steps of {file} must hold two grids of equal length; got {len(both)} times.")
    ts, told = both[: len(both) // 2], both[len(both) // 2 :]
    order, name, variant = settings["order"], settings["solver_name"], settings["unipc_variant"]
    times = ts.tolist()
    if name == "uni_pc":
        plan = unipc(schedule, times, order=order, variant=variant)
    elif name == "ipndm":
        plan = ipndm(schedule, times, order=order)
    elif name == "dpm_solver++" and order in (2, 3):
        plan = (dpmpp_2m if order == 2 else dpmpp_3m)(schedule, times, lower_final=True)
    else:
        raise ConfigError(
            f"The setting solver_name must be uni_pc, ipndm or dpm_solver++ (of order 2 or 3); got {name!r}."
        )
    sampler = told_otherwise(plan, schedule, told[:-1])
    return plan_of(sampler, schedule, schedule, t_start=times[0], t_end=times[-1], name=f"ld3.{name}")


def _dual_solver(found: Any, schedule: Schedule, settings: Settings, file: str) -> Plan:
    numbers = _tensor(found, "params", file, (None, 2, 5))
    steps = _tensor(found, "log_deltas", file, (len(numbers),)).softmax(0)
    start, end = schedule.t_start, schedule.t_min
    ts = torch.cat([torch.tensor([start], dtype=torch.float64), start - (start - end) * steps.cumsum(0)])
    ts[-1] = end
    if settings["order"] not in (1, 2):
        raise ConfigError(f"The setting order must be 1 or 2; got {settings['order']!r}.")
    sampler = dual_solver(schedule, ts, numbers, order=settings["order"])
    return plan_of(sampler, schedule, schedule, t_start=start, t_end=end, name="dual-solver")


_GRID = {"sigma_min": None, "sigma_max": None}
SOLVERS: dict[str, Kind] = {
    "gs": Kind(_generalized_solver, {"t_eps": 1e-3}),
    "dyweight": Kind(_dyweight, {"afs": None, "schedule_type": "polynomial", "schedule_rho": 7, **_GRID}),
    "epd": Kind(
        _epd,
        {
            "afs": ..., "scale_dir": ..., "scale_time": ..., "fcn": False, "sampler_stu": "epd",
            "schedule_type": "time_uniform", "schedule_rho": 1, **_GRID,
        },
    ),
    "amed": Kind(_amed, {"afs": ..., "schedule_type": "time_uniform", "schedule_rho": 1, **_GRID}),
    "ld3": Kind(_ld3, {"solver_name": ..., "order": ..., "unipc_variant": "bh2"}),
    "dual-solver": Kind(_dual_solver, {"order": 1}),
}  # fmt: skip
"""Programs whose trained solvers can be read. `amed`: means over images of what its predictor says, as r, scale_dir and
scale_time, (n_steps,) each."""
