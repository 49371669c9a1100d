"""A plan taken apart at its network calls, so that the timestep of one can change and its landing be observed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.prediction import weights
from fewstep.rng import ImageNoise
from fewstep.sampling.linear import linear_form
from fewstep.sampling.plan import Node, Plan
from fewstep.sampling.sample import check_fingerprint
from fewstep.sampling.solver import Scalar, coefficients
from fewstep.sampling.task import Task


@dataclass(frozen=True)
class Row:
    """The update after evaluation k: A x + sum over m <= k of c[m] x0_m."""

    A: float
    c: tuple[float, ...]


@dataclass(frozen=True)
class Segment:
    """From one evaluated node to the next: two evaluations at an implicit corrector, otherwise one.

    Attributes:
        node: index of the evaluated node.
        rows: one update an evaluation.
        calls_network: whether the network is called, and it is not an analytic first step.
        lands: index of the next evaluated node; of the last segment, of the plan's last node.
        noise_std: of the fresh noise added on landing.
    """

    node: int
    rows: tuple[Row, ...]
    calls_network: bool
    lands: int
    noise_std: float = 0.0


@dataclass(frozen=True)
class Draw:
    """Images that are all drawn from seeds.

    Attributes:
        eps: unit noise, (B, *shape): of x_T, and of the pair (x0, eps).
        fresh: noise that each segment adds, None where it adds none.
        condition: of each image, B of them; None for a model that has none.
        x0: images of the pairs, where there are any.
    """

    eps: Tensor
    fresh: tuple[Tensor | None, ...]
    condition: Condition | None
    x0: Tensor | None = None


@dataclass(frozen=True)
class Position:
    """Where images stand before a segment.

    Attributes:
        x: state, (B, *shape).
        history: x0 that the earlier evaluations predicted.
        fresh: noise that is added on landing.
        condition: of each image, B of them; None for a model that has none.
    """

    x: Tensor
    history: tuple[Tensor, ...]
    fresh: Tensor | None
    condition: Condition | None

    def part(self, rows: slice) -> "Position":
        """Some of the images."""
        return Position(
            self.x[rows],
            tuple(x0[rows] for x0 in self.history),
            None if self.fresh is None else self.fresh[rows],
            None if self.condition is None else self.condition[rows],
        )


class Student:
    """A plan whose every call can have another conditioning timestep and scale.

    Attributes:
        segments: the calls in order.
        schedule: of the model.
    """

    def __init__(self, task: Task, plan: Plan) -> None:
        """Take a plan apart.

        Raises:
            ConfigError: it is for another model, schedule or guidance, or needs what a task has not.
        """
        _check_fit(task, plan)
        self.task, self.plan, self.schedule = task, plan, task.model.schedule
        self.segments = _noisy_segments(task, plan) if plan.stochastic else _segments(task, plan)

    def draw(
        self, seeds: Sequence[int], x0: Tensor | None = None, condition: Condition | None = None
    ) -> Draw:
        """The noises of some seeds; the condition follows from the seeds, as in `Task`, where none is given."""
        model = self.task.model
        noise = ImageNoise(seeds, model.shape)
        eps = noise().to(model.device)
        # as sampling draws them: in the order of the steps, none where none is added
        fresh = tuple(noise().to(model.device) if segment.noise_std else None for segment in self.segments)
        if condition is None:
            condition = model.condition_of(seeds)
        return Draw(eps, fresh, condition, None if x0 is None else x0.to(eps))

    def noised(self, draw: Draw, segment: int) -> Tensor:
        """The images with their noise at the time of a segment, alpha x0 + sigma eps."""
        assert draw.x0 is not None
        t = self.plan.nodes[self.segments[segment].node].t
        return float(self.schedule.alpha(t)) * draw.x0 + float(self.schedule.sigma(t)) * draw.eps

    def eps(
        self,
        node: Node,
        x: Tensor,
        condition: Condition | None,
        t_cond: Scalar,
        converted_at: Scalar | None = None,
    ) -> Tensor:
        """The noise predicted at a node's own time and width with another conditioning timestep.

        Args:
            node: where.
            x: states, (B, *shape).
            condition: of each image, B of them.
            t_cond: conditioning timestep.
            converted_at: time at which the output is read as noise; None for the plan's way.
        """
        model, size = self.task.model, self.task.batch_size
        if converted_at is None:
            converted_at = t_cond if self.plan.convert_at == "tau" else node.t
        read = weights(model.prediction, self.schedule, torch.as_tensor(converted_at, dtype=torch.float64))
        of_x, of_output = read.eps_of_x.to(x), read.eps_of_output.to(x)
        noises = []
        for first in range(0, len(x), size):
            rows = slice(first, first + size)
            part = None if condition is None else condition[rows]
            denoiser = Denoiser(model, condition=part, guidance=self.task.guidance)
            output = denoiser.output(x[rows], node.t, t_cond=t_cond, width=node.width)
            self.task.calls += denoiser.calls * len(output)
            noises.append(of_x * x[rows] + of_output * output)
        return torch.cat(noises)

    def parts(self, segment: Segment, at: Position, t_cond: Scalar) -> tuple[Tensor, Tensor]:
        """(y0, y1) of a segment with one evaluation: it lands at y0 + scale * y1."""
        (row,), node = segment.rows, self.plan.nodes[segment.node]
        alpha, sigma = self._amplitudes(node)
        still = _combined(row, at.x, (*at.history, at.x / alpha))
        moved = -row.c[-1] * sigma / alpha * self.eps(node, at.x, at.condition, t_cond)
        return self._with_noise(segment, at, still), moved

    def land(
        self, segment: Segment, at: Position, t_cond: Scalar, scale: Scalar
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The state at the next segment, and the history with this one's predictions."""
        node, x, history = self.plan.nodes[segment.node], at.x, at.history
        alpha, sigma = self._amplitudes(node)
        for row in segment.rows:
            # an analytic first step predicts noise alone
            eps = scale * self.eps(node, x, at.condition, t_cond) if segment.calls_network else x / sigma
            history = (*history, (x - sigma * eps) / alpha)
            x = _combined(row, x, history)
        return self._with_noise(segment, at, x), history

    def _amplitudes(self, node: Node) -> tuple[float, float]:
        return float(self.schedule.alpha(node.t)), float(self.schedule.sigma(node.t))

    def _with_noise(self, segment: Segment, at: Position, x: Tensor) -> Tensor:
        return x if at.fresh is None else x + segment.noise_std * at.fresh


