import re

import pytest
from toy import recipe

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import VPLinear
from fewstep.train.recipe import Recipe


def test_settings_are_those_of_the_first_checkpoints():
    """Checkpoints that were written before there was a recipe must still be resumed."""
    assert recipe().settings() == {
        "schedule": VPLinear().config(),
        "prediction": "eps",
        "lr": 1e-2,
        "weight_decay": 0.0,
        "clip": 1.0,
        "weighting": "uniform",
        "label_dropout": 0.2,
        "ema_decay": 0.999,
        "ema_half_life": None,
        "precision": "fp32",
    }


def test_loss_and_start_are_named_where_they_are_used():
    class Loss:
        def config(self):
            return {"type": "toy"}

    settings = recipe(loss_of_step=Loss(), start="a" * 64).settings()
    assert (settings["loss"], settings["start"]) == ({"type": "toy"}, "a" * 64)


def test_every_field_is_documented():
    documented = re.findall(r"^ {8}(\w+): ", Recipe.__doc__, re.MULTILINE)
    assert documented == [*Recipe.__dataclass_fields__, "ConfigError"]


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"weighting": "p3"}, "uniform, snr, min-snr-5, edm"),
        ({"precision": "fp8"}, "fp32 or bf16"),
        ({"condition_dropout": 1.0}, r"must lie in \[0, 1\); got 1.0"),
        ({"condition_dropout": -0.1}, r"must lie in \[0, 1\); got -0.1"),
    ],
)
def test_bad_values_are_refused(changes, word):
    with pytest.raises(ConfigError, match=word):
        recipe(**changes)
