"""Known samplers as plans.

Every preset is a function (schedule, nfe, *, grid, t_start, t_end, to_zero, ...) -> Plan:

    nfe: network evaluations per image.
    grid: a key of `fewstep.diffusion.grids.GRIDS`, or the times themselves, falling, without the 0 of to_zero.
    t_start, t_end: ends of the grid; the schedule's t_max and t_min when None.
    to_zero: append clean data (sigma = 0) to the grid as the last node, reached by a step of order 1. The
        grid above it is one step shorter, so that nfe stays what was asked for.
    lower_final: whether the last steps of a multistep sampler fall in order, down to 1; libraries differ in
        this, so each docstring names the rule that None stands for.

All raise ConfigError for an unknown grid, or an nfe that the sampler cannot have.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.grids import GRIDS
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


def ddim(
    schedule: Schedule,
    nfe: int,
    *,
    grid: Grid = "uniform-lambda",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
) -> Plan:
    """Deterministic DDIM, order 1 [song2021ddim, Eq. 12]."""
    ts = _times(schedule, nfe, grid, t_start, t_end, to_zero)
    return _plan("ddim", schedule, grid, ts, [Step(i, i + 1, "x0") for i in range(nfe)])


def ddim_eta(
    schedule: Schedule,
    nfe: int,
    *,
    grid: Grid = "uniform-lambda",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
    eta: float = 0.5,
) -> Plan:
    """DDIM with noise, between deterministic (eta = 0) and ancestral (eta = 1) [song2021ddim, Eq. 16]."""
    return _ancestral("ddim-eta", schedule, nfe, grid, t_start, t_end, to_zero, eta)


def ddpm(
    schedule: Schedule,
    nfe: int,
    *,
    grid: Grid = "uniform-t",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
) -> Plan:
    """Ancestral sampling with the posterior variance of the strided chain [ho2020ddpm, Eq. 7].

    With the table's own rows (nfe = K, to_zero) it is DDPM with its smaller variance, x0_hat not clipped.
    """
    return _ancestral("ddpm", schedule, nfe, grid, t_start, t_end, to_zero, 1.0)


def dpm_solver_2s(
    schedule: Schedule,
    nfe: int,
    *,
    grid: Grid = "uniform-lambda",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
) -> Plan:
    """Single-step DPM-Solver-2 on eps_hat [lu2022dpmsolver, Alg. 1]; an odd nfe ends with a DDIM step.

    The inner node is the middle one of the grid, in log-SNR for uniform-lambda.
    """
    n = nfe - to_zero
    return _single_step(
        "dpm-solver-2s", schedule, nfe, grid, t_start, t_end, to_zero, [2] * (n // 2) + [1] * (n % 2)
    )


def dpm_solver_3s(
    schedule: Schedule,
    nfe: int,
    *,
    grid: Grid = "uniform-lambda",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
) -> Plan:
    """Single-step DPM-Solver-3 on eps_hat [lu2022dpmsolver, Alg. 2], known as DPM-Solver-fast.

    An nfe that is not a multiple of 3 ends with a step of the order that remains; a multiple of 3 ends with
    orders 2 and 1 instead of 3 as in the authors' code. On the uniform-lambda grid the steps have equal
    length whatever their order; on other grids all evaluations lie on the grid of nfe steps.
    """
    n = nfe - to_zero
    blocks = [3] * (n // 3 - 1) + [2, 1] if n > 0 and n % 3 == 0 else [3] * (n // 3) + [n % 3] * (n % 3 > 0)
    return _single_step("dpm-solver-3s", schedule, nfe, grid, t_start, t_end, to_zero, blocks)


def dpmpp_2m(
    schedule: Schedule,
    nfe: int,
    *,
    grid: Grid = "uniform-lambda",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
    lower_final: bool | None = None,
) -> Plan:
    """DPM-Solver++(2M) in its midpoint form [lu2022dpmsolverpp, Alg. 2].

    lower_final None: below 10 steps, as in the authors' code (diffusers: below 15, and always to sigma = 0).
    """
    lower = nfe < 10 if lower_final is None else lower_final
    ts = _times(schedule, nfe, grid, t_start, t_end, to_zero)
    return _plan("dpmpp-2m", schedule, grid, ts, _multistep(_orders(2, nfe, lower, to_zero), "x0", BH2))


def dpmpp_2m_taylor(
    schedule: Schedule,
    nfe: int,
    *,
    grid: Grid = "uniform-lambda",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
    lower_final: bool | None = None,
) -> Plan:
    """DPM-Solver++(2M) with the plain Taylor term [lu2022dpmsolverpp]; diffusers calls it heun.

    lower_final None: below 10 steps.
    """
    lower = nfe < 10 if lower_final is None else lower_final
    ts = _times(schedule, nfe, grid, t_start, t_end, to_zero)
    return _plan(
        "dpmpp-2m-taylor", schedule, grid, ts, _multistep(_orders(2, nfe, lower, to_zero), "x0", NONE)
    )


def dpmpp_3m(
    schedule: Schedule,
    nfe: int,
    *,
    grid: Grid = "uniform-lambda",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
    lower_final: bool | None = None,
) -> Plan:
    """DPM-Solver++(3M) as its authors' code and diffusers have it [lu2022dpmsolverpp].

    Their second-derivative term carries half of the Taylor weight, so it converges with order 2;
    `dpmpp_3m_exact` has the full weight. lower_final None: below 10 steps.
    """
    lower = nfe < 10 if lower_final is None else lower_final
    ts = _times(schedule, nfe, grid, t_start, t_end, to_zero)
    steps = _multistep(_orders(3, nfe, lower, to_zero), "x0", BH2, second=Scale("const", 0.5))
    return _plan("dpmpp-3m", schedule, grid, ts, steps)


def dpmpp_3m_exact(
    schedule: Schedule,
    nfe: int,
    *,
    grid: Grid = "uniform-lambda",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
    lower_final: bool | None = None,
) -> Plan:
    """DPM-Solver++(3M) [lu2022dpmsolverpp] with the full second-derivative term, which makes its order 3.

    lower_final None: below 10 steps.
    """
    lower = nfe < 10 if lower_final is None else lower_final
    ts = _times(schedule, nfe, grid, t_start, t_end, to_zero)
    return _plan("dpmpp-3m-exact", schedule, grid, ts, _multistep(_orders(3, nfe, lower, to_zero), "x0", BH2))


def unipc(
    schedule: Schedule,
    nfe: int,
    *,
    order: int,
    variant: str = "bh2",
    pred: str = "x0",
    grid: Grid = "uniform-lambda",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
    lower_final: bool | None = None,
) -> Plan:
    """UniPC: a multistep predictor, and a corrector that costs no evaluation [zhao2023unipc, Alg. 1 and 2].

    The variant, B(h), matters where one difference is used: for the predictor of order 2 and the corrector
    of the first-order steps. lower_final None: always.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}.")
    ts = _times(schedule, nfe, grid, t_start, t_end, to_zero)
    orders = _orders(order, nfe, lower_final is not False, to_zero)
    steps = _multistep(orders, pred, VARIANTS[variant], corrected=True)
    name = f"unipc-{order}" + ("-bh1" if variant == "bh1" else "") + ("-noise" if pred == "eps" else "")
    return _plan(name, schedule, grid, ts, steps)


