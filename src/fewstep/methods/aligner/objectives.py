"""What conditioning timesteps are judged by, step by step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.condition import Condition, said
from fewstep.methods.aligner.fine import Fine
from fewstep.methods.aligner.student import Draw, Position, Segment, Student
from fewstep.sampling.plan import Plan
from fewstep.sampling.sample import start_std
from fewstep.sampling.solver import Scalar
from fewstep.sampling.task import Task

SCALES = (0.8, 1.2)
"""Bounds of the factor on the predicted noise: beyond them a fit makes up for another step's error."""


@dataclass(frozen=True)
class Objective:
    """How a step is judged.

    Attributes:
        reads_images: whether it starts from images.
        own_path: whether a step starts where the steps before it have landed, not at a noised image.
        judges: noise (predicted against drawn), landing (against the fine path), or
            change (of the prediction from before the step to after it).
    """

    reads_images: bool
    own_path: bool
    judges: str


OBJECTIVES: dict[str, Objective] = {
    # the landed point's distance to the fine path of the same noise, along the plan's own path
    "trajectory": Objective(False, True, "landing"),
    # the prediction must be the same before and after a step [xia2023aligner]
    "paper": Objective(True, False, "change"),
    "paper-sequential": Objective(True, True, "change"),
    # the predicted noise's distance to the drawn one
    "denoise": Objective(True, False, "noise"),
    # the landed point's distance to the fine path from a noised image
    "local": Objective(True, False, "landing"),
}


def require_objective(
    name: str, task: Task, plan: Plan, images: Tensor | None, condition: Condition | None
) -> Objective:
    """The objective of that name.

    Raises:
        ConfigError: there is none, or it needs images that are missing or another kind of plan.
    """
    if name not in OBJECTIVES:
        raise ConfigError(f"objective must be one of {', '.join(OBJECTIVES)}; got {name!r}.")
    objective, model = OBJECTIVES[name], task.model
    if plan.stochastic and objective.judges == "landing":
        raise ConfigError(
            f"The objective {name} compares with a deterministic path, but {plan.name or 'the plan'} draws noise; "
            "use paper or denoise."
        )
    if not objective.reads_images:
        return objective
    if images is None or tuple(images.shape[1:]) != model.shape:
        what = "latents" if model.decode is not None else "images"
        raise ConfigError(
            f"The objective {name} needs {what} (N, {', '.join(map(str, model.shape))}); "
            f"got {'none' if images is None else tuple(images.shape)}; pass them, or use trajectory."
        )
    if model.conditions is not None and (condition is None or len(condition) != len(images)):
        raise ConfigError(
            f"The objective {name} needs the condition of each image, as the model takes "
            f"{said(model.conditions.entries)}; got {'none' if condition is None else len(condition)} for "
            f"{len(images)} images; pass condition."
        )
    return objective


@dataclass(frozen=True)
class Judge:
    """One segment, seen from where some images are before it."""

    student: Student
    objective: Objective
    segment: Segment
    at: Position
    target: Tensor

    def part(self, rows: slice) -> "Judge":
        """The same of some of the images."""
        return replace(self, at=self.at.part(rows), target=self.target[rows])

    @property
    def has_best_scale(self) -> bool:
        """Whether the judged tensor is affine in the scale."""
        return self.objective.judges == "noise" or (
            self.objective.judges == "landing" and len(self.segment.rows) == 1
        )

    def best_scale(self, t_cond: Scalar) -> tuple[float, Tensor]:
        """The scale within SCALES that is best with a timestep, in closed form, and the losses with it, (B,)."""
        still, moved = self._line(t_cond)
        wanted = (self.target - still).double()
        best = float((wanted * moved).sum() / moved.double().square().sum())
        scale = min(max(best, SCALES[0]), SCALES[1])
        return scale, _squares(still + scale * moved - self.target)

    def losses(self, t_cond: Scalar, scale: Scalar) -> Tensor:
        """Squared distance of each image, (B,) float64."""
        if self.has_best_scale:
            still, moved = self._line(t_cond)
            return _squares(still + scale * moved - self.target)
        landed, _ = self.student.land(self.segment, self.at, t_cond, scale)
        if self.objective.judges == "change":
            node = self.student.plan.nodes[self.segment.lands]
            landed = self.student.eps(node, landed, self.at.condition, node.t, node.t)
        return _squares(landed - self.target)

    def _line(self, t_cond: Scalar) -> tuple[Tensor, Tensor]:
        """(y0, y1): what is judged is y0 + scale * y1."""
        if self.objective.judges == "landing":
            return self.student.parts(self.segment, self.at, t_cond)
        node = self.student.plan.nodes[self.segment.node]
        eps = self.student.eps(node, self.at.x, self.at.condition, t_cond)
        return torch.zeros_like(eps), eps


def _squares(off: Tensor) -> Tensor:
    squares: Tensor = off.double().square().flatten(1).sum(1)
    return squares


@dataclass
class Walk:
    """Images on their way through the segments of a plan.

    Attributes:
        path: states of the fine path at each segment and at the end, where the objective follows it.
    """

    student: Student
    objective: Objective
    draw: Draw
    fine: Fine
    path: Sequence[Tensor] | None = None
    landed: Tensor | None = field(default=None, init=False)
    history: tuple[Tensor, ...] = field(default=(), init=False)

    def judge(self, i: int) -> Judge:
        """What segment i is judged by."""
        student, segment = self.student, self.student.segments[i]
        at = Position(self._state(i), self.history, self.draw.fresh[i], self.draw.condition)
        with torch.no_grad():
            return Judge(student, self.objective, segment, at, self._target(i, at))

    def advance(self, judge: Judge, t_cond: float, scale: float) -> None:
        """Take the step with the values that it was given."""
        with torch.no_grad():
            self.landed, self.history = self.student.land(judge.segment, judge.at, t_cond, scale)

    def _state(self, i: int) -> Tensor:
        if self.objective.own_path and self.landed is not None:
            return self.landed
        if self.objective.reads_images:
            return self.student.noised(self.draw, i)
        return x_T(self.student, self.draw)

    def _target(self, i: int, at: Position) -> Tensor:
        segment, nodes = self.student.segments[i], self.student.plan.nodes
        if self.objective.judges == "noise":
            return self.draw.eps
        if self.objective.judges == "change":
            node = nodes[segment.node]
            return self.student.eps(node, at.x, at.condition, node.t, node.t)
        if self.path is not None:
            return self.path[i + 1]
        return self.fine.path(at.x, at.condition, [nodes[segment.node], nodes[segment.lands]])[-1]


def x_T(student: Student, draw: Draw) -> Tensor:
    """The states at which sampling starts."""
    return start_std(student.task.model, student.plan) * draw.eps


def fine_path(student: Student, draw: Draw, fine: Fine) -> list[Tensor]:
    """The fine path's states at each segment and at the end, from the noises that sampling starts with."""
    nodes = student.plan.nodes
    return fine.path(
        x_T(student, draw),
        draw.condition,
        [*(nodes[segment.node] for segment in student.segments), nodes[-1]],
    )


def finite_mean(losses: Tensor, node: int) -> float:
    """The mean of the losses at a node.
    Raises: DataError: it is not finite.
    """
    mean = float(losses.detach().mean())
    if not math.isfinite(mean):
        raise DataError(
            f"The objective must be finite, but at node {node} it is {mean}; check the network's weights and dtype."
        )
    return mean
