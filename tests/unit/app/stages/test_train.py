"""A training writes its model whatever becomes of what only shows it."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("mlflow")

from fewstep.app.keys import make_specs
from fewstep.app.params import Settings
from fewstep.app.stages import train
from fewstep.app.tracking import live
from fewstep.data.prepare import prepare
from fewstep.files import write_json
from fewstep.nets import WEIGHTS


def test_a_training_without_the_store_that_shall_show_it_writes_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    monkeypatch.setattr(live, "_LIVE_SECONDS", 0.01)
    settings = Settings.model_validate(
        {
            "model": {"channels": 8},
            "train": {"steps": 2, "batch_size": 4, "warmup": 1, "log_every": 1},
            "track": {"live": True},
        }
    )
    write_json(tmp_path / "spec.json", make_specs("digits", {"digits": settings})["train"].as_json())
    prepare("digits", tmp_path / "data", limit=40)
    app = typer.Typer()
    app.command()(train.command)
    words = "--data data --out model --checkpoints checkpoints --device cpu --spec spec.json"
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    assert (tmp_path / "model" / WEIGHTS).exists()
    rows = (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    assert "training goes on without MLflow" in caplog.text
