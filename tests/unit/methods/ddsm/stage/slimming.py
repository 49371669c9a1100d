"""Slimmable models whose error is known, and searches over their widths."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import torch

from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.ddsm.cost import CostTable
from fewstep.methods.ddsm.stage.settings import StepAwareSettings
from fewstep.methods.ddsm.stage.width_search import WidthSearch
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.pareto import pareto
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task

VP = VPLinear()
STD = 0.5
SHAPE = (1, 2, 2)
N = 6
SETTINGS = StepAwareSettings(
    noises=16, population=8, generations=3, front_plans=4, choice_images=64, seed=1_600_000_000
)


def bump(t):
    """How much worse narrow networks are at a time: most in the middle, so that the order of steps is no ramp."""
    return 0.3 + torch.sin(math.pi * t) ** 2


def slimmable(deltas=(0.0, 0.1), h=bump):
    """Exact noise prediction of N(0, STD^2), to which width k adds delta_k h(t) u with u of length 1."""
    data = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 4).double(), torch.tensor([STD]).double())

    def at_width(k):
        def fn(x, t):
            exact = data.eps(x.flatten(1), t, VP).reshape(x.shape)
            return exact + 0.5 * deltas[k] * h(t).double()[:, None, None, None] if deltas[k] else exact

        return fn

    widths = tuple(0.5**k for k in range(len(deltas)))
    return Model(
        at_width(0),
        schedule=VP,
        shape=SHAPE,
        fingerprint="f" * 64,
        name="gaussian",
        widths=widths,
        at_width=at_width,
    )


def ddim(n=N):
    return PRESETS["ddim"](VP, n, grid="uniform-t")


def influences(plan, h=bump):
    """What an error of 1 times u at each step does to the result, in closed form.

    DDIM is x' = (a'/a) x + (s' - s a'/a) eps, and eps grows by s / (a^2 STD^2 + s^2) per unit of x.
    """
    t = torch.tensor([node.t for node in plan.nodes], dtype=torch.float64)
    a, s = VP.alpha(t), VP.sigma(t)
    ratio = a[1:] / a[:-1]
    of_eps = s[1:] - s[:-1] * ratio
    growth = ratio + of_eps * s[:-1] / (a[:-1] ** 2 * STD**2 + s[:-1] ** 2)
    later = [float(growth[i + 1 :].prod()) for i in range(len(growth))]
    return np.abs((h(t[:-1]) * of_eps).numpy() * later)


def best_front(errors, costs):
    """Costs and errors of the front of all plans, by trying every one; errors of steps add up."""
    every = list(product(range(errors.shape[1]), repeat=len(errors)))
    points = [
        tuple(round(sum(table[i, k] for i, k in enumerate(w)), 9) for table in (costs, errors)) for w in every
    ]
    return [points[i] for i in pareto(points)]


def table(k=2):
    return CostTable("macs", tuple(float(8 >> i) for i in range(k)))


def searched(work, *, model=None, costs=None, plan=None, task=None, settings=SETTINGS, **measures):
    model = model or slimmable()
    return WidthSearch(
        task or Task(model, batch_size=64),
        plan or ddim(),
        costs or table(len(model.widths)),
        settings,
        Path(work),
        **measures,
    )


def pixels():
    """The images themselves as features."""
    return Extractor("pixels", 4, "none", "0" * 64, lambda images: images.flatten(1) / 127.5 - 1)


def reference(n=4000):
    rows = STD * torch.randn(n, 4, generator=torch.Generator().manual_seed(3))
    meta = {"dataset": {"name": "gaussian", "split": "train"}, "n": n, "sha256": "1" * 64}
    return Reference(Statistics.from_features(rows.clamp(-1, 1).numpy()), None, meta)


def silent(description, *, unit):
    return iter
