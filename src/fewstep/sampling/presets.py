"""Known samplers as plans.

A sampler is a function (schedule, ts, ...) -> Plan: the updates of its paper on the times of all nodes, which fall;
where the last is 0, clean data, it is reached by a step of order 1. `PRESETS` has each under a name, and chooses the
times: `PRESETS[name](schedule, nfe, grid=..., to_zero=...)` is a plan of nfe network calls.

In multistep samplers `lower_final` says whether the last steps fall in order, down to 1; libraries differ in this,
so each docstring names the rule that None stands for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.grids import PUBLISHED, SHIFTED, grid_named, shift_of, shifted_to_zero
from fewstep.diffusion.schedule import Schedule
from fewstep.sampling.plan import Corrector, Derivative, Node, Plan, Raw, Scale, Step
from fewstep.sampling.solver import Points, first_order

NONE, BH1, BH2 = Scale("none"), Scale("bh1"), Scale("bh2")
VARIANTS = {"bh1": BH1, "bh2": BH2}
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
QUADRATURE_POINTS = 64
ANALYTIC = ".analytic"
"""Ends the names of presets whose first step is analytical."""

Grid = str | Sequence[float]
Times = Sequence[float]


# Samplers: the updates on given times


def ddim(schedule: Schedule, ts: Times) -> Plan:
    """Deterministic DDIM, order 1 [song2021ddim, Eq. 12]."""
    return _plan(schedule, ts, [Step(i, i + 1, "x0") for i in range(len(ts) - 1)])


def ddim_eta(schedule: Schedule, ts: Times, *, eta: float = 0.5) -> Plan:
    """DDIM with noise, between deterministic (eta = 0) and ancestral (eta = 1) [song2021ddim, Eq. 16]."""
    return _plan(schedule, ts, [Step(i, i + 1, "x0", eta=eta) for i in range(len(ts) - 1)])


def ddpm(schedule: Schedule, ts: Times) -> Plan:
    """Ancestral sampling with the posterior variance of the strided chain [ho2020ddpm, Eq. 7].

    With the table's own rows (nfe = K, to_zero) it is DDPM with its smaller variance, x0_hat not clipped.
    """
    return ddim_eta(schedule, ts, eta=1.0)


def dpm_solver_2s(schedule: Schedule, ts: Times) -> Plan:
    """Single-step DPM-Solver-2 on eps_hat [lu2022dpmsolver, Alg. 1]; an odd nfe ends with a DDIM step.

    The inner node is the middle one of the grid, in log-SNR for uniform-lambda.
    """
    return _single_step(schedule, ts, blocks_of_two)


def dpm_solver_3s(schedule: Schedule, ts: Times) -> Plan:
    """Single-step DPM-Solver-3 on eps_hat [lu2022dpmsolver, Alg. 2], known as DPM-Solver-fast.

    An nfe that is not a multiple of 3 ends with a step of the order that remains; a multiple of 3 ends with
    orders 2 and 1 instead of 3 as in the authors' code. On the uniform-lambda grid the steps have equal
    length whatever their order; on other grids all evaluations lie on the grid of nfe steps.
    """
    return _single_step(schedule, ts, blocks_of_three)


def dpmpp_2m(schedule: Schedule, ts: Times, *, lower_final: bool | None = None) -> Plan:
    """DPM-Solver++(2M) in its midpoint form [lu2022dpmsolverpp, Alg. 2].

    lower_final None: below 10 steps, as in the authors' code (diffusers: below 15, and always to sigma = 0).
    """
    return _plan(schedule, ts, _multistep(_orders(2, ts, _lower(ts, lower_final)), "x0", BH2))


def dpmpp_2m_taylor(schedule: Schedule, ts: Times, *, lower_final: bool | None = None) -> Plan:
    """DPM-Solver++(2M) with the plain Taylor term [lu2022dpmsolverpp]; diffusers calls it heun.

    lower_final None: below 10 steps.
    """
    return _plan(schedule, ts, _multistep(_orders(2, ts, _lower(ts, lower_final)), "x0", NONE))


def dpmpp_3m(schedule: Schedule, ts: Times, *, lower_final: bool | None = None) -> Plan:
    """DPM-Solver++(3M) as its authors' code and diffusers have it [lu2022dpmsolverpp].

    Their second-derivative term carries half of the Taylor weight, so it converges with order 2;
    `dpmpp_3m_exact` has the full weight. lower_final None: below 10 steps.
    """
    orders = _orders(3, ts, _lower(ts, lower_final))
    return _plan(schedule, ts, _multistep(orders, "x0", BH2, second=Scale("const", 0.5)))


def dpmpp_3m_exact(schedule: Schedule, ts: Times, *, lower_final: bool | None = None) -> Plan:
    """DPM-Solver++(3M) [lu2022dpmsolverpp] with the full second-derivative term, which makes its order 3.

    lower_final None: below 10 steps.
    """
    return _plan(schedule, ts, _multistep(_orders(3, ts, _lower(ts, lower_final)), "x0", BH2))


def unipc(
    schedule: Schedule,
    ts: Times,
    *,
    order: int,
    variant: str = "bh2",
    pred: str = "x0",
    lower_final: bool | None = None,
) -> Plan:
    """UniPC: a multistep predictor, and a corrector that costs no evaluation [zhao2023unipc, Alg. 1 and 2].

    The corrector raises the order of convergence by 1. The variant, B(h), matters where one difference is used: for
    the predictor of order 2 and the corrector of the first-order steps. lower_final None: always.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}.")
    orders = _orders(order, ts, lower_final is not False)
    return _plan(schedule, ts, _multistep(orders, pred, VARIANTS[variant], corrected=True))


