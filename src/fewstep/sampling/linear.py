"""A deterministic plan in its normal form: one row of scalars per evaluation, whatever way the plan was written.

Every deterministic multistep sampler, with or without correctors, single-step blocks and analytic first step,
only ever adds earlier states and outputs. Written in the clean images x0_m that its evaluations predict,

    x_{k+1} = A_k x_k + sum over m <= k of c_km x0_m

where x_k is the state at which evaluation k calls the network. It is the form in which a plan is polished, since
it holds every such sampler [shaul2024bns], and in which it travels to other programs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import Schedule
from fewstep.sampling.plan import Node, Plan, Raw, Step
from fewstep.sampling.solver import Evaluate, Key, Scalar, Values, compile_plan, predictions


@dataclass(frozen=True)
class Row:
    """One evaluation, and the update to the state of the next one (of the last: to the result).

    Attributes:
        node: node of the plan that is evaluated.
        kind: net, or an analytic first step, afs_zero or afs_mean.
        t: conditioning timestep.
        x0: (of_x, of_output): x0_m = of_x * x_m + of_output * output_m; afs_mean: the output is the data mean.
        A: factor on the state.
        c: weight of x0_m for m = 0, ..., this evaluation.
    """

    node: int
    kind: str
    t: Scalar
    x0: tuple[Scalar, Scalar]
    A: Scalar
    c: tuple[Scalar, ...]


def linear_form(
    plan: Plan, schedule: Schedule, prediction: str = "eps", *, values: Values | None = None
) -> tuple[Row, ...]:
    """The rows of a plan, from running it on symbols: a state is the vector of its weights on (x_T, x0_0, x0_1, ...).

    Args: as in `compile_plan`; with `values`, gradients flow to them.
    Raises: ConfigError: the plan is stochastic, or as in `compile_plan`.
    """
    if plan.stochastic:
        raise ConfigError(
            f"A plan that draws noise has no linear form; {plan.name or 'this one'} has eta > 0, "
            "use a deterministic one."
        )
    compiled = compile_plan(plan, schedule, prediction, values=values)
    read_as = predictions(plan, schedule, prediction, values)
    evaluations = [operation for operation in compiled.operations if isinstance(operation, Evaluate)]
    basis = torch.eye(len(evaluations) + 1, dtype=torch.float64)
    store: dict[Key, Tensor] = {("x", 0): basis[0]}
    states: list[Tensor] = []
    for operation in compiled.operations:
        if isinstance(operation, Evaluate):
            states.append(store["x", operation.node])
            # the output that makes this evaluation's x0 the next symbol
            of_x, of_output = read_as[operation.node]["x0"]
            x0 = basis[len(states)]
            output = (x0 - of_x * states[-1]) / of_output if operation.kind == "net" else x0
            for read in operation.reads:
                store[read.key] = read.of_x * states[-1] + read.of_output * output
        else:
            terms = [weight * store[key] for key, weight in operation.terms]
            store["x", operation.end] = torch.stack(terms).sum(0) if terms else torch.zeros_like(basis[0])
    states.append(store["x", len(plan.nodes) - 1])
    rows = []
    for k, operation in enumerate(evaluations):
        A = states[k + 1][0] / states[k][0]
        c = (states[k + 1] - A * states[k])[1 : k + 2]
        differentiable = values is not None and (A.requires_grad or c.requires_grad)
        rows.append(
            Row(
                operation.node,
                operation.kind,
                operation.t_cond,
                read_as[operation.node]["x0"],
                A if differentiable else float(A),
                tuple(c.unbind()) if differentiable else tuple(c.tolist()),
            )
        )
    return tuple(rows)


def in_linear_form(plan: Plan, schedule: Schedule) -> Plan:
    """The same sampler with every step written as a raw step on x0, so that all its numbers are free.

    Raises: ConfigError: the plan is stochastic, or evaluates a node twice.
    """
    rows = linear_form(plan, schedule)
    if any(step.corr is not None and step.corr.mode == "implicit" for step in plan.steps):
        raise ConfigError(
            f"An implicit corrector evaluates a node twice, which raw steps cannot say; "
            f"write {plan.name or 'the plan'} with pseudo correctors."
        )
    nodes: list[Node] = [plan.nodes[row.node] for row in rows]
    steps = []
    for k, row in enumerate(rows):
        weights = tuple((m, float(weight)) for m, weight in enumerate(row.c))
        steps.append(Step(k, k + 1, "x0", raw=Raw(float(row.A), weights)))
    return Plan(
        plan.schedule,
        (*nodes, plan.nodes[-1]),
        tuple(steps),
        name=plan.name,
        clip=plan.clip,
        skip_scale=plan.skip_scale,
        guidance=plan.guidance,
        fingerprint=plan.fingerprint,
        convert_at=plan.convert_at,
        integers=plan.integers,
        provenance=plan.provenance,
    )
