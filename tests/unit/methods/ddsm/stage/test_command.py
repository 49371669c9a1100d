"""`fewstep stepaware`: what it writes, and the mistakes."""

import os
from dataclasses import replace

import pandas as pd
import pytest
import torch
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.ddsm.stage import STAGE
from fewstep.methods.ddsm.stage.run import pick
from fewstep.methods.ddsm.stage.settings import StepAwareSettings
from fewstep.methods.ddsm.widths import with_widths
from fewstep.nets.folder import save_model
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights
from fewstep.sampling.document import save_plan
from fewstep.sampling.plan import load_plan
from fewstep.sampling.presets import PRESETS

APP = typer.Typer()
APP.command()(STAGE.command)


@pytest.fixture(scope="module", autouse=True)
def unsynced():
    """Without waiting for the disk at each of thousands of entries: no machine loses its power here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def folder(tmp_path):
    """A model folder of a network with two widths, whose weights are drawn, and a plan."""
    with initial_weights(0):
        net = UNet(8, 1, 8, (1, 2))
    rng = generator(1)
    for parameter in net.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    facts = {"schedule": VPLinear(), "prediction": "eps", "shape": (1, 8, 8), "name": "drawn", "card": {}}
    save_model(tmp_path / "model", net, widths=(1.0, 0.5), **facts)
    save_plan(PRESETS["ddim"](VPLinear(), 3), tmp_path / "ddim.json")
    return tmp_path


def command(folder, *words):
    """Run `fewstep stepaware` in a folder; what the user can mend is raised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(APP, words, catch_exceptions=False)


SMALL = ("--noises", "16", "--population", "4", "--generations", "2")


def test_the_command_writes_a_front_to_pick_from(folder):
    done = command(folder, "--model", "model", "--plan", "ddim.json", "--out", "front", *SMALL)
    assert done.exit_code == 0 and "front: " in done.stdout
    plans = [load_plan(path) for path in (folder / "front").glob("*.json")]
    frame = pd.read_parquet(folder / "front" / "trials.parquet")
    assert {plan.name for plan in plans} == set(frame["name"]) - {""}
    command(folder, "--front", "front", "--budget", "0.8", "--out", "one.json")
    assert load_plan(folder / "one.json") == pick(plans, 0.8)
    command(folder, "--model", "model", "--plan", "ddim.json", "--budget", "0.8", "--out", "two.json", *SMALL)
    assert load_plan(folder / "two.json") == load_plan(folder / "one.json")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--plan", "ddim.json"), "--model and --plan must say which calls get widths"),
        (("--model", "model"), "--model and --plan must say which calls get widths"),
        (("--front", "front"), "--front needs --budget"),
        (("--front", "front", "--budget", "1.5"), r"--budget must lie in \(0, 1\]"),
        (("--model", "model", "--plan", "ddim.json", "--budget", "0.1"), "The budget must be at least 0.2"),
        (("--model", "model", "--plan", "ddim.json", "--plan", "ddim.json"), "must differ in name"),
        (("--model", "model", "--plan", "widths.json"), "has widths already"),
        (("--model", "model", "--plan", "seen.json"), "must not have been searched on"),
    ],
)
def test_what_the_command_cannot_do_is_said_before_it_works(folder, words, sentence):
    plan = load_plan(folder / "ddim.json")
    save_plan(with_widths(plan, (0, 1, 0)), folder / "widths.json")
    seeds = {"trials": [1_601_000_500, 1_601_000_600]}
    save_plan(replace(plan, provenance={"seeds": seeds}), folder / "seen.json")
    with pytest.raises(ConfigError, match=sentence):
        command(folder, *words, "--out", "out")
    assert not (folder / "out").exists()


def test_an_evolution_has_two_generations_or_more():
    with pytest.raises(ValidationError):
        StepAwareSettings(generations=1)
