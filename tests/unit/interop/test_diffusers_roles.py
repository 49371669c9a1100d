"""The roles of layers in networks of diffusers, and a quantisation of each."""

import pytest
import torch

from fewstep.interop.load import load_model
from fewstep.methods.tfmq.quantise import Recipe, quantise
from fewstep.nets.quantised import Bits
from fewstep.nets.roles import roles_of
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task


@pytest.mark.parametrize("kind", ["ddim", "dit"])
def test_every_layer_has_a_role_and_the_network_is_quantised(saved, kind):
    model = load_model(saved[kind])
    roles = roles_of(model.module(0), kind)
    assert {"first", "last", "attn", "body", "time_mlp", "time_proj"} <= set(roles.values())
    net = model.module(0)
    features = net.temporal(
        torch.tensor([10.0, 20.0]), None if kind == "ddim" else model.condition_of([0, 1])
    )
    assert len(features) == sum(role == "time_proj" for role in roles.values())
    task, plan = Task(model), PRESETS["ddim"](model.schedule, 3)
    errors = []
    for bits in ("w8a8", "w3a8"):
        recipe = Recipe(Bits.parse(bits), iterations=3, temporal_iterations=5)
        integers, report = quantise(task, plan, recipe, seeds=range(8))
        assert report.layers[0] == len(roles) - sum(role in ("first", "last") for role in roles.values())
        errors.append(max(report.drift[0].cosine))
    # from 8 bits to 3 a step grows 36-fold, and 1 - cosine with its square
    assert errors[0] < 1e-3 and errors[0] < 0.05 * errors[1]
