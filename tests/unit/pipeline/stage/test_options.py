import pytest
import typer
from typer.testing import CliRunner

from fewstep.app.settings import ModelSettings, TrainSettings
from fewstep.checks import ConfigError
from fewstep.pipeline.stage.options import takes_settings
from fewstep.pipeline.stage.spec import Spec

seen = {}


@takes_settings(hide=("seed",))
def command(out: str, *, model: ModelSettings, train: TrainSettings, spec: Spec | None) -> None:
    """Do it."""
    seen.update(out=out, model=model, train=train, spec=spec)


def run(*arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


def test_every_field_is_an_option_and_the_defaults_are_the_settings():
    assert run("x").exit_code == 0
    assert seen == {"out": "x", "model": ModelSettings(), "train": TrainSettings(), "spec": None}
    shown = run("--help").output
    assert "--batch-size" in shown
    assert "--seed" not in shown


def test_typed_values_reach_the_field_in_its_type():
    typed = (
        "--lr",
        "1e-4",
        "--flip",
        "true",
        "--multipliers",
        "1,2,4",
        "--schedule",
        "edm",
        "--prediction",
        "edm",
    )
    assert run("x", *typed).exit_code == 0
    assert seen["train"] == TrainSettings(lr=1e-4, flip=True)
    assert seen["model"].multipliers == [1, 2, 4]
    assert seen["model"].schedule.type == "edm"


def test_nothing_can_be_typed_too():
    assert run("x", "--clip", "null", "--attention", "").exit_code == 0
    assert seen["train"].clip is None
    assert seen["model"].attention == []


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--lr", "fast", "--lr must be a valid number.*'fast'"),
        ("--steps", "0", "--steps must be greater than or equal to 1.*'0'"),
        ("--schedule", "sine", "--schedule must be.*'sine'"),
        ("--multipliers", "1,x", "--multipliers must be a valid integer"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_option(option, value, words):
    with pytest.raises(ConfigError, match=words):
        run("x", option, value)


def test_an_unknown_option_is_a_usage_error():
    assert run("x", "--lrr", "1").exit_code == 2
