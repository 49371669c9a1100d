"""Parts of plans, and plans run backwards: from an image to the state that leads to it."""

import math
from dataclasses import replace

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import Schedule
from fewstep.sampling.plan import MIN_GAP, Node, Plan, Step


def stretch(plan: Plan, first: int, last: int) -> Plan:
    """The part of a plan that leads from one node to another.

    Raises: ConfigError: its steps are not of order 1, each from a node to the next.
    """
    _require_plain(plan)
    nodes = (*plan.nodes[first:last], replace(plan.nodes[last], eval="none"))
    steps = tuple(
        replace(step, start=step.start - first, end=step.end - first) for step in plan.steps[first:last]
    )
    return replace(plan, nodes=nodes, steps=steps)


def inverse(plan: Plan, schedule: Schedule) -> Plan:
    """The plan run backwards: DDIM steps on its times, from data to noise [song2021ddim, Sec. 4.3].

    Clean data, of which no network can be asked, is taken for the state at the schedule's t_min: images enter as they
    are. So a plan of n calls that ends there or at clean data after it has an inverse of n - 1 calls. Each call is
    made at the node at which a step begins, so that going back and forth is exact to first order in the steps only.

    Raises: ConfigError: as `stretch`; or the plan is an inverse.
    """
    _require_plain(plan)
    if plan.inverse:
        raise ConfigError(
            f"A plan must go from noise to data to be run backwards; {plan.name} is an inverse."
        )
    least = Node(schedule.t_min, float(schedule.lambda_(schedule.t_min)))
    nodes = [node for node in plan.nodes if not math.isinf(node.lambda_)]
    if nodes[-1].lambda_ <= least.lambda_ - MIN_GAP:
        nodes.append(least)
    if len(nodes) < 2:
        raise ConfigError(
            f"A plan must have two nodes or more with noise to be run backwards; got {len(nodes)} in {plan.name}."
        )
    backwards = [replace(node, eval="net") for node in reversed(nodes)]
    backwards[-1] = replace(backwards[-1], eval="none")
    return replace(
        plan,
        nodes=tuple(backwards),
        steps=tuple(Step(i, i + 1, "eps") for i in range(len(backwards) - 1)),
        name=f"{plan.name}.inverse",
        clip=None,
        inverse=True,
    )


def _require_plain(plan: Plan) -> None:
    for step in plan.steps:
        if step.deriv or step.raw or step.corr or step.start != step.end - 1:
            raise ConfigError(
                f"A plan must have steps of order 1 between neighbours, as ddim and ddpm, to be run in parts or "
                f"backwards; {plan.name or 'this one'} has another from node {step.start} to {step.end}."
            )
