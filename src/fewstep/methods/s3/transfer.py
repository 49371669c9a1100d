"""A plan of another model as one of this model: where a search may start [liu2024usf].

In x / alpha, a frame that all noise schedules share, a step is the same numbers whatever the schedule. Relative to the
step of order 1 between the same nodes, its weights therefore carry over; so they do, in good approximation, to a
schedule whose ends lie elsewhere, on whose range the nodes are spread as they were.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import Schedule, schedule_from_config
from fewstep.sampling.linear import in_linear_form
from fewstep.sampling.plan import Node, Plan, Raw, Step
from fewstep.sampling.solver import Points, first_order


def transferred(plan: Plan, schedule: Schedule) -> Plan:
    """The plan on another noise schedule, without what belongs to its model: weights, widths, bits, guidance.

    On the schedule of the plan, the sampler is the same. It ends at clean data where the plan does, else at t_min.

    Args:
        plan: deterministic, of full width.
        schedule: of the model that it is to start a search for.

    Raises:
        ConfigError: the plan draws noise, changes the network, or evaluates a node twice.
    """
    if plan.changes_network or plan.uses_sub_networks:
        raise ConfigError(
            f"A search starts at plans that call the network as it is, but {plan.name or 'the plan'} changes its "
            "width or bits; start at the plan that it was made from."
        )
    origin = schedule_from_config(dict(plan.schedule))
    form = in_linear_form(plan, origin)
    lambdas = torch.tensor([node.lambda_ for node in form.nodes], dtype=torch.float64)
    moved = _spread(lambdas, origin, schedule)
    before, after = Points.of(origin, lambdas), Points.of(schedule, moved)
    nodes = _nodes(form.nodes, moved, origin, schedule)
    steps = tuple(_step(step, before, after) for step in form.steps)
    return replace(
        form,
        schedule=schedule.config(),
        nodes=nodes,
        steps=steps,
        guidance=None,
        fingerprint=None,
        provenance={"parents": [plan.hash]},
    )


def _ends(schedule: Schedule) -> tuple[float, float]:
    ends = schedule.lambda_(torch.tensor([schedule.t_start, schedule.t_min], dtype=torch.float64)).tolist()
    return ends[0], ends[1]


def _spread(lambdas: Tensor, origin: Schedule, schedule: Schedule) -> Tensor:
    """Log-SNRs at the same share of the range between a schedule's ends; infinite ones stay."""
    (a, b), (c, d) = _ends(origin), _ends(schedule)
    if (a, b) == (c, d):
        return lambdas
    return torch.where(lambdas.isinf(), lambdas, c + (lambdas - a) * ((d - c) / (b - a)))


def _nodes(
    nodes: tuple[Node, ...], lambdas: Tensor, origin: Schedule, schedule: Schedule
) -> tuple[Node, ...]:
    times = schedule.t_of_lambda(torch.where(lambdas.isinf(), 0.0, lambdas))
    times = torch.where(lambdas.isinf(), 0.0, times.clamp(schedule.t_min, schedule.t_max))
    times[0] = schedule.t_start  # written out, as the inverse of the log-SNR may round past it
    moved = []
    for node, t, lambda_ in zip(nodes, times.tolist(), lambdas.tolist(), strict=True):
        told = node.t_cond
        if told is not None and origin.config() != schedule.config():
            own = origin.lambda_(torch.tensor([told], dtype=torch.float64))
            lam = _spread(own, origin, schedule)
            told = float(schedule.t_of_lambda(lam).clamp(schedule.t_min, schedule.t_max))
        at = (node.t, node.lambda_) if lambda_ == node.lambda_ and origin == schedule else (t, lambda_)
        moved.append(replace(node, t=at[0], lambda_=at[1], t_cond=told))
    return tuple(moved)


def _step(step: Step, before: Points, after: Points) -> Step:
    """The raw step with its numbers relative to those of the step of order 1."""
    assert step.raw is not None
    (A, own), (new_A, new_own) = (
        first_order(points, step.start, step.end, "x0") for points in (before, after)
    )
    scale = float(new_own) / float(own)
    # at clean data the step of order 1 keeps nothing of the state, and a plan that does says how much of x / sigma
    of_state = (
        float(before.sigma[step.start]) / float(after.sigma[step.start])
        if float(A) == 0
        else float(new_A) / float(A)
    )
    weights = tuple((m, weight * scale) for m, weight in step.raw.c)
    return replace(step, raw=Raw(step.raw.A * of_state, weights))


def require_calls(plans: Sequence[Plan], numbers: Sequence[int]) -> None:
    """Raise ConfigError for plans of numbers of calls that no search is for."""
    for plan in plans:
        if plan.nfe not in numbers:
            raise ConfigError(
                f"A plan of --from must make one of the numbers of calls of --nfe, {', '.join(map(str, numbers))}; "
                f"{plan.name or 'one'} makes {plan.nfe}."
            )
