"""A correction of the sampler's coefficients for the noise of quantisation, from a few calibration runs.

After Q-Drift [ryu2026qdrift]: the error of a quantised call is taken for noise of a variance that calibration measures,
and a step keeps its marginal by having less of the predicted noise, as a stochastic step has that draws as much itself
[song2021ddim, Eq. 16]. Differs: written as the coefficients of a plan's linear form, whatever its solver; theirs are
formulas of three samplers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.diffusion.denoiser import Denoiser, Model
from fewstep.diffusion.prediction import weights
from fewstep.methods.tfmq.calibration import Call
from fewstep.sampling.linear import in_linear_form
from fewstep.sampling.plan import Plan, Raw, network_nodes
from fewstep.sampling.sample import quantised_calls


def error_variances(model: Model, plan: Plan, calls: Sequence[Call], *, rows: int) -> list[float]:
    """Variance of the error of x0_hat at each call, where integers and floats are given the same states.

    Args: model: with the integers of the plan. calls: what the plan's calls are given. rows: how many of each.
    """
    select = quantised_calls(model, plan)
    assert select is not None
    found = []
    for i, call in zip(network_nodes(plan), calls, strict=True):
        node, x = plan.nodes[i], call.x[:rows]
        condition = None if call.condition is None else call.condition[:rows]
        outputs: list[Tensor] = []
        network: Callable[..., Tensor] | None
        for network in (None, select(node)):
            denoiser = Denoiser(model, condition=condition)
            with torch.no_grad():
                outputs.append(
                    denoiser.output(x, node.t, t_cond=node.t_cond, width=node.width, network=network)
                )
        read = weights(model.prediction, model.schedule, torch.tensor(node.t, dtype=torch.float64))
        error = (outputs[1] - outputs[0]).double() * float(read.x0_of_output)
        found.append(float(error.var()))
    return found


def corrected(model: Model, plan: Plan, variances: Sequence[float]) -> Plan:
    """The plan whose steps make up for errors of these variances, one for each network call, in the newest x0_hat.

    A step from s to e that takes c x0_hat carries c^2 v of noise, which is taken off the noise that it keeps:
    sigma_e^2 becomes sigma_e^2 - c^2 v, and the signal stays. Steps to clean data keep no noise, and stay.

    Raises: ConfigError: the plan draws noise, or has no linear form of one evaluation a node.
    """
    form, schedule = in_linear_form(plan, model.schedule), model.schedule
    variance = dict(zip(network_nodes(form), variances, strict=True))
    steps = []
    for k, step in enumerate(form.steps):
        assert step.raw is not None
        newest, end = dict(step.raw.c).get(k, 0.0), form.nodes[k + 1]
        if k not in variance or math.isinf(end.lambda_):
            steps.append(step)
            continue
        sigma = float(schedule.sigma(schedule.t_of_lambda(end.lambda_)))
        kept = math.sqrt(max(0.0, 1 - newest**2 * variance[k] / sigma**2))
        alpha = float(schedule.alpha(schedule.t_of_lambda(form.nodes[k].lambda_)))
        A = step.raw.A * kept
        # what x_start brought of the signal is brought by its prediction instead
        c = {**dict(step.raw.c), k: newest + alpha * (step.raw.A - A)}
        steps.append(replace(step, raw=Raw(A, tuple(sorted(c.items())))))
    return replace(form, steps=tuple(steps))
