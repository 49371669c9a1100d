"""The solvers that others train, as modules: their parametrisation, where they start, and how they are trained.

Transcribed from the authors' code (DyWeight 620534e, EPD 94c00d0, GAS f090ede, LD3 9e4a66f, the prototype of
Dual-Solver) or, where there is none, from the paper (S4S). The samplers are those of `fewstep.sampling.trained`, which
tests hold against transcriptions; their code itself gave the same images to 1e-13 where it runs in float64. Learning
rates, schedules of these, batches, averaging and starts are the authors'; what all are given alike is the loss, the
teacher's solutions, the first noise level and the number of network calls.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.diffusion.grids import karras, uniform_lambda, uniform_t
from fewstep.diffusion.schedule import EDM, Schedule
from fewstep.sampling.linear import linear_form
from fewstep.sampling.presets import ADAMS_BASHFORTH, PRESETS, unipc
from fewstep.sampling.trained import (
    Sampler,
    dual_solver,
    dyweight,
    generalized_solver,
    linear_multistep,
    parallel_directions,
    told_otherwise,
)


class Solver(nn.Module):
    """A trained solver; `sampler` is it with the numbers as they are."""

    frame: Schedule
    t_start: float
    t_end: float

    def sampler(self) -> Sampler:
        raise NotImplementedError


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape, dtype=torch.float64))


class GS(Solver):
    """Times by stick-breaking from uniform ones, told times, corrections of DPM-Solver++(3M), from 0."""

    def __init__(self, schedule: Schedule, nfe: int) -> None:
        super().__init__()
        self.frame, self.t_start, self.t_end = schedule, schedule.t_start, schedule.t_min
        left = 1 - (uniform_t(schedule, nfe).flip(0)[1:-1] - self.t_end) / (self.t_start - self.t_end)
        share = left / torch.cat([torch.ones(1, dtype=torch.float64), left[:-1]])
        self.logits, self.told = nn.Parameter(share.logit()), zeros(nfe)
        self.state, self.x0 = zeros(nfe, nfe), zeros(nfe, nfe)

    def sampler(self) -> Sampler:
        inner = 1 - self.logits.sigmoid().cumprod(0)
        ends = torch.tensor([self.t_start, self.t_end], dtype=torch.float64)
        ts = torch.cat([ends[:1], (inner * (ends[0] - ends[1]) + ends[1]).flip(0), ends[1:]])
        # networks of a table have no times beyond its end; GAS's has
        told = (ts[:-1] + self.told).clamp(self.t_end, self.t_start) - ts[:-1]
        return generalized_solver(self.frame, ts, told, self.state.unbind(), self.x0.unbind())


class S4S(Solver):
    """Free weights of x0_hat and told times, from DPM-Solver++(3M) on uniform log-SNR; of S4S-Alt times move, too."""

    def __init__(self, schedule: Schedule, nfe: int) -> None:
        super().__init__()
        self.frame, self.t_start, self.t_end = schedule, schedule.t_start, schedule.t_min
        plan = PRESETS["dpmpp-3m"](schedule, nfe, lower_final=False)
        lambdas = schedule.lambda_(uniform_lambda(schedule, nfe))
        self.ends = lambdas[0], lambdas[-1]
        self.gaps, self.told = nn.Parameter(lambdas.diff().log()), zeros(nfe)
        own = -schedule.alpha(uniform_lambda(schedule, nfe))[1:] * torch.expm1(-lambdas.diff())
        rows = [[*row.c, *[0.0] * (nfe - len(row.c))] for row in linear_form(plan, schedule)]
        self.weights = nn.Parameter(torch.tensor(rows, dtype=torch.float64) / own[:, None])

    def sampler(self) -> Sampler:
        start, end = self.ends
        lambdas = torch.cat([start[None], start + (self.gaps.softmax(0) * (end - start)).cumsum(0)])
        told = (lambdas[:-1] + self.told).clamp(start, end)
        of = self.frame.t_of_lambda
        return linear_multistep(self.frame, of(lambdas), of(told), self.weights)


class DyWeight(Solver):
    """Weights of three slopes and told levels, from Adams-Bashforth on EDM's grid; the first slope is analytical."""

    def __init__(self, schedule: Schedule, nfe: int) -> None:
        super().__init__()
        n = nfe + 1
        self.frame = ve_frame(schedule)
        self.t_start, self.t_end = self.frame.t_max, self.frame.t_min
        self.ts = karras(self.frame, n)
        weights = torch.zeros(n, n, dtype=torch.float64)
        for i in range(n):
            for back, value in enumerate(ADAMS_BASHFORTH[min(i, 2)]):
                weights[i, i - back] = value
        self.mask = torch.ones(n, n).tril() - torch.ones(n, n).tril(-3)
        self.weights = nn.Parameter(weights)
        self.told = nn.Parameter(torch.ones(nfe, dtype=torch.float64))

    def sampler(self) -> Sampler:
        return dyweight(self.ts, self.weights * self.mask, self.told, analytic=True)


