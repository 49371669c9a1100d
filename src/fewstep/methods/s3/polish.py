"""Polish a plan by gradients through its compiled form: the grid, and every coefficient of the linear form.

Structure search finds the region, gradients its bottom. What is moved is the largest family of deterministic
samplers on a grid, non-stationary linear multistep [shaul2024bns]; the losses are the distance to a fine solution,
as there, or a distance between sets of images, as in [watson2022ddss].
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import Schedule
from fewstep.methods.s3.objective import Gradient
from fewstep.sampling.linear import in_linear_form, linear_form
from fewstep.sampling.plan import Plan
from fewstep.sampling.solver import Points, Values, first_order

SLACK = 0.01  # share of the log-SNR range kept between the last evaluation and t_min, at the start
WARM = 0.1  # share of the iterations in which the learning rate rises
CLIP = 1.0


class FreePlan(nn.Module):
    """A plan whose numbers can move: node times by log-gaps, and a factor or term on every coefficient.

    At zero shifts the coefficients are those of the plan it was made of, on the grid as it is by now, so that a
    solver keeps its order while its grid moves.
    """

    def __init__(self, plan: Plan, schedule: Schedule) -> None:
        super().__init__()
        self.origin, self.schedule = plan, schedule
        self.raw = in_linear_form(plan, schedule)
        self.numbers = Values.of(plan)
        lambdas = self.numbers.lambdas
        finite = lambdas[lambdas.isfinite()]
        gaps = finite.diff()
        self.start, self.range = finite[0], finite[-1] - finite[0]
        if plan.to_zero:
            # the last evaluation may move too, as far as the network goes
            limit = schedule.lambda_(torch.tensor(schedule.t_min, dtype=torch.float64))
            self.range = limit - finite[0]
            gaps = torch.cat([gaps, (limit - finite[-1]).clamp_min(SLACK * self.range)[None]])
        self.gaps = nn.Parameter(gaps.log())
        self._first_gaps = gaps.log()
        rows = len(plan.steps)
        self.of_state = nn.Parameter(torch.zeros(rows, dtype=torch.float64))
        self.of_x0 = nn.Parameter(torch.zeros(rows, rows, dtype=torch.float64))

    def values(self) -> Values:
        """The numbers of the linear form, with gradients."""
        gaps = self.gaps.softmax(0) * self.range
        lambdas = torch.cat([self.start[None], self.start + gaps.cumsum(0)])
        if self.origin.to_zero:
            lambdas = torch.cat([lambdas[:-1], torch.tensor([math.inf], dtype=torch.float64)])
        moved = Values(lambdas, self.numbers.scales, self.numbers.raw)
        # for the scale of the terms alone, which must not be moved by them
        points = Points.of(self.schedule, lambdas.detach())
        raw: list[Tensor] = []
        for k, row in enumerate(linear_form(self.origin, self.schedule, values=moved)):
            _, own = first_order(points, k, k + 1, "x0")
            raw.append(_tensor(row.A) * (1 + self.of_state[k]))
            raw += [_tensor(weight) + own * self.of_x0[k, m] for m, weight in enumerate(row.c)]
        return Values(lambdas, torch.zeros(0, dtype=torch.float64), torch.stack(raw))

    def numbers_now(self) -> dict[str, list[Any]]:
        """All that has moved, as plain numbers."""
        return {name: value.tolist() for name, value in self.state_dict().items()}

    def load_numbers(self, numbers: dict[str, list[Any]]) -> None:
        """The inverse of `numbers_now`."""
        self.load_state_dict({name: torch.tensor(v, dtype=torch.float64) for name, v in numbers.items()})

    def plan(self) -> Plan:
        """The plan with the numbers as they are; where none has moved, the origin itself, without slack.
        Raises: ConfigError: nodes have come too close.
        """
        shifts = (self.gaps.detach() - self._first_gaps, self.of_state.detach(), self.of_x0.detach())
        if not any(bool(shift.any()) for shift in shifts):
            return replace(self.raw, provenance={})
        with torch.no_grad():
            values = self.values()
        made = values.put_into(self.raw, self.schedule)
        return replace(made, provenance={})


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


@dataclass(frozen=True)
class Point:
    """One look at a plan that is being polished.

    Attributes: loss: of the iteration; None at the start. validation: score on seeds that the gradient never sees.
    """

    iteration: int
    loss: float | None
    validation: float


def polish(
    free: FreePlan,
    gradient: Gradient,
    seeds: Callable[[int], Sequence[int]],
    validate: Callable[[Plan], float],
    *,
    iterations: int,
    lr: float = 0.03,
    checks: int = 6,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Point]:
    """Descend, and leave `free` at the best of the plans validated on the way, its start among them.

    Args:
        free: what moves; changed in place.
        gradient: of the loss.
        seeds: those of an iteration.
        validate: score on seeds that the gradient never sees, lower is better.
        iterations: of Adam.
        lr: learning rate, to which it rises and from which it falls to 0.
        checks: validations on the way, besides that of the start.
        progress: wraps the iterations.

    Returns:
        What was seen at each validation.
    """
    optimiser = torch.optim.Adam(free.parameters(), lr=lr, betas=(0.9, 0.99))
    course = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: _course(i, max(iterations, 1)))
    best, kept = _validated(free, validate), copy.deepcopy(free.state_dict())
    seen = [Point(0, None, best)]
    every = max(1, iterations // max(checks, 1))
    for i in progress(range(iterations)):
        optimiser.zero_grad()
        try:
            loss = _backward(free, gradient, seeds(i))
        except (
            ConfigError,
            DataError,
        ):  # a node out of range, or a state not finite: back to the best so far
            free.load_state_dict(kept)
            continue
        nn.utils.clip_grad_norm_(free.parameters(), CLIP)
        optimiser.step()
        course.step()
        if (i + 1) % every == 0 or i + 1 == iterations:
            score = _validated(free, validate)
            seen.append(Point(i + 1, loss, score))
            if score < best:
                best, kept = score, copy.deepcopy(free.state_dict())
    free.load_state_dict(kept)
    return seen


def _course(i: int, iterations: int) -> float:
    """Share of the learning rate at an iteration: up a line, then down a cosine."""
    risen = (i + 1) / (WARM * iterations + 1)
    return risen if risen < 1 else (1 + math.cos(math.pi * (i / iterations - WARM) / (1 - WARM))) / 2


def _backward(free: FreePlan, gradient: Gradient, seeds: Sequence[int]) -> float:
    """The loss; the network is gone through with the numbers as leaves, then once from the numbers on."""
    values = free.values()
    leaves = Values(*(t.detach().requires_grad_() for t in (values.lambdas, values.scales, values.raw)))
    loss = gradient(free.raw, leaves, seeds)
    if not math.isfinite(loss):
        raise DataError(f"The loss of a plan must be finite; got {loss}.")
    pairs = [(values.lambdas, leaves.lambdas.grad), (values.raw, leaves.raw.grad)]
    slopes = [(value, slope) for value, slope in pairs if slope is not None]
    torch.autograd.backward([v for v, _ in slopes], [s for _, s in slopes])
    if not all(bool(p.grad.isfinite().all()) for p in free.parameters() if p.grad is not None):
        raise DataError("The slopes of a plan's loss must be finite, but they are not.")
    return loss


def _validated(free: FreePlan, validate: Callable[[Plan], float]) -> float:
    try:
        return validate(free.plan())
    except (ConfigError, DataError):
        return math.inf