def deis(schedule: Schedule, ts: Times, *, points: int) -> Plan:
    """tAB-DEIS: eps_hat continued by a polynomial in t through `points` evaluations [zhang2023deis].

    The paper's tAB1 has 2 points, tAB2 has 3. The integrals are exact for smooth schedules; for tables the
    kinks between rows leave a small error. diffusers' DEIS fits in log-SNR instead.
    """
    if points < 1:
        raise ConfigError(f"points must be at least 1; got {points}.")
    return _plan(schedule, ts, [_deis_step(schedule, ts, i, min(points, i + 1)) for i in range(len(ts) - 1)])


def ipndm(schedule: Schedule, ts: Times, *, order: int) -> Plan:
    """iPNDM: DDIM steps on an Adams-Bashforth mean of eps_hat, lower orders first [zhang2023deis].

    The linear multistep part of PNDM [liu2022pndm] with the weights of equal steps on any grid.
    """
    if not 1 <= order <= len(ADAMS_BASHFORTH):
        raise ConfigError(f"order must be within 1 to {len(ADAMS_BASHFORTH)}; got {order}.")
    points = Points.of(schedule, _lambdas(schedule, ts))
    steps = []
    for i in range(len(ts) - 1):
        A, base = (float(value) for value in first_order(points, i, i + 1, "eps"))
        mean = ADAMS_BASHFORTH[min(order, i + 1) - 1]
        c = tuple(sorted((i - back, base * weight) for back, weight in enumerate(mean)))
        steps.append(Step(i, i + 1, "eps", raw=Raw(A, c)))
    return _plan(schedule, ts, steps)


def heun(schedule: Schedule, ts: Times) -> Plan:
    """EDM's deterministic sampler: Heun steps in edm_sigma, the last one Euler [karras2022edm, Alg. 1].

    Every step but the last costs two evaluations, so nfe is odd.
    """
    last = len(ts) - 2
    steps = [
        Step(i, i + 1, "eps", corr=Corrector("implicit", (Derivative((i + 1,), BH2),))) for i in range(last)
    ]
    return _plan(schedule, ts, [*steps, Step(last, last + 1, "eps")])


# Presets: samplers under a name, on times that are chosen


