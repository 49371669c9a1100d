"""Mixtures whose network has a clock that goes wrong by a known amount."""

import math
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from fewstep.diffusion.condition import Classes
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.aligner.align import align
from fewstep.methods.aligner.fine import Calibration
from fewstep.rng import ImageNoise, generator
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve
from fewstep.sampling.task import Task

VP = VPLinear()
SEEDS, GATE, TEST = range(256), range(1000, 1256), range(2000, 3000)


def clock(tau, bias):
    """The time for which a network predicts that is told tau."""
    return tau + bias * tau * (1 - tau)


@cache
def mixture(kind="narrow"):
    """5 components in 8 dimensions, far apart and narrow, or near and wide."""
    spread, low, high = {"narrow": (1.0, 0.1, 0.3), "wide": (0.8, 0.5, 0.5)}[kind]
    rng = generator(0, "mix")
    means = spread * torch.randn(5, 8, generator=rng, dtype=torch.float64)
    stds = low + (high - low) * torch.rand(5, generator=rng, dtype=torch.float64)
    return GaussianMixture(torch.full((5,), 0.2, dtype=torch.float64), means, stds)


def model(bias=0.0, kind="narrow"):
    exact = mixture(kind)
    return Model(
        lambda x, t: exact.eps(x, clock(t.double(), bias), VP), schedule=VP, shape=(8,), name="biased"
    )


def task(bias=0.0, kind="narrow"):
    return Task(model(bias, kind), batch_size=1024)


@cache
def images(kind="narrow", n=2048):
    return mixture(kind).sample(n, rng=generator(1))


def right_clock(bias):
    """What to tell the biased network so that it predicts for the right time."""
    tau = torch.linspace(1, VP.t_min, 400, dtype=torch.float64)
    return Calibration(tuple(clock(tau, bias).tolist()), tuple(tau.tolist()))


@cache
def exact(kind="narrow"):
    """The solutions of the noises TEST for the exact network."""
    return solve(model(0.0, kind), PRESETS["unipc-3"](VP, 300), ImageNoise(TEST, (8,))())


def rmse(plan, bias=0.0, kind="narrow"):
    made = solve(model(bias, kind), plan, ImageNoise(TEST, (8,))())
    return float((made - exact(kind)).square().mean().sqrt())


def ddim(n):
    return PRESETS["ddim"](VP, n, grid="uniform-t")


def aligned(plan, objective="trajectory", bias=0.0, kind="narrow", **changes):
    """By the noises SEEDS, against the right clock; ungated if not said otherwise."""
    arguments = {
        "seeds": SEEDS,
        "gate_seeds": GATE,
        "gate": "none",
        "calibration": right_clock(bias),
    } | changes
    return align(task(bias, kind), plan, objective=objective, images=images(kind), **arguments)


def told(alignment):
    return torch.tensor([node.t_cond for node in alignment.nodes], dtype=torch.float64)


def with_all_told(plan):
    """The plan with every time said explicitly."""
    nodes = tuple(replace(n, t_cond=n.t) if n.eval == "net" else n for n in plan.nodes)
    return replace(plan, nodes=nodes)


class Net(nn.Module):
    """A small network on vectors with a sinusoidal clock."""

    def __init__(self, dim=8, classes=0):
        super().__init__()
        rng = generator(5, "net")
        self.classes = classes
        self.inner = nn.Linear(dim + 8 + classes + bool(classes), 32)
        self.outer = nn.Linear(32, dim)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2, generator=rng)

    def forward(self, x, t, condition=None):
        angles = t[:, None] * math.tau * torch.tensor([0.25, 0.5, 1.0, 2.0], dtype=t.dtype)
        parts = [x, angles.sin(), angles.cos()]
        if condition is not None:
            parts.append(nn.functional.one_hot(condition.values["label"], self.classes + 1).to(x.dtype))
        return self.outer(torch.tanh(self.inner(torch.cat(parts, 1))))


def net_model(classes=0, **changes):
    net = Net(classes=classes).eval()
    conditions = Classes(classes) if classes else None
    return Model(
        net, schedule=VP, shape=(8,), conditions=conditions, net=net, fingerprint="f" * 64, **changes
    )