def _combined(row: Row, x: Tensor, history: Sequence[Tensor]) -> Tensor:
    total = row.A * x
    for weight, x0 in zip(row.c, history, strict=True):
        if weight != 0:
            total = total + weight * x0
    return total


def _segments(task: Task, plan: Plan) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for row in linear_form(plan, task.model.schedule, task.model.prediction):
        update = Row(float(row.A), tuple(float(weight) for weight in row.c))
        if segments and segments[-1].node == row.node:
            segments[-1] = replace(segments[-1], rows=(*segments[-1].rows, update))
        else:
            segments.append(Segment(row.node, (update,), row.kind == "net", len(plan.nodes) - 1))
    following = [segment.node for segment in segments[1:]]
    return (*(replace(s, lands=node) for s, node in zip(segments, following, strict=False)), segments[-1])


def _noisy_segments(task: Task, plan: Plan) -> tuple[Segment, ...]:
    """Of a plan that adds noise, which has no linear form; its steps must be of order 1, one after another."""
    segments = []
    updates = coefficients(plan, task.model.schedule)
    for k, (step, (update, _)) in enumerate(zip(plan.steps, updates, strict=True)):
        if step.start != k or step.deriv or step.raw or step.corr or plan.nodes[k].eval != "net":
            raise ConfigError(
                f"A plan that draws noise can be aligned if each step has order 1 and goes from node to node; "
                f"steps[{k}] of {plan.name or 'this one'} does not."
            )
        A, weight = float(update.A), float(update.c[k])
        if step.pred == "eps":  # eps = (x - alpha x0) / sigma
            t = plan.nodes[k].t
            alpha, sigma = (float(f(t)) for f in (task.model.schedule.alpha, task.model.schedule.sigma))
            A, weight = A + weight / sigma, -weight * alpha / sigma
        row = Row(A, (*[0.0] * k, weight))
        segments.append(Segment(k, (row,), True, k + 1, float(update.noise_std)))
    return tuple(segments)


def _check_fit(task: Task, plan: Plan) -> None:
    check_fingerprint(task.model, plan)
    if plan.guidance is not None and plan.guidance != task.guidance:
        raise ConfigError(
            f"The plan is for guidance {plan.guidance}, but the task has {task.guidance}; timesteps are aligned "
            "for one guidance, so give the plan's."
        )
    if plan.changes_network or plan.nodes[0].eval == "afs_mean":
        raise ConfigError(
            f"A plan to be aligned must need a model alone; {plan.name or 'this one'} sets quant, skip_scale or "
            "eval afs_mean, take these out first."
        )
    if task.model.net is not None and task.model.net.training:
        raise ConfigError(
            "The network must be in evaluation mode, but it is in training mode; call its eval()."
        )
    _check_clock(task)


def _check_clock(task: Task) -> None:
    """Raise ConfigError where the network rounds times, as a table of embeddings does."""
    model = task.model
    # two times within one thousandth, 0.3 and 0.45 of the way, on the tables of 1000 rows as in continuous time
    ts = (0.5003, 0.50045)
    x = ImageNoise([0], model.shape)().to(model.device)
    condition = model.condition_of([0])
    with torch.no_grad():
        first, second = (Denoiser(model, condition=condition).output(x, ts[0], t_cond=t) for t in ts)
    task.calls += 2
    if torch.equal(first, second):
        raise ConfigError(
            f"The network must take any time, but t={ts[0]} and t={ts[1]} give the same output; use a network "
            "with a continuous time embedding, not a table of whole timesteps."
        )