@dataclass(frozen=True)
class Spacing:
    """Where nodes lie on a schedule: the arguments of `Preset` that say so."""

    schedule: Schedule
    grid: Grid
    t_start: float | None
    t_end: float | None
    to_zero: bool

    @property
    def name(self) -> str:
        """The grid's, or custom."""
        return self.grid if isinstance(self.grid, str) else "custom"

    def times(self, n_steps: int) -> list[float]:
        """Falling times, n_steps + 1, of which the last is 0 with to_zero."""
        if n_steps < 1:
            raise ConfigError(f"nfe must be at least 1; got {n_steps}.")
        if not self.to_zero:
            return self.above_zero(n_steps)
        if isinstance(self.grid, str) and self.grid.partition(":")[0] == SHIFTED and self.t_start is None:
            return [*shifted_to_zero(self.schedule, n_steps, shift=shift_of(self.grid)).tolist(), 0.0]
        if isinstance(self.grid, str) and self.grid in PUBLISHED and self.t_end is None:
            return [
                *self.above_zero(n_steps)[:-1],
                0.0,
            ]  # in those lists clean data stands in place of the last level
        if n_steps == 1 and isinstance(self.grid, str):
            return [self.schedule.t_start if self.t_start is None else self.t_start, 0.0]
        return [*self.above_zero(n_steps - 1), 0.0]

    def above_zero(self, n_steps: int) -> list[float]:
        """The grid itself, n_steps + 1 times."""
        if not isinstance(self.grid, str):
            if len(self.grid) != n_steps + 1:
                raise ConfigError(
                    f"grid must hold {n_steps + 1} times for {n_steps} steps; got {len(self.grid)}."
                )
            return list(self.grid)
        return self.between(n_steps, self.t_start, self.t_end)

    def between(self, n_steps: int, t_start: float | None, t_end: float | None) -> list[float]:
        """Times of the named grid between other ends."""
        if not isinstance(self.grid, str):
            raise ConfigError(f"grid must be a name here; got {self.grid!r:.60}.")
        grid = grid_named(self.grid)
        ts: list[float] = grid(self.schedule, n_steps, t_start=t_start, t_end=t_end).tolist()
        return ts


def step_times(spacing: Spacing, nfe: int) -> list[float]:
    """One network call a step."""
    return spacing.times(nfe)


