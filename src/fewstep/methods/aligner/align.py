"""Fit the conditioning timestep of each network call of a plan in turn, and keep what holds on other noises.

Differs from the authors' code: times stay in the trained range, the search is a scan with golden section, and a step
changes only if unseen noises agree [xia2023aligner].
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.methods.aligner.fine import Calibration, Fine
from fewstep.methods.aligner.objectives import (
    SCALES,
    Judge,
    Walk,
    fine_path,
    finite_mean,
    require_objective,
    x_T,
)
from fewstep.methods.aligner.optimise import adam, golden
from fewstep.methods.aligner.student import Draw, Student
from fewstep.sampling.plan import Plan
from fewstep.sampling.sample import Costs, solve
from fewstep.sampling.task import Task, distances

MAX_LOG_RATIO = 0.7
"""Bound on |log(conditioning timestep / the node's own)|: a factor of two."""
SURE = 2.0  # standard errors by which a change must be better on unseen noises

OPTIMISERS = ("search", "adam")
GATES = ("plan", "steps", "none")


@dataclass(frozen=True)
class Gain:
    """An objective before and after a change; the standard error is that of the paired difference."""

    before: float
    after: float
    error: float

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> "Gain":
        """Of losses on the same images, (B,) each."""
        difference = after - before
        error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
        return cls(float(before.mean()), float(after.mean()), error)

    @property
    def sure(self) -> bool:
        """Whether it is better by more than chance."""
        return self.after - self.before < -SURE * self.error


@dataclass(frozen=True)
class AlignedNode:
    """What was tried at one network call.

    Attributes:
        t_cond: the aligned conditioning timestep.
        eps_scale: factor on the predicted noise.
        tried: the best (t_cond, eps_scale) of the fit; None where the objective has nothing to say.
        fit, held_out: mean squared distance on the noises of the fit, and on others.
        kept: whether what was tried is in the plan.
        why: if not, the reason.
    """

    node: int
    t: float
    t_cond: float
    eps_scale: float
    tried: tuple[float, float] | None = None
    fit: Gain | None = None
    held_out: Gain | None = None
    kept: bool = False
    why: str = ""


@dataclass(frozen=True)
class Alignment:
    """What came out.

    Attributes:
        plan: the aligned plan, or the one that came in.
        found: the plan with every step's change, whether or not it is better as a whole.
        nodes: what was tried at each network call.
        endpoint: mean distance to the fine solutions of unseen noises; None for plans that draw noise.
        accepted: whether `plan` has moved.
        why: if not, the reason.
    """

    plan: Plan
    found: Plan
    nodes: tuple[AlignedNode, ...]
    endpoint: Gain | None
    accepted: bool
    why: str = ""


def align(
    task: Task,
    plan: Plan,
    *,
    seeds: Sequence[int],
    gate_seeds: Sequence[int],
    objective: str = "trajectory",
    optimiser: str = "search",
    magnitude: bool = False,
    images: Tensor | None = None,
    condition: Condition | None = None,
    substeps: int = 8,
    calibration: Calibration | None = None,
    gate: str = "plan",
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Alignment:
    """Find the conditioning timesteps of a plan.

    Each network call in order: the best timestep on the noises of `seeds`, kept if it is better on those of
    `gate_seeds` by two standard errors of the paired difference. The last call is left alone by the objectives `paper`
    and `paper-sequential`, which call the network where it lands.

    Args:
        task: model, guidance and batch size; its network's weights are neither changed nor given gradients.
        plan: what to align; the values it has already are what it is compared with.
        seeds: noises of the fit.
        gate_seeds: noises that decide, others than `seeds`.
        objective: a key of OBJECTIVES.
        optimiser: `search`, a scan with golden section, or `adam`, as published.
        magnitude: also fit a factor on the predicted noise, within 0.8 and 1.2.
        images: x0 in [-1, 1] (N, *model.shape), or latents, for the objectives that start from some; the first
            len(seeds) are for the fit, the next len(gate_seeds) decide.
        condition: of each image, N of them, for models that take one.
        substeps: steps of the fine path in each of the plan's intervals.
        calibration: of the network's timesteps, for the fine path.
        gate: `plan`, the whole must come nearer to the fine solutions, too; `steps`, only the steps are gated;
            `none`, everything that was tried is kept.
        progress: wraps the network calls.

    Returns:
        The aligned plan and how each of its calls fared.

    Raises:
        ConfigError: the arguments do not go together. DataError: an objective is not finite.
    """
    _check(optimiser, gate, substeps, seeds, gate_seeds)
    goal = require_objective(objective, task, plan, images, condition)
    student = Student(task, plan)
    if goal.reads_images:
        draws = _pairs(student, seeds, gate_seeds, images, condition)
    else:
        draws = (student.draw(seeds), student.draw(gate_seeds))
    fine = Fine(task, substeps, calibration)
    follows = goal.judges == "landing" and goal.own_path
    fit, held_out = (
        Walk(student, goal, draw, fine, fine_path(student, draw, fine) if follows else None) for draw in draws
    )
    tuning = _Tuning(task, optimiser, magnitude, gate != "none", skips_last=goal.judges == "change")
    nodes = []
    for i in progress(range(len(student.segments))):
        judges = fit.judge(i), held_out.judge(i)
        node = tuning.tuned(*judges, is_last=i + 1 == len(student.segments))
        for walk, judge in zip((fit, held_out), judges, strict=True):
            walk.advance(judge, node.t_cond, node.eps_scale)
        if judges[0].segment.calls_network:
            nodes.append(node)
    aligned = _with_timesteps(plan, nodes, task)
    return _judged(student, aligned, tuple(nodes), student.draw(gate_seeds), held_out, gate)


def _check(optimiser: str, gate: str, substeps: int, seeds: Sequence[int], gate_seeds: Sequence[int]) -> None:
    for name, value, allowed in (("optimiser", optimiser, OPTIMISERS), ("gate", gate, GATES)):
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")
    if substeps < 1:
        raise ConfigError(f"substeps must be at least 1; got {substeps}.")
    if len(seeds) < 2 or len(gate_seeds) < 2 or set(seeds) & set(gate_seeds):
        raise ConfigError(
            f"seeds and gate_seeds must be two or more each, none of them in both; got {len(seeds)} and "
            f"{len(gate_seeds)}, {len(set(seeds) & set(gate_seeds))} in both."
        )


def _pairs(
    student: Student,
    seeds: Sequence[int],
    gate_seeds: Sequence[int],
    images: Tensor | None,
    condition: Condition | None,
) -> tuple[Draw, Draw]:
    """Images and noises, of which none is in both."""
    assert images is not None
    n, total = len(seeds), len(seeds) + len(gate_seeds)
    if len(images) < total:
        raise ConfigError(
            f"There must be an image for each of the {n} noises of the fit and {total - n} of the gate; "
            f"got {len(images)}; give more images, or fewer noises."
        )
    first, second = (None, None) if condition is None else (condition[:n], condition[n:total])
    return student.draw(seeds, images[:n], first), student.draw(gate_seeds, images[n:total], second)


def _with_timesteps(plan: Plan, nodes: Sequence[AlignedNode], task: Task) -> Plan:
    """The plan with the aligned timesteps and scales; the plan itself where none has changed."""
    changed = list(plan.nodes)
    for node in nodes:
        t_cond = None if node.t_cond == node.t else node.t_cond
        changed[node.node] = replace(changed[node.node], t_cond=t_cond, eps_scale=node.eps_scale)
    if tuple(changed) == plan.nodes:
        return plan
    return replace(plan, nodes=tuple(changed), guidance=task.guidance, fingerprint=task.model.fingerprint)


def _judged(
    student: Student, found: Plan, nodes: tuple[AlignedNode, ...], draw: Draw, seen: Walk, gate: str
) -> Alignment:
    """The plan found, or the one that came in where it is no better as a whole."""
    plan = student.plan
    if found is plan:
        return Alignment(plan, plan, nodes, None, False, "no step has moved")
    if plan.stochastic:
        # a noise has no fine solution of its own where further noises follow: the steps' gates stand alone
        return Alignment(found, found, nodes, None, True)
    path = seen.path or fine_path(student, draw, seen.fine)
    before, after = (endpoint_distances(student, one, draw, path[-1]) for one in (plan, found))
    endpoint = Gain.of(before, after)
    if gate == "plan" and not endpoint.sure:
        return Alignment(plan, found, nodes, endpoint, False, f"as a whole {_sentence(endpoint)}")
    return Alignment(found, found, nodes, endpoint, True)


def endpoint_distances(student: Student, plan: Plan, draw: Draw, end: Tensor) -> Tensor:
    """Distance of what a plan makes to the fine solution of each noise, (B,)."""
    task, parts, start = student.task, [], x_T(student, draw)
    for first in range(0, len(start), task.batch_size):
        rows, costs = slice(first, first + task.batch_size), Costs()
        condition = None if draw.condition is None else draw.condition[rows]
        parts.append(
            solve(task.model, plan, start[rows], condition=condition, guidance=task.guidance, costs=costs)
        )
        task.calls += costs.network_calls * len(parts[-1])
    return distances(torch.cat(parts), end if plan.clip is None else end.clamp(-plan.clip, plan.clip))


def _sentence(gain: Gain) -> str:
    by = (gain.before - gain.after) / gain.error if gain.error > 0 else 0.0
    return f"it gains {by:.1f} standard errors on unseen noises, where more than {SURE:g} are needed"


@dataclass
class _Tuning:
    """How one network call is tuned."""

    task: Task
    optimiser: str
    magnitude: bool
    gated: bool
    skips_last: bool

    def tuned(self, fit: Judge, held_out: Judge, *, is_last: bool) -> AlignedNode:
        """The best timestep and scale, gated."""
        node = fit.student.plan.nodes[fit.segment.node]
        t_cond, scale = node.t if node.t_cond is None else node.t_cond, node.eps_scale
        same = AlignedNode(fit.segment.node, node.t, t_cond, scale)
        if not fit.segment.calls_network or (is_last and self.skips_last):
            return replace(same, why="the objective does not judge the last step")
        new_t_cond, new_scale = self._tried(fit, node.t, t_cond, scale)
        if (new_t_cond, new_scale) == (t_cond, scale):
            return replace(same, tried=(t_cond, scale), why="nothing is better on the noises of the fit")
        with torch.no_grad():
            gains = [
                Gain.of(judge.losses(t_cond, scale), judge.losses(new_t_cond, new_scale))
                for judge in (fit, held_out)
            ]
        tried = replace(same, tried=(new_t_cond, new_scale), fit=gains[0], held_out=gains[1])
        if self.gated and not gains[1].sure:
            return replace(tried, why=_sentence(gains[1]))
        return replace(tried, t_cond=new_t_cond, eps_scale=new_scale, kept=True)

    def _tried(self, judge: Judge, t: float, t_cond: float, scale: float) -> tuple[float, float]:
        """The best timestep and scale on the images of a judge; those given where none is better."""
        schedule = judge.student.schedule
        low, high = (math.log(end / t) for end in (schedule.t_min, schedule.t_max))
        low, high = min(max(low, -MAX_LOG_RATIO), 0.0), max(min(high, MAX_LOG_RATIO), 0.0)
        closed = self.magnitude and judge.has_best_scale

        start = math.log(t_cond / t)

        def at(log_ratio: float) -> float:
            # exactly that of the plan at the start, and never outside of the trained range by rounding
            moved = min(max(t * math.exp(log_ratio), schedule.t_min), schedule.t_max)
            return t_cond if log_ratio == start else moved if log_ratio else t

        def value(log_ratio: float) -> float:
            with torch.no_grad():
                timestep = at(log_ratio)
                losses = judge.best_scale(timestep)[1] if closed else judge.losses(timestep, scale)
            return finite_mean(losses, judge.segment.node)

        if self.optimiser == "adam":
            best = adam(judge, t, t_cond, scale, (low, high), self.task.batch_size)
        else:
            best = at(golden(value, low, high, also=start))
        with torch.no_grad():
            if closed:
                scale = judge.best_scale(best)[0]
            elif self.magnitude:  # no closed form: search for it, too
                scale = golden(
                    lambda k: finite_mean(judge.losses(best, k), judge.segment.node), *SCALES, also=scale
                )
        return best, scale
