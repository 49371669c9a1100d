"""Mixtures whose predictions are exact, and plans that no preset writes."""

from dataclasses import replace

import numpy as np
import torch

from fewstep.diffusion.mixture import GaussianMixture
from fewstep.sampling.plan import Scale
from fewstep.sampling.sample import solve
from fewstep.sampling.solver import Values


def reference_mixture():
    """16 dimensions, 8 components, numpy's frozen generator: the same numbers everywhere."""
    rng = np.random.RandomState(0)
    means = rng.randn(8, 16)
    means = 2 * means / np.linalg.norm(means, axis=1, keepdims=True)
    stds, weights = rng.uniform(0.05, 0.2, 8), rng.uniform(0.5, 1.5, 8)
    return GaussianMixture(torch.tensor(weights / weights.sum()), torch.tensor(means), torch.tensor(stds))


def reference_noise(n, seed=1):
    return torch.tensor(np.random.RandomState(seed).randn(n, 16))


def small_mixture():
    """3 dimensions, 2 components, of the spread of images."""
    means = torch.tensor([[0.5, -0.3, 0.1], [-0.6, 0.2, 0.4]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.4, 0.6]).double(), means, torch.tensor([0.3, 0.2]).double())


def predictors(model):
    """eps_hat and x0_hat of a noise predictor as functions (x, t) of a scalar time."""

    def eps_of(x, t):
        return model.fn(x, torch.as_tensor(t, dtype=torch.float64).expand(len(x)))

    def x0_of(x, t):
        t = torch.as_tensor(t, dtype=torch.float64)
        return (x - model.schedule.sigma(t) * eps_of(x, t)) / model.schedule.alpha(t)

    return eps_of, x0_of


def times(plan):
    return [node.t for node in plan.nodes]


def moved(plan, schedule, ts):
    """The plan on other times."""
    lambdas = schedule.lambda_(torch.as_tensor(ts, dtype=torch.float64))
    return replace(Values.of(plan), lambdas=lambdas).put_into(plan, schedule)


def plain_taylor(plan):
    """The plan without correctors and scales."""
    steps = tuple(
        replace(step, corr=None, deriv=tuple(replace(d, scale=Scale()) for d in step.deriv))
        for step in plan.steps
    )
    return replace(plan, steps=steps)


def mean_error(model, plan, x, reference):
    return float((solve(model, plan, x) - reference).norm(dim=1).mean())