def heun_times(spacing: Spacing, nfe: int) -> list[float]:
    """Two calls a step, but for the last."""
    if nfe < 1 or nfe % 2 == 0:
        raise ConfigError(f"heun needs an odd nfe (1, 3, 5, ...), as it has 2 N - 1 evaluations; got {nfe}.")
    return spacing.times((nfe + 1) // 2)


def block_times(blocks: Callable[[int], list[int]], spacing: Spacing, nfe: int) -> list[float]:
    """The inner nodes of single-step updates, too; with equal log-SNR the updates have equal length."""
    sizes = blocks(nfe - spacing.to_zero) if nfe > 0 else []
    if spacing.grid != "uniform-lambda" or not sizes:
        return spacing.times(nfe)
    outer = spacing.above_zero(len(sizes))
    ts = [outer[0]]
    for size, start, end in zip(sizes, outer[:-1], outer[1:], strict=True):
        ts += spacing.between(size, start, end)[1:]
    return [*ts, 0.0] if spacing.to_zero else ts


@dataclass(frozen=True)
class Preset:
    """A known sampler under a name; called with a schedule and a number of network calls, it gives a plan.

    Attributes:
        name: key of PRESETS.
        sampler: function (schedule, ts, ...) -> Plan.
        order: order of convergence in the step length, for the ODE of the probability flow; None where noise is
            drawn. Of steps that are equal in what the sampler integrates over: log-SNR, or edm_sigma.
        grid: the grid that the paper takes; the default.
        times: function (spacing, nfe) -> ts, from network calls to nodes.
    """

    name: str
    sampler: Callable[..., Plan]
    order: int | None
    grid: str = "uniform-lambda"
    times: Callable[[Spacing, int], list[float]] = step_times

    def __call__(
        self,
        schedule: Schedule,
        nfe: int,
        *,
        grid: Grid | None = None,
        t_start: float | None = None,
        t_end: float | None = None,
        to_zero: bool = False,
        **options: Any,
    ) -> Plan:
        """The sampler's plan of `nfe` network calls per image.

        Args:
            schedule: noise schedule of the model.
            nfe: network calls per image.
            grid: a key of `fewstep.diffusion.grids.GRIDS`, shifted:S with a shift S, or the times themselves, falling,
                without the 0 of to_zero; the preset's own when None.
            t_start: first time of the grid; the schedule's t_start when None, of shifted its t_max. Steps on eps start
                at t_start at the earliest: beyond it they would multiply the rounding of x_T by 1 / alpha.
            t_end: last time of the grid; the schedule's t_min when None.
            to_zero: append clean data (sigma = 0) to the grid as the last node, reached by a step of order 1. The
                grid above it is one step shorter, so that nfe stays as given.
            options: the sampler's own, such as lower_final or eta.

        Raises:
            ConfigError: an unknown grid, or an nfe that the sampler cannot have.
        """
        spacing = Spacing(schedule, self.grid if grid is None else grid, t_start, t_end, to_zero)
        ts = self.times(spacing, nfe)
        plan = self.sampler(schedule, ts, **options)
        if ts[0] > schedule.t_start and any(step.pred == "eps" for step in plan.steps):
            plan = self.sampler(schedule, [schedule.t_start, *ts[1:]], **options)
        name = (
            f"{self.name}.{spacing.name.replace(':', '-')}"
            + (".to-zero" if plan.to_zero else "")
            + f".nfe{nfe}"
        )
        return replace(plan, name=name, provenance={"preset": self.name, "grid": spacing.name})


def analytical(make: Callable[..., Plan], schedule: Schedule, nfe: int, **options: Any) -> Plan:
    """A preset whose first evaluation is x0_hat = 0 instead of a call: one step more for as many calls.

    Near pure noise the network says little else [dockhorn2022genie, analytical first step].
    """
    return make(schedule, nfe + 1, **options).with_node(0, eval="afs_zero")


def blocks_of_two(n: int) -> list[int]:
    """Network calls of each update of DPM-Solver-2, of n in all."""
    return [2] * (n // 2) + [1] * (n % 2)


def blocks_of_three(n: int) -> list[int]:
    """Network calls of each update of DPM-Solver-fast, of n in all."""
    if n > 0 and n % 3 == 0:
        return [3] * (n // 3 - 1) + [2, 1]
    return [3] * (n // 3) + [n % 3] * (n % 3 > 0)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("ddim", ddim, 1),
        Preset("ddim-eta", ddim_eta, None),
        Preset("ddpm", ddpm, None, "uniform-t"),
        Preset("dpm-solver-2s", dpm_solver_2s, 2, times=partial(block_times, blocks_of_two)),
        Preset("dpm-solver-3s", dpm_solver_3s, 3, times=partial(block_times, blocks_of_three)),
        Preset("dpmpp-2m", dpmpp_2m, 2),
        Preset("dpmpp-2m-taylor", dpmpp_2m_taylor, 2),
        Preset("dpmpp-3m", dpmpp_3m, 2),
        Preset("dpmpp-3m-exact", dpmpp_3m_exact, 3),
        Preset("unipc-1", partial(unipc, order=1), 2),
        Preset("unipc-2", partial(unipc, order=2), 3),
        Preset("unipc-3", partial(unipc, order=3), 4),
        Preset("unipc-1-bh1", partial(unipc, order=1, variant="bh1"), 2),
        Preset("unipc-2-bh1", partial(unipc, order=2, variant="bh1"), 3),
        Preset("unipc-3-bh1", partial(unipc, order=3, variant="bh1"), 4),
        Preset("unipc-1-noise", partial(unipc, order=1, pred="eps"), 2),
        Preset("unipc-2-noise", partial(unipc, order=2, pred="eps"), 3),
        Preset("unipc-3-noise", partial(unipc, order=3, pred="eps"), 4),
        Preset("unipc-1-bh1-noise", partial(unipc, order=1, variant="bh1", pred="eps"), 2),
        Preset("unipc-2-bh1-noise", partial(unipc, order=2, variant="bh1", pred="eps"), 3),
        Preset("unipc-3-bh1-noise", partial(unipc, order=3, variant="bh1", pred="eps"), 4),
        Preset("deis-2", partial(deis, points=2), 2, "quadratic-t"),
        Preset("deis-3", partial(deis, points=3), 3, "quadratic-t"),
        Preset("ipndm-2", partial(ipndm, order=2), 2, "karras"),
        Preset("ipndm-3", partial(ipndm, order=3), 3, "karras"),
        Preset("ipndm-4", partial(ipndm, order=4), 4, "karras"),
        Preset("heun", heun, 2, "karras", times=heun_times),
    )
}


# What the samplers share


def _plan(schedule: Schedule, ts: Times, steps: Sequence[Step]) -> Plan:
    """A plan whose every node but the last calls the network."""
    last = len(ts) - 1
    nodes = tuple(
        Node(t, lam, eval="none" if i == last else "net")
        for i, (t, lam) in enumerate(zip(ts, _lambdas(schedule, ts).tolist(), strict=True))
    )
    return Plan(schedule.config(), nodes, tuple(steps))


def _lambdas(schedule: Schedule, ts: Sequence[float]) -> Tensor:
    """Log-SNRs, infinite at clean data, where rounding may leave a schedule short of it."""
    t = torch.tensor(ts, dtype=torch.float64)
    return torch.where(t == 0, math.inf, schedule.lambda_(t))


def _lower(ts: Times, lower_final: bool | None) -> bool:
    """The rule of DPM-Solver++: below 10 steps where nothing is said."""
    return len(ts) - 1 < 10 if lower_final is None else lower_final


def _orders(order: int, ts: Times, lower_final: bool) -> list[int]:
    """Order of each step: rising with the history; with lower_final falling to 1 at the end; 1 to clean data."""
    if order < 1:
        raise ConfigError(f"order must be at least 1; got {order}.")
    n_steps = len(ts) - 1
    orders = [min(order, i + 1, n_steps - i if lower_final else order) for i in range(n_steps)]
    return [*orders[:-1], 1] if ts[-1] == 0 else orders


def _multistep(
    orders: Sequence[int], pred: str, one_difference: Scale, *, second: Scale = NONE, corrected: bool = False
) -> list[Step]:
    """Each step from the latest node, with the evaluations before it.
    Args: one_difference: scale where a single difference is used. second: scale of f'' in steps of order 3.
    """
    steps = []
    for i, order in enumerate(orders):
        before = tuple(range(i - 1, i - order, -1))
        deriv = [Derivative(before, one_difference if order == 2 else NONE) for _ in range(order - 1)]
        if order == 3:
            deriv[1] = Derivative(before, second)
        corr = None
        if corrected and i < len(orders) - 1:
            scale = one_difference if order == 1 else NONE
            corr = Corrector("pseudo", tuple(Derivative((i + 1, *before), scale) for _ in range(order)))
        steps.append(Step(i, i + 1, pred, tuple(deriv), corr=corr))
    return steps


def _single_step(schedule: Schedule, ts: Times, blocks: Callable[[int], list[int]]) -> Plan:
    """Updates of 1 to 3 evaluations, each going from its first node to its last; one of order 1 to clean data."""
    to_zero = ts[-1] == 0
    steps: list[Step] = []
    for order in blocks(len(ts) - 1 - to_zero):
        steps += _block(len(steps), order)
    if to_zero:
        steps.append(Step(len(steps), len(steps) + 1, "eps"))
    return _plan(schedule, ts, steps)


def _block(start: int, order: int) -> list[Step]:
    """The inner steps and the final step of one single-step update."""
    first = Step(start, start + 1, "eps")
    if order == 1:
        return [first]
    scale = BH2 if order == 2 else NONE
    # the inner steps of order 3 and its final one each use the evaluation just before them, by plain Taylor
    return [
        first,
        *(Step(start, start + k, "eps", (Derivative((start + k - 1,), scale),)) for k in range(2, order + 1)),
    ]


def _deis_step(schedule: Schedule, ts: Sequence[float], i: int, n_points: int) -> Step:
    """Weights alpha_end * int L_j(t) d edm_sigma(t), by parts, so that only edm_sigma is integrated."""
    t, s = ts[i], ts[i + 1]
    knots = np.array([ts[i - back] for back in range(n_points)])
    roots, quadrature = np.polynomial.legendre.leggauss(QUADRATURE_POINTS)
    inner = t + (s - t) * (roots + 1) / 2
    edm_sigma = np.exp(-_lambdas(schedule, [t, s, *inner]).numpy())
    alpha_start, alpha_end = float(schedule.alpha(t)), float(schedule.alpha(s))
    c = []
    for back in range(n_points):
        others = np.delete(knots, back)
        basis = np.polynomial.Polynomial(np.polynomial.polynomial.polyfromroots(others))
        basis /= np.prod(knots[back] - others)
        ends = basis(s) * edm_sigma[1] - basis(t) * edm_sigma[0]
        inside = (s - t) / 2 * np.sum(quadrature * basis.deriv()(inner) * edm_sigma[2:])
        c.append((i - back, float(alpha_end * (ends - inside))))
    return Step(i, i + 1, "eps", raw=Raw(alpha_end / alpha_start, tuple(sorted(c))))
