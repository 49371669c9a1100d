"""Everything that can move in a deterministic plan: the grid, and every coefficient of the linear form.

Structure search finds the region, gradients its bottom. What is moved is the largest family of deterministic
samplers on a grid, non-stationary linear multistep [shaul2024bns]; the losses are the distance to a fine solution,
as there, or a distance between sets of images, as in [watson2022ddss].
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule
from fewstep.sampling.descent import Free
from fewstep.sampling.linear import in_linear_form, linear_form
from fewstep.sampling.plan import MIN_GAP, Plan
from fewstep.sampling.solver import Points, Values, first_order

SLACK = 0.01  # share of the last gap kept between the last evaluation and t_min, at the start


class FreePlan(Free):
    """A plan whose numbers can move: node times by log-gaps, and a factor or term on every coefficient.

    At zero shifts the coefficients are those of the plan it was made of, on the grid as it is by now, so that a
    solver keeps its order while its grid moves.
    """

    def __init__(self, plan: Plan, schedule: Schedule) -> None:
        super().__init__()
        self.origin, self.schedule = plan, schedule
        self.form = in_linear_form(plan, schedule)
        self.numbers = Values.of(plan)
        lambdas = self.numbers.lambdas
        finite = lambdas[lambdas.isfinite()]
        gaps = finite.diff()
        self.start, self.range = finite[0], finite[-1] - finite[0]
        if plan.to_zero:
            # the last evaluation may move too, as far as the network goes
            limit = schedule.lambda_(torch.tensor(schedule.t_min, dtype=torch.float64))
            self.range = limit - finite[0]
            last = gaps[-1] if len(gaps) else self.range.clamp_min(MIN_GAP)
            gaps = torch.cat([gaps, (limit - finite[-1]).clamp_min(SLACK * last)[None]])
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
        moved = replace(self.numbers, lambdas=lambdas)
        # for the scale of the terms alone, which must not be moved by them
        points = Points.of(self.schedule, lambdas.detach())
        raw: list[Tensor] = []
        for k, row in enumerate(linear_form(self.origin, self.schedule, values=moved)):
            _, own = first_order(points, k, k + 1, "x0")
            raw.append(_tensor(row.A) * (1 + self.of_state[k]))
            raw += [_tensor(weight) + own * self.of_x0[k, m] for m, weight in enumerate(row.c)]
        return replace(Values.of(self.form), lambdas=lambdas, raw=torch.stack(raw))

    def plan(self) -> Plan:
        """The plan with the numbers as they are; where none has moved, the origin itself, without slack.
        Raises: ConfigError: nodes have come too close.
        """
        shifts = (self.gaps.detach() - self._first_gaps, self.of_state.detach(), self.of_x0.detach())
        if not any(bool(shift.any()) for shift in shifts):
            return replace(self.form, provenance={})
        with torch.no_grad():
            values = self.values()
        plan = values.put_into(self.form, self.schedule)
        return replace(plan, provenance={})


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)
