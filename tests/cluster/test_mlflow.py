"""A server of MLflow that several checkouts use at once, and that dies while a training sends its curve."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import yaml
from cluster import engines
from unit.app.test_tracking import finished_run
from workflow.test_workflow import Project, new_project, wait_for

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The address of a server, and its process."""
    port = engines.free_port()
    with engines.mlflow_server(tmp_path / "server", port) as process:
        yield f"http://127.0.0.1:{port}", process


def tracked(folder: Path, uri: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    words = ["fewstep", "track", "digits", "--out", "state/digits/track"]
    return subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def test_four_checkouts_track_at_once_and_a_server_that_is_gone_is_refused(
    running: tuple[str, int], tmp_path: Path
) -> None:
    uri, process = running
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
        finished_run(folder)
    for one in [tracked(folder, uri) for folder in folders]:
        said = one.communicate(timeout=300)[1]
        assert one.returncode == 0, said
    client = mlflow.MlflowClient(tracking_uri=uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == "digits"]
    shown = client.search_runs([experiment.experiment_id])
    keys = [run.data.tags["fewstep.key"] for run in shown]
    assert len(keys) == len(set(keys)) == 5
    assert {run.info.status for run in shown} == {"FINISHED"}
    for run in shown:
        if run.info.run_name.startswith("digits "):
            assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"index.html"}
    os.killpg(process, signal.SIGKILL)
    began = time.monotonic()
    late = tracked(folders[0], uri)
    said = late.communicate(timeout=120)[1]
    assert late.returncode == 2 and "Traceback" not in said
    assert "its server does not answer" in said.strip().splitlines()[-1]
    assert time.monotonic() - began < 30


def test_a_training_outlives_the_server(running: tuple[str, int], tmp_path: Path) -> None:
    uri, process = running
    project = new_project(tmp_path / "project")
    settings = project.folder / "params.yaml"
    content = yaml.safe_load(settings.read_text())
    content["runs"]["smoke"] = {"train": {"steps": 600}, "track": {"live": True}}
    settings.write_text(yaml.safe_dump(content))
    target = "results/smoke/train/spec.json"
    words = ["snakemake", "--cores", "1", "--", target]
    environment = {**project.environment, "MLFLOW_TRACKING_URI": uri}
    head = subprocess.Popen(words, cwd=project.folder, env=environment, stderr=subprocess.PIPE, text=True)
    kept = project.folder / "state" / "smoke" / "kept" / "train"
    wait_for(lambda: any(path.stat().st_size for path in kept.glob("*/metrics.jsonl")), seconds=240)
    os.killpg(process, signal.SIGKILL)
    said = head.communicate(timeout=600)[1]
    assert head.returncode == 0, said
    assert (project.folder / "results" / "smoke" / "train" / "model.safetensors").exists()
    log = Project(project.folder).folder / "logs" / "smoke" / "train.log"
    assert "training goes on without MLflow, and the curve waits" in log.read_text()
