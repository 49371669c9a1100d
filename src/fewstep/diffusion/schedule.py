"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps, elementwise in t, so that t may differ per image or pixel.

Time runs from `t_min` (almost data) to `t_max` (noise), the range in which a network may be called.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fewstep.checks import ConfigError, UserError


def _tensor(value: Tensor | float) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


class Schedule(ABC):
    """Signal and noise amplitude over time; every method returns the shape and dtype of its argument."""

    t_min: float
    t_max: float
    prior_std: float = 1.0
    """Standard deviation of x_T, with which sampling starts."""

    @property
    def t_start(self) -> float:
        """Where grids and training begin, and from where on x_t is taken for noise alone; t_max, or little before."""
        return self.t_max

    def start_std(self, lambda_t: float) -> float:
        """Standard deviation of x_t where sampling starts at a half log-SNR: less than `prior_std` after t_start."""
        t = self.t_of_lambda(lambda_t).clamp(max=self.t_start)
        return self.prior_std * float(self.sigma(t) / self.sigma(self.t_start))

    @abstractmethod
    def alpha(self, t: Tensor | float) -> Tensor:
        """Signal amplitude."""

    @abstractmethod
    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise amplitude."""

    @abstractmethod
    def lambda_(self, t: Tensor | float) -> Tensor:
        """Half log-SNR, log(alpha / sigma), in nats; falls with t; infinite where sigma is 0."""

    @abstractmethod
    def t_of_lambda(self, lambda_t: Tensor | float) -> Tensor:
        """The inverse of `lambda_`."""

    @abstractmethod
    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Time derivatives (d alpha / dt, d sigma / dt), of which the velocity is made."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain values from which `schedule_from_config` makes an equal schedule."""

    def edm_sigma(self, t: Tensor | float) -> Tensor:
        """Noise amplitude in units of the signal, sigma / alpha [karras2022edm]."""
        return self.sigma(t) / self.alpha(t)

    def time_input(self, t: Tensor) -> Tensor:
        """The input of a network's time embedding, in the thousands that sinusoidal embeddings expect."""
        return 1000 * t

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(repr(self.config()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{key}={value!r}" for key, value in self.config().items() if key != "type")
        return f"{type(self).__name__}({fields})"


class _VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1: all follows from log alpha, without cancellation as sigma goes to 0."""

    @abstractmethod
    def log_alpha(self, t: Tensor | float) -> Tensor:
        """Log alpha(t)."""

    @abstractmethod
    def _log_alpha_rate(self, t: Tensor) -> Tensor:
        """D log alpha / dt."""

    @abstractmethod
    def _t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """The inverse of `log_alpha`."""

    def alpha(self, t: Tensor | float) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor | float) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def lambda_(self, t: Tensor | float) -> Tensor:
        log_alpha = self.log_alpha(t)
        return log_alpha - 0.5 * (-torch.expm1(2 * log_alpha)).log()

    def t_of_lambda(self, lambda_t: Tensor | float) -> Tensor:
        # alpha^2 = sigmoid(2 lambda)
        return self._t_of_log_alpha(-0.5 * softplus(-2 * _tensor(lambda_t)))

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = _tensor(t)
        alpha, rate = self.alpha(t), self._log_alpha_rate(t)
        return alpha * rate, -(alpha**2) * rate / self.sigma(t)


class VPLinear(_VariancePreserving):
    """Variance preserving with beta(t) linear in t, in continuous time [song2021sde, Eq. 32]."""

    t_min, t_max = 1e-3, 1.0

    def __init__(self, b0: float = 0.1, b1: float = 20.0) -> None:
        if not 0 < b0 < b1:
            raise ConfigError(f"vp-linear needs 0 < b0 < b1; got b0={b0}, b1={b1}.")
        self.b0, self.b1 = float(b0), float(b1)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        t = _tensor(t)
        return -0.25 * t**2 * (self.b1 - self.b0) - 0.5 * t * self.b0

    def _log_alpha_rate(self, t: Tensor) -> Tensor:
        return -0.5 * (self.b0 + t * (self.b1 - self.b0))

    def _t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # the root of the quadratic, in the form without cancellation at small t
        u = -4 * (self.b1 - self.b0) * log_alpha
        return u / (((self.b0**2 + u).sqrt() + self.b0) * (self.b1 - self.b0))

    def config(self) -> dict[str, Any]:
        return {"type": "vp-linear", "b0": self.b0, "b1": self.b1}


class DDPMTable(_VariancePreserving):
    """A DDPM table alpha_bar[k], k = 0..K-1, at times t = (k + 1) / K [ho2020ddpm].

    Between rows log alpha is linear in t [lu2022dpmsolver, App. D.1]; t = 0 is clean data. A network trained on
    the rows takes k = K t - 1 as its time input.
    """

    t_max = 1.0

    def __init__(self, alpha_bar: Sequence[float] | Tensor, *, config: dict[str, Any] | None = None) -> None:
        table = torch.as_tensor(alpha_bar, dtype=torch.float64)
        if table.ndim != 1 or len(table) < 2:
            raise ConfigError(
                f"A DDPM table needs at least 2 values in a row; got the shape {tuple(table.shape)}."
            )
        if not bool(((table > 0) & (table < 1)).all()):
            raise ConfigError(
                f"A DDPM table needs at least 2 values in (0, 1); got {len(table)} of which the extremes are "
                f"{float(table.min()):.4g} and {float(table.max()):.4g}; a last row of 0 must be dropped."
            )
        if not bool((table.diff() < 0).all()):
            raise ConfigError("alpha_bar must fall from row to row; check that it is not given in reverse.")
        self.alpha_bar = table
        self.t_min = 1 / len(table)
        self._t = torch.arange(len(table) + 1, dtype=torch.float64) / len(table)
        self._log_alpha = torch.cat([torch.zeros(1, dtype=torch.float64), 0.5 * table.log()])
        self._config = config or {"type": "ddpm", "alpha_bar": table.tolist()}

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, n_rows: int = 1000) -> "DDPMTable":
        """Beta linear in k, the table of DDPM [ho2020ddpm, Sec. 4]."""
        betas = torch.linspace(beta_start, beta_end, n_rows, dtype=torch.float64)
        return cls._of_betas("linear", betas, beta_start=beta_start, beta_end=beta_end, n_rows=n_rows)

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, n_rows: int = 1000
    ) -> "DDPMTable":
        """sqrt(beta) linear in k, the table of latent diffusion [rombach2022ldm]."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, n_rows, dtype=torch.float64) ** 2
        return cls._of_betas("scaled_linear", betas, beta_start=beta_start, beta_end=beta_end, n_rows=n_rows)

    @classmethod
    def cosine(cls, n_rows: int = 1000) -> "DDPMTable":
        """The squared cosine table with beta capped at 0.999 [nichol2021improved, Eq. 17]."""
        k = torch.arange(n_rows + 1, dtype=torch.float64) / n_rows
        f = torch.cos((k + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls._of_betas("cosine", (1 - f[1:] / f[:-1]).clamp(max=0.999), n_rows=n_rows)

    @classmethod
    def _of_betas(cls, kind: str, betas: Tensor, **values: float) -> "DDPMTable":
        config = {"type": "ddpm", "table": kind, **values}
        return cls(torch.exp(torch.log1p(-betas).cumsum(0)), config=config)

    def _row(self, position: Tensor) -> Tensor:
        """The row below each position, such that rows `i` and `i + 1` enclose it."""
        return position.floor().clamp(0, len(self.alpha_bar) - 1).long()

    def log_alpha(self, t: Tensor | float) -> Tensor:
        t = _tensor(t)
        position = t.double() * len(self.alpha_bar)
        row, knots = self._row(position), self._log_alpha.to(t.device)
        value = knots[row] + (position - row) * (knots[row + 1] - knots[row])
        return value.to(t.dtype)

    def _log_alpha_rate(self, t: Tensor) -> Tensor:
        row, knots = self._row(t.double() * len(self.alpha_bar)), self._log_alpha.to(t.device)
        return ((knots[row + 1] - knots[row]) * len(self.alpha_bar)).to(t.dtype)

    def _t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        knots = -self._log_alpha.to(log_alpha.device)
        depth = -log_alpha.double()
        row = (torch.searchsorted(knots, depth.contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
        t = (row + (depth - knots[row]) / (knots[row + 1] - knots[row])) / len(self.alpha_bar)
        return t.to(log_alpha.dtype)

    def time_input(self, t: Tensor) -> Tensor:
        return len(self.alpha_bar) * t - 1

    def config(self) -> dict[str, Any]:
        return self._config


class Cosine(_VariancePreserving):
    """alpha_bar(t) = cos^2, in continuous time [nichol2021improved, Eq. 17]."""

    # at t = 1 alpha is 0; dpm-solver's bound for this schedule, lambda = -4.77
    t_min, t_max = 1e-3, 0.9946

    def __init__(self, s: float = 0.008) -> None:
        if not 0 < s < 1:
            raise ConfigError(f"cosine needs an offset 0 < s < 1; got s={s}.")
        self.s = float(s)
        self._log_cos_0 = math.log(math.cos(self.s / (1 + self.s) * math.pi / 2))

    def _angle(self, t: Tensor) -> Tensor:
        return (t + self.s) / (1 + self.s) * math.pi / 2

    def log_alpha(self, t: Tensor | float) -> Tensor:
        # at t = 0 rounding may leave 1e-17 above 0, of which sigma would be NaN
        return (self._angle(_tensor(t)).cos().log() - self._log_cos_0).clamp(max=0)

    def _log_alpha_rate(self, t: Tensor) -> Tensor:
        return -self._angle(t).tan() * math.pi / 2 / (1 + self.s)

    def _t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        angle = torch.arccos((log_alpha + self._log_cos_0).exp())
        return angle * 2 / math.pi * (1 + self.s) - self.s

    def config(self) -> dict[str, Any]:
        return {"type": "cosine", "s": self.s}


class EDM(Schedule):
    """alpha = 1, sigma = t: time is the noise level itself [karras2022edm]."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ConfigError(f"edm needs 0 < sigma_min < sigma_max; got {sigma_min} and {sigma_max}.")
        self.t_min, self.t_max = float(sigma_min), float(sigma_max)
        self.prior_std = self.t_max

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(_tensor(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return _tensor(t)

    def lambda_(self, t: Tensor | float) -> Tensor:
        return -_tensor(t).log()

    def t_of_lambda(self, lambda_t: Tensor | float) -> Tensor:
        return (-_tensor(lambda_t)).exp()

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = _tensor(t)
        return torch.zeros_like(t), torch.ones_like(t)

    def time_input(self, t: Tensor) -> Tensor:
        # c_noise = log(sigma) / 4, in thousands
        return 250 * t.log()

    def config(self) -> dict[str, Any]:
        return {"type": "edm", "sigma_min": self.t_min, "sigma_max": self.t_max}


class Flow(Schedule):
    """alpha = 1 - t, sigma = t: straight paths [lipman2023flow, Eq. 22]."""

    # at t = 1 alpha is 0 and lambda has no bound; steps on x0 may start as near to it as this, as pipelines do
    t_min, t_max = 1e-3, 1 - 1e-6

    @property
    def t_start(self) -> float:
        """0.999, lambda = -6.9, where x_t is noise to three digits."""
        return 0.999

    def alpha(self, t: Tensor | float) -> Tensor:
        return 1 - _tensor(t)

    def sigma(self, t: Tensor | float) -> Tensor:
        return _tensor(t)

    def lambda_(self, t: Tensor | float) -> Tensor:
        t = _tensor(t)
        return torch.log1p(-t) - t.log()

    def t_of_lambda(self, lambda_t: Tensor | float) -> Tensor:
        return torch.sigmoid(-_tensor(lambda_t))

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = _tensor(t)
        return -torch.ones_like(t), torch.ones_like(t)

    def config(self) -> dict[str, Any]:
        return {"type": "flow"}


_MOST_ROWS = 1_000_000


def _ddpm(
    *, table: str | None = None, alpha_bar: Sequence[float] | None = None, **values: float
) -> DDPMTable:
    if (table is None) == (alpha_bar is None):
        raise ConfigError(
            "A ddpm schedule needs either `table` (a name) or `alpha_bar` (the values), not both."
        )
    if alpha_bar is not None:
        return DDPMTable(alpha_bar, **values)  # type: ignore[arg-type]
    tables = {
        "linear": DDPMTable.linear,
        "scaled_linear": DDPMTable.scaled_linear,
        "cosine": DDPMTable.cosine,
    }
    if not isinstance(table, str) or table not in tables:
        raise ConfigError(f"A ddpm table must be one of {', '.join(tables)}; got {table!r}.")
    if not 2 <= values.get("n_rows", 2) <= _MOST_ROWS:
        raise ConfigError(f"n_rows of a ddpm table must lie in 2..{_MOST_ROWS}; got {values['n_rows']!r}.")
    make: Any = tables[table]
    result: DDPMTable = make(**values)
    return result


SCHEDULES: dict[str, Any] = {
    "ddpm": _ddpm,
    "vp-linear": VPLinear,
    "cosine": Cosine,
    "edm": EDM,
    "flow": Flow,
}


def schedule_from_config(config: dict[str, Any]) -> Schedule:
    """Make the schedule that `Schedule.config` describes.
    Raises: ConfigError: an unknown type or field.
    """
    if not isinstance(config, dict):
        raise ConfigError(f"A schedule must be an object with a type; got {config!r:.60}.")
    values = dict(config)
    kind = values.pop("type", None)
    if not isinstance(kind, str) or kind not in SCHEDULES:
        raise ConfigError(f"A schedule's type must be one of {', '.join(SCHEDULES)}; got {kind!r}.")
    try:
        schedule: Schedule = SCHEDULES[kind](**values)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"The schedule {kind!r} does not take these fields: {sorted(values)} ({reason:.200})."
        ) from None
    return schedule
