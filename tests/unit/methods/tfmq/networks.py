"""Small networks whose weights are drawn, and a slightly trained look of them: no layer is zero."""

from functools import cache

import torch

from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.tfmq.calibration import record
from fewstep.nets.folder import as_model
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task

VP = VPLinear()
SEEDS = range(100, 116)


def drawn(net, scale=0.1):
    """Every weight random: half of them start at zero."""
    rng = generator(1)
    for name, parameter in net.named_parameters():
        if "norm" not in name:
            parameter.data = scale * torch.randn(parameter.shape, generator=rng)
    return net


def unet(**changes):
    with initial_weights(0):
        return drawn(UNet(**{"image_size": 8, "in_channels": 1, "channels": 8, "attention": (4,)} | changes))


@cache
def model(widths=(1.0,), n_classes=0):
    return as_model(
        unet(n_classes=n_classes),
        schedule=VP,
        prediction="x0",
        shape=(1, 8, 8),
        name="drawn",
        fingerprint="f" * 64,
        widths=widths,
    )


def plan(nfe=4):
    return PRESETS["dpmpp-2m"](VP, nfe, grid="uniform-lambda")


@cache
def task(widths=(1.0,), n_classes=0):
    return Task(model(widths, n_classes), batch_size=16)


@cache
def calls(nfe=4):
    """What the plan's calls are given."""
    return record(task(), plan(nfe), SEEDS)
