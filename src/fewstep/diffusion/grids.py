"""Time grids `ts`: float64, (n_steps + 1,), strictly decreasing, both ends included."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fewstep._typing import Float64
from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import DDPMTable, Flow, Schedule

SHIFTED = "shifted"
PUBLISHED = {
    "ays-sd1": (
        14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904,
        0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582,
    ),
    "ays-sdxl": (
        14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289,
        0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582,
    ),
    "ays-svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
    "gits-sd1": (
        14.61464119, 5.85520077, 2.84484982, 1.67050016, 1.08895338, 0.74807048, 0.50118381, 0.32104823, 0.19894916,
        0.09824532, 0.02916753,
    ),
}  # fmt: skip
"""edm_sigmas of 10 steps that were fitted to one model: Align Your Steps for Stable Diffusion 1.5, XL and Video
[sabour2024ays, their table of noise levels], GITS for Stable Diffusion 1.5 [chen2024gits, 1.20 of their node]."""


def _ends(
    schedule: Schedule, n_steps: int, t_start: float | None, t_end: float | None
) -> tuple[float, float]:
    t_start = schedule.t_start if t_start is None else t_start
    t_end = schedule.t_min if t_end is None else t_end
    if n_steps < 1:
        raise ConfigError(f"A grid needs at least 1 step; got {n_steps}.")
    if not schedule.t_min <= t_end < t_start <= schedule.t_max:
        raise ConfigError(
            f"A grid must fall from t_start to t_end within [{schedule.t_min:.4g}, {schedule.t_max:.4g}]; "
            f"got {t_start:.4g} -> {t_end:.4g}."
        )
    return t_start, t_end


def _line(start: float, end: float, n_steps: int) -> Tensor:
    return torch.linspace(start, end, n_steps + 1, dtype=torch.float64)


def _with_ends(ts: Tensor, t_start: float, t_end: float) -> Tensor:
    """Undo the rounding of an inverse at the two ends, which plans compare exactly."""
    ts[0], ts[-1] = t_start, t_end
    return ts


def uniform_t(
    schedule: Schedule, n_steps: int, *, t_start: float | None = None, t_end: float | None = None
) -> Float64[Tensor, " {n_steps}+1"]:
    """Equal steps of t."""
    t_start, t_end = _ends(schedule, n_steps, t_start, t_end)
    return _line(t_start, t_end, n_steps)


def quadratic_t(
    schedule: Schedule, n_steps: int, *, t_start: float | None = None, t_end: float | None = None
) -> Float64[Tensor, " {n_steps}+1"]:
    """Equal steps of sqrt(t) [song2021ddim, App. D.2]."""
    t_start, t_end = _ends(schedule, n_steps, t_start, t_end)
    return _with_ends(_line(t_start**0.5, t_end**0.5, n_steps) ** 2, t_start, t_end)


def uniform_lambda(
    schedule: Schedule, n_steps: int, *, t_start: float | None = None, t_end: float | None = None
) -> Float64[Tensor, " {n_steps}+1"]:
    """Equal steps of the half log-SNR [lu2022dpmsolver, Sec. 3.2]."""
    t_start, t_end = _ends(schedule, n_steps, t_start, t_end)
    lambdas = _line(float(schedule.lambda_(t_start)), float(schedule.lambda_(t_end)), n_steps)
    return _with_ends(schedule.t_of_lambda(lambdas), t_start, t_end)


def karras(
    schedule: Schedule,
    n_steps: int,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
    rho: float = 7.0,
) -> Float64[Tensor, " {n_steps}+1"]:
    """Equal steps of edm_sigma^(1/rho) [karras2022edm, Eq. 5]."""
    t_start, t_end = _ends(schedule, n_steps, t_start, t_end)
    start, end = float(schedule.edm_sigma(t_start)), float(schedule.edm_sigma(t_end))
    edm_sigmas = _line(start ** (1 / rho), end ** (1 / rho), n_steps) ** rho
    return _with_ends(schedule.t_of_lambda(-edm_sigmas.log()), t_start, t_end)


def shifted(
    schedule: Schedule,
    n_steps: int,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
    shift: float = 1.0,
) -> Float64[Tensor, " {n_steps}+1"]:
    """Equal steps of a flow's time 1 / (1 + e^lambda), then shifted: lambda - log(shift) [esser2024sd3, Sec. 5.3.2].

    Of a flow it is t' = s t / (1 + (s - 1) t), the grid of its pipelines. Static shifts are s itself, exponential ones
    e^mu, linear ones mu.
    """
    t_start, t_end = _ends(schedule, n_steps, schedule.t_max if t_start is None else t_start, t_end)
    by = math.log(_shift(shift))
    ends = [1 / (1 + math.exp(float(schedule.lambda_(t)) + by)) for t in (t_start, t_end)]
    u = _line(ends[0], ends[1], n_steps)
    return _with_ends(schedule.t_of_lambda(torch.log1p(-u) - u.log() - by), t_start, t_end)


def published(
    schedule: Schedule,
    n_steps: int,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
    edm_sigmas: Sequence[float],
) -> Float64[Tensor, " {n_steps}+1"]:
    """A grid fitted elsewhere, by steps of its log-SNR in between [sabour2024ays], stretched to the ends of this one.

    Args: edm_sigmas: those of the grid, falling, both ends included.
    """
    t_start, t_end = _ends(schedule, n_steps, t_start, t_end)
    knots = -torch.tensor(edm_sigmas, dtype=torch.float64).log()
    position = _line(0.0, float(len(knots) - 1), n_steps)
    row = position.floor().clamp(max=len(knots) - 2).long()
    lambdas = knots[row] + (position - row) * (knots[row + 1] - knots[row])
    start, end = float(schedule.lambda_(t_start)), float(schedule.lambda_(t_end))
    stretched = start + (lambdas - knots[0]) * (end - start) / (knots[-1] - knots[0])
    return _with_ends(schedule.t_of_lambda(stretched), t_start, t_end)


def shifted_to_zero(schedule: Schedule, n_steps: int, *, shift: float = 1.0) -> Float64[Tensor, " {n_steps}"]:
    """The same down to clean data, whose time is left out: n_steps times shift(1 - i / n_steps), as in pipelines."""
    by = math.log(_shift(shift))
    # pipelines of flows begin at 1, for which t_max stands
    flows = isinstance(schedule, Flow)
    start = 1.0 if flows else 1 / (1 + math.exp(float(schedule.lambda_(schedule.t_max)) + by))
    u = start * (1 - torch.arange(n_steps, dtype=torch.float64) / n_steps)
    rest = schedule.t_of_lambda(torch.log1p(-u[1:]) - u[1:].log() - by)
    return torch.cat([torch.tensor([schedule.t_max], dtype=torch.float64), rest])


def _shift(shift: float) -> float:
    if not 0 < shift < math.inf:
        raise ConfigError(f"A grid's shift must be positive, 1 for none; got {shift:g}.")
    return shift


def grid_named(name: str) -> Callable[..., Tensor]:
    """The grid of a name, a key of `GRIDS` or shifted:S.
    Raises: ConfigError: there is none.
    """
    kind, colon, value = name.partition(":")
    if kind == SHIFTED and colon:
        return partial(shifted, shift=shift_of(name))
    if name not in GRIDS:
        raise ConfigError(f"grid must be one of {', '.join(GRIDS)}, shifted:S; got {name!r}.")
    return GRIDS[name]


def shift_of(name: str) -> float:
    """S of the name shifted:S; 1 of shifted alone."""
    _, colon, value = name.partition(":")
    try:
        return float(value) if colon else 1.0
    except ValueError:
        raise ConfigError(f"S of shifted:S must be a number such as 3; got {value!r}.") from None


def of_rows(schedule: Schedule, rows: Sequence[int]) -> list[float]:
    """Times of rows k of a DDPM table, t = (k + 1) / K: the integer timesteps of other libraries, falling.
    Raises: ConfigError: the schedule has no rows, or they do not fall within the table.
    """
    if not isinstance(schedule, DDPMTable):
        raise ConfigError(
            f"Timesteps are rows of a DDPM table, but the model has {schedule!r:.80}; choose a grid."
        )
    n_rows = len(schedule.alpha_bar)
    falls = all(k > following for k, following in zip(rows, rows[1:], strict=False))
    if not rows or not falls or rows[0] >= n_rows or rows[-1] < 0:
        raise ConfigError(f"Timesteps must fall within {n_rows - 1} to 0; got {', '.join(map(str, rows))}.")
    return [(k + 1) / n_rows for k in rows]


GRIDS: dict[str, Callable[..., Tensor]] = {
    "uniform-t": uniform_t,
    "quadratic-t": quadratic_t,
    "uniform-lambda": uniform_lambda,
    "karras": karras,
    SHIFTED: shifted,
    **{name: partial(published, edm_sigmas=edm_sigmas) for name, edm_sigmas in PUBLISHED.items()},
}
