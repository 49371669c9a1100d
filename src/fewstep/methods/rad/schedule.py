"""The schedule of region-aware diffusion: first the hole is noised, then the rest [kim2025rad, Sec. 3].

With a_t = alpha_t^2 / (alpha_t^2 + sigma_t^2), the share of the signal at a time t of the plain schedule, a_T = 1 - nu
at its end, and a mask m of 1 in the hole and 0 elsewhere, the share A of each pixel is, by e_t = log a_t / log a_T,

    in the first phase     A = (1 - nu m)^e_t                                   a_t in the hole, 1 elsewhere
    in the second phase    A = (1 - nu m) ((1 - nu) / (1 - nu m))^e_t           a_T in the hole, a_t elsewhere

so that every pixel ends at a_T. In the logarithm both are straight lines in log a_t. A network is told the time at
which the plain schedule has that share, pixel by pixel: the inverse map. So a constant map is an input that it knows.

Differs: times are those of the project, where clean data is t = 0 and row k of a DDPM table t = (k + 1) / K, which a
network takes as k. The official index of row k is k + 1, one off the index that the network was trained with. Between
rows the inverse is linear in log alpha, as the project's tables are, where the official one is linear in 1 - A.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import Schedule


def require_clean_time(schedule: Schedule) -> None:
    """Raise ConfigError where a network cannot be told that a pixel is clean."""
    if not bool(schedule.time_input(torch.zeros((), dtype=torch.float64)).isfinite()):
        raise ConfigError(
            "The region-aware objective needs a schedule whose networks can be told the time 0, that of clean data, as "
            f"ddpm, vp-linear, cosine and flow; got {schedule!r}."
        )


def log_share(schedule: Schedule, t: Tensor | float) -> Tensor:
    """Log a_t, the share of the signal in the power of x_t; for variance-preserving schedules log alpha_bar."""
    return -softplus(-2 * schedule.lambda_(t))


def region_log_share(
    schedule: Schedule, t: Tensor, mask: Tensor, *, second: Tensor | bool = False, soft: bool = False
) -> Tensor:
    """Log A of each pixel.

    Args:
        schedule: the plain one.
        t: float64, times within the phase, in a shape that broadcasts against the mask.
        mask: (B, 1, H, W), bool, or floating point of 0 and 1.
        second: whether it is the second phase, bool in a shape that broadcasts against the mask.
        soft: masks may lie between 0 and 1, too: such pixels are noised in part first.

    Returns: float64 (B, 1, H, W).

    Raises: DataError: a mask of other values.
    """
    m = mask.double()
    within = bool(((m >= 0) & (m <= 1)).all())
    if not within or (not soft and not bool(((m == 0) | (m == 1)).all())):
        raise DataError(
            f"A mask must be {'between 0 and 1' if soft else '0 or 1, unless it is called soft'}; got values from "
            f"{float(m.min()):.4g} to {float(m.max()):.4g}."
        )
    end, now = log_share(schedule, torch.tensor(schedule.t_start, dtype=t.dtype)), log_share(schedule, t)
    # log(1 - nu m) / log(1 - nu), to the bit 1 in the hole
    part = torch.where(m == 1, 1.0, torch.log1p(m * torch.expm1(end)) / end)
    return torch.where(torch.as_tensor(second), part * end + (1 - part) * now, part * now)


def time_of_log_share(schedule: Schedule, log_a: Tensor) -> Tensor:
    """The time at which the plain schedule has a share of the signal: the inverse map; 0 for a share of 1."""
    t = schedule.t_of_lambda(0.5 * (log_a - torch.log(-torch.expm1(log_a))))
    return torch.where(log_a == 0, torch.zeros_like(t), t)  # some schedules give 1e-15


def region_times(
    schedule: Schedule, t: Tensor, mask: Tensor, *, second: Tensor | bool = False, soft: bool = False
) -> Tensor:
    """What a network is told of each pixel, float64 (B, 1, H, W); arguments as of `region_log_share`."""
    return time_of_log_share(schedule, region_log_share(schedule, t, mask, second=second, soft=soft))