def deis(
    schedule: Schedule,
    nfe: int,
    *,
    points: int,
    grid: Grid = "quadratic-t",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
) -> Plan:
    """tAB-DEIS: eps_hat continued by a polynomial in t through `points` evaluations [zhang2023deis].

    The paper's tAB1 has 2 points, tAB2 has 3. The integrals are exact for smooth schedules; for tables the
    kinks between rows leave a small error. diffusers' DEIS fits in log-SNR instead.
    """
    if points < 1:
        raise ConfigError(f"points must be at least 1; got {points}.")
    ts = _times(schedule, nfe, grid, t_start, t_end, to_zero)
    steps = [_deis_step(schedule, ts, i, min(points, i + 1)) for i in range(nfe)]
    return _plan(f"deis-{points}", schedule, grid, ts, steps)


def ipndm(
    schedule: Schedule,
    nfe: int,
    *,
    order: int,
    grid: Grid = "karras",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
) -> Plan:
    """iPNDM: DDIM steps on an Adams-Bashforth mean of eps_hat, lower orders first [zhang2023deis].

    The linear multistep part of PNDM [liu2022pndm] with the weights of equal steps on any grid.
    """
    if not 1 <= order <= len(ADAMS_BASHFORTH):
        raise ConfigError(f"order must be within 1 to {len(ADAMS_BASHFORTH)}; got {order}.")
    ts = _times(schedule, nfe, grid, t_start, t_end, to_zero)
    points = Points.of(schedule, _lambdas(schedule, ts))
    steps = []
    for i in range(nfe):
        A, base = (float(value) for value in first_order(points, i, i + 1, "eps"))
        mean = ADAMS_BASHFORTH[min(order, i + 1) - 1]
        c = tuple(sorted((i - back, base * weight) for back, weight in enumerate(mean)))
        steps.append(Step(i, i + 1, "eps", raw=Raw(A, c)))
    return _plan(f"ipndm-{order}", schedule, grid, ts, steps)


