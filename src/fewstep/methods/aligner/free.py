"""All times told in a plan, and the scales, as numbers that gradients move together from where the fit left them."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule
from fewstep.methods.aligner.objectives import SCALES
from fewstep.sampling.descent import Free
from fewstep.sampling.plan import Plan
from fewstep.sampling.solver import Values


class FreeTimes(Free):
    """A plan whose network calls can be told other times: log(told / own time) of each, and log(scale).

    Attributes:
        log_ratio: of each network node, (n,).
        log_scale: of each network node, (n,); without `magnitude` an empty one, and the scales stay.
    """

    def __init__(self, plan: Plan, schedule: Schedule, *, magnitude: bool = False) -> None:
        super().__init__()
        self.origin, self.schedule = plan, schedule
        self.asked = [i for i, node in enumerate(plan.nodes) if node.eval == "net"]
        told = {
            i: plan.nodes[i].t if plan.nodes[i].t_cond is None else plan.nodes[i].t_cond for i in self.asked
        }
        self.form = replace(
            plan,
            nodes=tuple(replace(n, t_cond=told.get(i, n.t_cond)) for i, n in enumerate(plan.nodes)),
        )
        self.numbers = Values.of(self.form)
        self.own = torch.tensor([plan.nodes[i].t for i in self.asked], dtype=torch.float64)
        self.log_ratio = nn.Parameter(
            (torch.tensor(list(told.values()), dtype=torch.float64) / self.own).log()
        )
        scales = self.numbers.eps_scale[self.asked] if magnitude else torch.zeros(0, dtype=torch.float64)
        self.log_scale = nn.Parameter(scales.log())
        self._start = self.log_ratio.detach().clone(), self.log_scale.detach().clone()

    def values(self) -> Values:
        """The numbers of `form`, with gradients; kept within the trained range and the bounds of scales."""
        told = _held(self.own * self.log_ratio.exp(), self.schedule.t_min, self.schedule.t_max)
        scales = self.numbers.eps_scale
        if len(self.log_scale):
            scales = scales.index_put((torch.tensor(self.asked),), _held(self.log_scale.exp(), *SCALES))
        return replace(self.numbers, t_cond=told, eps_scale=scales)

    def plan(self) -> Plan:
        """The plan with the numbers as they are; where none has moved, the origin itself."""
        moved = (
            now.detach() - start
            for now, start in zip((self.log_ratio, self.log_scale), self._start, strict=True)
        )
        if not any(bool(by.any()) for by in moved):
            return self.origin
        with torch.no_grad():
            made = self.values().put_into(self.form, self.schedule)
        nodes = tuple(replace(n, t_cond=None) if n.t_cond == n.t else n for n in made.nodes)
        return replace(made, nodes=nodes)


def _held(value: Tensor, low: float, high: float) -> Tensor:
    """The value within bounds, with the slope that it has inside: beyond a bound it can still find back."""
    return value + (value.clamp(low, high) - value).detach()
