"""All conditioning timesteps of a plan, and the scales, as numbers that gradients move together."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule
from fewstep.methods.aligner.objectives import SCALES
from fewstep.sampling.descent import Free
from fewstep.sampling.plan import Plan
from fewstep.sampling.solver import Values


class FreeTimes(Free):
    """A plan whose conditioning timesteps can move: log(timestep / the node's own) of each call, and log(scale).

    Attributes:
        log_ratio: of each network node, (n,).
        log_scale: of each network node, (n,); without `magnitude` an empty one, and the scales stay.
    """

    def __init__(self, plan: Plan, schedule: Schedule, *, magnitude: bool = False) -> None:
        super().__init__()
        self.origin, self.schedule = plan, schedule
        self.called = [i for i, node in enumerate(plan.nodes) if node.eval == "net"]
        t_cond = {
            i: plan.nodes[i].t if plan.nodes[i].t_cond is None else plan.nodes[i].t_cond for i in self.called
        }
        self.form = replace(
            plan,
            nodes=tuple(replace(n, t_cond=t_cond.get(i, n.t_cond)) for i, n in enumerate(plan.nodes)),
        )
        self.numbers = Values.of(self.form)
        self.own = torch.tensor([plan.nodes[i].t for i in self.called], dtype=torch.float64)
        self.log_ratio = nn.Parameter(
            (torch.tensor(list(t_cond.values()), dtype=torch.float64) / self.own).log()
        )
        scales = self.numbers.eps_scale[self.called] if magnitude else torch.zeros(0, dtype=torch.float64)
        self.log_scale = nn.Parameter(scales.log())
        self._start = self.log_ratio.detach().clone(), self.log_scale.detach().clone()

    def values(self) -> Values:
        """The numbers of `form`, with gradients; kept within the trained range and the bounds of scales."""
        t_cond = _held(self.own * self.log_ratio.exp(), self.schedule.t_min, self.schedule.t_max)
        scales = self.numbers.eps_scale
        if len(self.log_scale):
            scales = scales.index_put((torch.tensor(self.called),), _held(self.log_scale.exp(), *SCALES))
        return replace(self.numbers, t_cond=t_cond, eps_scale=scales)

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