def heun(
    schedule: Schedule,
    nfe: int,
    *,
    grid: Grid = "karras",
    t_start: float | None = None,
    t_end: float | None = None,
    to_zero: bool = False,
) -> Plan:
    """EDM's deterministic sampler: Heun steps in edm_sigma, the last one Euler [karras2022edm, Alg. 1].

    Every step but the last costs two evaluations, so nfe is odd.
    """
    if nfe < 1 or nfe % 2 == 0:
        raise ConfigError(f"heun needs an odd nfe (1, 3, 5, ...), as it has 2 N - 1 evaluations; got {nfe}.")
    n_steps = (nfe + 1) // 2
    ts = _times(schedule, n_steps, grid, t_start, t_end, to_zero)
    steps = [
        Step(i, i + 1, "eps", corr=Corrector("implicit", (Derivative((i + 1,), BH2),)))
        for i in range(n_steps - 1)
    ]
    return _plan("heun", schedule, grid, ts, [*steps, Step(n_steps - 1, n_steps, "eps")], nfe=nfe)


def analytical(make: Callable[..., Plan], schedule: Schedule, nfe: int, **options: Any) -> Plan:
    """A preset whose first evaluation is x0_hat = 0 instead of a call: one step more for as many calls.

    Near pure noise the network says little else [dockhorn2022genie, analytical first step].
    """
    return make(schedule, nfe + 1, **options).with_node(0, eval="afs_zero")


PRESETS: dict[str, Callable[..., Plan]] = {
    "ddim": ddim,
    "ddim-eta": ddim_eta,
    "ddpm": ddpm,
    "dpm-solver-2s": dpm_solver_2s,
    "dpm-solver-3s": dpm_solver_3s,
    "dpmpp-2m": dpmpp_2m,
    "dpmpp-2m-taylor": dpmpp_2m_taylor,
    "dpmpp-3m": dpmpp_3m,
    "dpmpp-3m-exact": dpmpp_3m_exact,
    "unipc-1": partial(unipc, order=1),
    "unipc-2": partial(unipc, order=2),
    "unipc-3": partial(unipc, order=3),
    "unipc-1-bh1": partial(unipc, order=1, variant="bh1"),
    "unipc-2-bh1": partial(unipc, order=2, variant="bh1"),
    "unipc-3-bh1": partial(unipc, order=3, variant="bh1"),
    "unipc-1-noise": partial(unipc, order=1, pred="eps"),
    "unipc-2-noise": partial(unipc, order=2, pred="eps"),
    "unipc-3-noise": partial(unipc, order=3, pred="eps"),
    "unipc-1-bh1-noise": partial(unipc, order=1, variant="bh1", pred="eps"),
    "unipc-2-bh1-noise": partial(unipc, order=2, variant="bh1", pred="eps"),
    "unipc-3-bh1-noise": partial(unipc, order=3, variant="bh1", pred="eps"),
    "deis-2": partial(deis, points=2),
    "deis-3": partial(deis, points=3),
    "ipndm-2": partial(ipndm, order=2),
    "ipndm-3": partial(ipndm, order=3),
    "ipndm-4": partial(ipndm, order=4),
    "heun": heun,
}