class EPD(Solver):
    """K directions a step from random numbers on uniform times; K = 1 is AMED's step with the same for all images."""

    def __init__(self, schedule: Schedule, n_steps: int, k: int, analytic: bool) -> None:
        super().__init__()
        self.frame, self.analytic = ve_frame(schedule), analytic
        self.t_start, self.t_end = self.frame.t_max, self.frame.t_min
        self.ts = schedule.edm_sigma(uniform_t(schedule, n_steps, t_start=schedule.t_max))
        # their randn is of the global stream; a generator of its own makes runs repeat
        draw = torch.Generator().manual_seed(0)
        raw = torch.randn(4, n_steps, k, generator=draw, dtype=torch.float64)
        self.split, self.direction, self.told, self.weights = (nn.Parameter(values) for values in raw)

    def sampler(self) -> Sampler:
        near = [2 * (raw / 2).sigmoid() * 0.05 + 0.95 for raw in (self.direction, self.told)]
        return parallel_directions(
            self.ts, self.split.sigmoid(), *near, self.weights.softmax(1), analytic=self.analytic
        )


class LD3(Solver):
    """Grid and told grid of UniPC-3 bh1, in log-SNR, from uniform."""

    def __init__(self, schedule: Schedule, nfe: int) -> None:
        super().__init__()
        self.frame, self.t_start, self.t_end = schedule, schedule.t_start, schedule.t_min
        self.plan = unipc(schedule, uniform_lambda(schedule, nfe).tolist(), order=3, variant="bh1")
        self.gaps, self.told = nn.Parameter(torch.ones(nfe, dtype=torch.float64)), zeros(nfe)
        self.ends = [float(schedule.lambda_(t)) for t in (self.t_start, self.t_end)]

    def sampler(self) -> Sampler:
        start, end = self.ends
        gaps = self.gaps.softmax(0) * (end - start)
        lambdas = torch.cat([torch.tensor([start], dtype=torch.float64), start + gaps.cumsum(0)])
        # theirs is half of the least gap of the logits, which in log-SNR is meant to be of this
        bound = 0.5 * float(gaps.detach().min())
        shift = self.told.clamp(-bound, bound) * (torch.arange(len(gaps)) > 0)
        told = self.frame.t_of_lambda(lambdas[:-1] + shift)
        return told_otherwise(self.plan, self.frame, told, lambdas=lambdas)


class DualSolver(Solver):
    """Ten numbers a step and the times, from 0 on uniform times; predictor of order 1."""

    def __init__(self, schedule: Schedule, nfe: int) -> None:
        super().__init__()
        self.frame, self.t_start, self.t_end = schedule, schedule.t_start, schedule.t_min
        self.gaps, self.numbers = zeros(nfe), zeros(nfe, 2, 5)

    def sampler(self) -> Sampler:
        gone = (self.gaps.softmax(0) * (self.t_start - self.t_end)).cumsum(0)
        ts = torch.cat([torch.tensor([self.t_start], dtype=torch.float64), self.t_start - gone])
        return dual_solver(self.frame, ts, self.numbers)


