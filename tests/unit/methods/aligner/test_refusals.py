import math
from dataclasses import replace

import pytest
import torch
from unit.methods.aligner.clocks import (
    VP,
    ddim,
    images,
    model,
    net_model,
    task,
)

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.denoiser import Model
from fewstep.methods.aligner.align import align
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task

DETERMINISTIC = ["dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3-bh1-noise", "deis-2", "ipndm-3", "dpm-solver-3s"]


def few(**changes):
    return {"seeds": range(4), "gate_seeds": range(4, 8)} | changes


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "fid"}, "objective must be one of trajectory, paper, .*; got 'fid'"),
        ({"optimiser": "sgd"}, "optimiser must be one of search, adam; got 'sgd'"),
        ({"gate": "all"}, "gate must be one of plan, steps, none"),
        ({"substeps": 0}, "substeps must be at least 1; got 0"),
        ({"gate_seeds": range(3, 8)}, "none of them in both; got 4 and 5, 1 in both"),
        ({"objective": "paper"}, r"needs images \(N, 8\); got none; pass them, or use trajectory"),
        ({"objective": "denoise", "images": torch.zeros(9, 7)}, r"needs images \(N, 8\); got \(9, 7\)"),
        ({"objective": "local", "images": torch.zeros(7, 8)}, "4 noises of the fit and 4 of the gate; got 7"),
    ],
)
def test_arguments_must_go_together(changes, message):
    with pytest.raises(ConfigError, match=message):
        align(task(), ddim(3), **few(**changes))


def test_latents_are_needed_where_images_are_decoded():
    latent = replace(model(), decode=lambda x0: x0.reshape(-1, 1, 2, 4))
    with pytest.raises(ConfigError, match=r"needs latents \(N, 8\); got \(8, 1, 2, 4\); .* use trajectory"):
        align(Task(latent), ddim(3), objective="paper", images=torch.zeros(8, 1, 2, 4), **few())
    assert align(Task(latent), ddim(3), **few()).nodes


def test_conditions_of_images_are_needed():
    with pytest.raises(
        ConfigError, match=r"needs the condition of each image, as .* takes label int64 \(B\)"
    ):
        align(Task(net_model(classes=3)), ddim(3), objective="paper", images=images()[:8], **few())


@pytest.mark.parametrize("rounded", [torch.floor, torch.round])
def test_a_table_of_times_is_refused(rounded):
    table = Model(lambda x, t: model().fn(x, rounded(1000 * t) / 1000), schedule=VP, shape=(8,))
    with pytest.raises(ConfigError, match="t=0.5003 and t=0.50045 give the same output; .* continuous"):
        align(Task(table), ddim(3), **few())


def test_plans_of_other_models_are_refused():
    with pytest.raises(ConfigError, match="fingerprint"):
        align(Task(net_model()), replace(ddim(3), fingerprint="0" * 64), **few())
    with pytest.raises(ConfigError, match="for the schedule"):
        align(task(), replace(ddim(3), schedule={"type": "flow"}), **few())
    with pytest.raises(ConfigError, match="sets quant, skip_scale or eval afs_mean"):
        align(task(), ddim(3).with_node(1, quant="w4a8"), **few())
    with pytest.raises(ConfigError, match="A width must be an index"):
        align(task(), ddim(3).with_node(1, width=2), **few())


def test_times_told_outside_of_the_range_are_refused():
    with pytest.raises(ConfigError, match=r"nodes\[1\].t_cond must lie within the model's range"):
        align(task(), ddim(3).with_node(1, t_cond=1.2), **few())


def test_networks_that_drop_out_are_refused():
    training = net_model()
    training.net.train()
    with pytest.raises(ConfigError, match="evaluation mode"):
        align(Task(training), ddim(3), **few())


def test_objectives_must_be_finite():
    def fn(x, t):
        return model().fn(x, t) * torch.where(t < 0.5, math.nan, 1.0)[:, None]

    broken = Task(Model(fn, schedule=VP, shape=(8,)))
    with pytest.raises(DataError, match="must be finite"):
        align(broken, ddim(4), objective="denoise", images=images(), **few())


def test_steps_of_a_noisy_plan_must_be_simple():
    plan = PRESETS["dpmpp-2m"](VP, 4).with_step(0, eta=1.0)
    with pytest.raises(ConfigError, match=r"each step has order 1 .* steps\[1\]"):
        align(task(), plan, objective="paper", images=images(), **few())