def _grid(
    schedule: Schedule, n_steps: int, grid: Grid, t_start: float | None, t_end: float | None
) -> list[float]:
    if not isinstance(grid, str):
        if len(grid) != n_steps + 1:
            raise ConfigError(f"grid must hold {n_steps + 1} times for {n_steps} steps; got {len(grid)}.")
        return list(grid)
    if grid not in GRIDS:
        raise ConfigError(f"grid must be one of {', '.join(GRIDS)}; got {grid!r}.")
    times: list[float] = GRIDS[grid](schedule, n_steps, t_start=t_start, t_end=t_end).tolist()
    return times


def _times(
    schedule: Schedule, n_steps: int, grid: Grid, t_start: float | None, t_end: float | None, to_zero: bool
) -> list[float]:
    """n_steps + 1 times, of which the last is 0 with to_zero."""
    if n_steps < 1:
        raise ConfigError(f"nfe must be at least 1; got {n_steps}.")
    if not to_zero:
        return _grid(schedule, n_steps, grid, t_start, t_end)
    if n_steps == 1 and isinstance(grid, str):
        return [schedule.t_max if t_start is None else t_start, 0.0]
    return [*_grid(schedule, n_steps - 1, grid, t_start, t_end), 0.0]


def _plan(
    preset: str,
    schedule: Schedule,
    grid: Grid,
    ts: Sequence[float],
    steps: Sequence[Step],
    *,
    nfe: int | None = None,
) -> Plan:
    """A plan whose every node but the last calls the network."""
    lambdas = _lambdas(schedule, ts)
    last = len(ts) - 1
    nodes = tuple(
        Node(t, lam, eval="none" if i == last else "net")
        for i, (t, lam) in enumerate(zip(ts, lambdas.tolist(), strict=True))
    )
    spacing = grid if isinstance(grid, str) else "custom"
    name = f"{preset}.{spacing}" + (".to-zero" if ts[-1] == 0 else "") + f".nfe{nfe or last}"
    provenance = {"preset": preset, "grid": spacing}
    return Plan(schedule.config(), nodes, tuple(steps), name=name, provenance=provenance)


def _lambdas(schedule: Schedule, ts: Sequence[float]) -> Tensor:
    """Log-SNRs, infinite at clean data, where rounding may leave a schedule short of it."""
    t = torch.tensor(ts, dtype=torch.float64)
    return torch.where(t == 0, math.inf, schedule.lambda_(t))


def _orders(order: int, n_steps: int, lower_final: bool, to_zero: bool) -> list[int]:
    """Order of each step: rising with the history; with lower_final falling to 1 at the end."""
    if order < 1:
        raise ConfigError(f"order must be at least 1; got {order}.")
    orders = [min(order, i + 1, n_steps - i if lower_final else order) for i in range(n_steps)]
    return [*orders[:-1], 1] if to_zero else orders


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


def _ancestral(
    preset: str,
    schedule: Schedule,
    nfe: int,
    grid: Grid,
    t_start: float | None,
    t_end: float | None,
    to_zero: bool,
    eta: float,
) -> Plan:
    ts = _times(schedule, nfe, grid, t_start, t_end, to_zero)
    return _plan(preset, schedule, grid, ts, [Step(i, i + 1, "x0", eta=eta) for i in range(nfe)])


def _single_step(
    preset: str,
    schedule: Schedule,
    nfe: int,
    grid: Grid,
    t_start: float | None,
    t_end: float | None,
    to_zero: bool,
    blocks: Sequence[int],
) -> Plan:
    """Blocks of 1 to 3 evaluations, each going from its first node to its last."""
    if not blocks:
        ts = _times(schedule, nfe, grid, t_start, t_end, to_zero)
    elif grid == "uniform-lambda":
        outer = _grid(schedule, len(blocks), grid, t_start, t_end)
        ts = [outer[0]]
        for order, start, end in zip(blocks, outer[:-1], outer[1:], strict=True):
            ts += _grid(schedule, order, grid, start, end)[1:]
    else:
        ts = _grid(schedule, sum(blocks), grid, t_start, t_end)
    steps: list[Step] = []
    for order in blocks:
        steps += _block(len(steps), order)
    if to_zero:
        ts = ts if ts[-1] == 0 else [*ts, 0.0]
        steps.append(Step(len(steps), len(steps) + 1, "eps"))
    return _plan(preset, schedule, grid, ts, steps)


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