def ve_frame(schedule: Schedule) -> EDM:
    """x / alpha and edm_sigma, between the ends of the model: one first noise level for all, theirs is 80."""
    ends = torch.tensor([schedule.t_min, schedule.t_start], dtype=torch.float64)
    return EDM(*schedule.edm_sigma(ends).tolist())


@dataclass(frozen=True)
class Recipe:
    """How a solver is trained.

    Attributes:
        make: from a schedule and a number of network calls; None where it cannot make so many.
        batch: noises of an update.
        lr: of Adam.
        warm: share of the updates in which it rises.
        least: share of it that a cosine ends with; 1: constant.
        average: decay of the averaged numbers that are kept; 0: the last ones.
        clip: of the gradient's norm.
    """

    make: Callable[[Schedule, int], Solver | None]
    batch: int
    lr: float
    warm: float = 0.0
    least: float = 1.0
    average: float = 0.0
    clip: float = math.inf

    def share(self, progress: float) -> float:
        """Of the learning rate, by the share of the updates that are done."""
        if progress < self.warm:
            return progress / self.warm
        cosine = (1 + math.cos(math.pi * (progress - self.warm) / (1 - self.warm))) / 2
        return self.least + (1 - self.least) * cosine


def epd(schedule: Schedule, nfe: int, k: int) -> Solver | None:
    """With as many steps as calls allow; an analytical first slope saves one."""
    for analytic in (False, True):
        if (nfe + analytic) % (k + 1) == 0:
            return EPD(schedule, (nfe + analytic) // (k + 1), k, analytic)
    return None


RECIPES: dict[str, Recipe] = {
    "DyWeight": Recipe(DyWeight, 16, 3e-2, warm=0.1, least=0.01, clip=1.0),
    "S4S-Alt": Recipe(S4S, 24, 5e-3, least=0.0, clip=1.0),
    "GS": Recipe(GS, 24, 1e-3, average=0.999, clip=1.0),
    "Dual-Solver": Recipe(DualSolver, 24, 5e-3, least=0.0, clip=1.0),
    "LD3": Recipe(LD3, 48, 5e-3, clip=1.0),  # their batch is 2, for images
    "EPD, K = 2": Recipe(lambda schedule, nfe: epd(schedule, nfe, 2), 32, 0.2, least=0.0),
    "AMED's mean": Recipe(lambda schedule, nfe: epd(schedule, nfe, 1), 16, 5e-3),
}
"""LD3, S4S and Dual-Solver: their parametrisation and loss; all their numbers at once by Adam, ours."""


def train(
    recipe: Recipe,
    solver: Solver,
    loss: Callable[[Sampler, Tensor], Tensor],
    draw: Callable[[int, int], Tensor],
    spent: Callable[[], int],
    budget: int,
) -> int:
    """Descend until the network calls are spent, and leave the solver as its program would; returns the updates.

    Args: loss: of a sampler on rows of noises. draw: rows, of an update and a batch. spent: network calls so far.
    """
    adam = torch.optim.Adam(solver.parameters(), lr=recipe.lr)
    kept = [p.detach().clone() for p in solver.parameters()]
    first, updates = spent(), 0
    while (done := spent() - first) < budget:
        for group in adam.param_groups:
            group["lr"] = recipe.lr * recipe.share(done / budget)
        adam.zero_grad()
        value = loss(solver.sampler(), draw(updates, recipe.batch))
        value.backward()
        finite = all(bool(p.grad.isfinite().all()) for p in solver.parameters() if p.grad is not None)
        updates += 1
        if not finite:  # theirs would be lost; ours goes on with the next noises
            continue
        nn.utils.clip_grad_norm_(solver.parameters(), recipe.clip)
        adam.step()
        decay = min(recipe.average, updates / (updates + 9))  # torch_ema's
        for mean, p in zip(kept, solver.parameters(), strict=True):
            mean.lerp_(p.detach(), 1 - decay)
    with torch.no_grad():
        for mean, p in zip(kept, solver.parameters(), strict=True):
            p.copy_(mean)
    return updates
