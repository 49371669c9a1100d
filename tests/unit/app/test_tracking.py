"""Tracking shows what the files say, once."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.methods.s3.stage.finished_search import SEEDS, record, write_search

import fewstep
from fewstep.app import tracking
from fewstep.app.keys import make_specs
from fewstep.app.params import Settings
from fewstep.app.stages import STAGES
from fewstep.app.tracking import live, live_curve, pages, store, tracking_uri
from fewstep.app.tracking.entries import _settings_of
from fewstep.app.tracking.store import open_store
from fewstep.checks import ConfigError, DataError
from fewstep.files import write_json
from fewstep.pipeline.passwords import without_password
from fewstep.pipeline.stage.spec import stamp

mlflow = pytest.importorskip("mlflow")

NFE = (4, 8)
SAMPLERS = (("ddim", "uniform-t"), ("ddim", "karras"), ("unipc-2", "uniform-t"))
STEPS = (10, 20, 30)
METRIC = "FD-classifier#1k"


def certificate(sampler: str, grid: str, nfe: int) -> dict[str, Any]:
    value = 100.0 / nfe + len(sampler)
    return {
        "schema": "fewstep.certificate/2",
        "subject": {
            "plan": {"sampler": sampler, "grid": grid, "nfe": nfe, "name": f"{sampler}-{grid}-{nfe}"}
        },
        "protocol": {"n": 1000, "reference": {"name": "digits", "split": "train"}},
        "results": {METRIC: {"value": value, "interval": [value - 1, value + 1], "baseline": 0.5}},
        "costs": {"nfe": nfe, "network_ms_per_image": 0.25},
    }


def finished_run(
    root: Path, *, nfe: tuple[int, ...] = NFE, samplers: Any = SAMPLERS, searched: tuple[int, ...] = ()
) -> Path:
    """A folder of results as the workflow leaves it, without pixels."""
    settings = Settings.model_validate({"plans": {"nfe": list(nfe)}, "search": {"nfe": list(searched)}})
    specs = make_specs("digits", {"digits": settings})
    folder = root / "results" / "digits"
    for place in specs:
        if place != "track":
            (folder / place).mkdir(parents=True)
    hashes = {"images": "ab" * 32, "labels": "cd" * 32}
    manifest = {
        "name": "digits",
        "sha256": hashes,
        "source": {"kind": "made up"},
        "n": 200,
        "shape": [8, 8, 1],
    }
    write_json(folder / "prepare" / "manifest.json", manifest)
    trained = settings.model_dump(mode="json", include={"model", "train"})
    write_json(folder / "train" / "card.json", {"steps": 30, "settings": trained})
    rows = [{"step": step, "loss": 1.0 / step} for step in STEPS]
    (folder / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for n in nfe:
        for sampler, grid in samplers:
            name = f"{sampler}-{grid}.json"
            write_json(folder / f"evaluate/plans/nfe{n}" / name, certificate(sampler, grid, n))
    for n in searched:
        write_search(folder / f"search/nfe{n}", n, model="0" * 64)
        name = f"searched.nfe{n}.json"
        write_json(folder / f"evaluate/search/nfe{n}" / name, certificate("searched", "free", n))
    report = folder / "report"
    headline: dict[str, Any] = {"metric": METRIC, "certificates": 6}
    for n in nfe:
        headline |= {
            f"nfe{n:03d}.best": "ddim",
            f"nfe{n:03d}.grid": "karras",
            f"nfe{n:03d}.fd": 100.0 / n + 4,
        }
    write_json(report / "metrics.json", headline)
    (report / "leaderboard.csv").write_text("nfe,value\n4,1.0\n")
    (report / "index.html").write_text("<html></html>")
    (report / "figures" / "search").mkdir(parents=True)
    (report / "figures" / "fd.svg").write_text("<svg/>")
    for n in searched:
        for name in ("search", "plan"):
            (report / "figures" / "search" / f"{name}_nfe{n:03d}.svg").write_text("<svg/>")
    for place, spec in specs.items():
        if place != "track":
            stamp(spec, folder / place)
    return folder


def track_run(run: str, *, uri: str, commit: str | None) -> dict[str, Any]:
    return tracking.track_run(run, stages=STAGES, uri=uri, commit=commit)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, copied by each test: making the tables costs seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return f"sqlite:///{tmp_path}/mlflow.db"  # absolute: MLflow keeps one connection per text


def runs(uri: str) -> list[Any]:
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("digits")
    return list(client.search_runs([experiment.experiment_id]))


def files_in_mlflow(uri: str, run_id: str, folder: str | None = None) -> set[str]:
    found = mlflow.MlflowClient(tracking_uri=uri).list_artifacts(run_id, folder)
    inner = [files_in_mlflow(uri, run_id, file.path) for file in found if file.is_dir]
    return {file.path for file in found if not file.is_dir}.union(*inner)


def test_a_run_is_shown_once_with_its_children(uri: str, tmp_path: Path) -> None:
    finished_run(tmp_path)
    first = track_run("digits", uri=uri, commit="abc+changes")
    second = track_run("digits", uri=uri, commit="abc+changes")
    assert (first["runs"], first["new"], second["new"]) == (5, 5, 0)
    assert first["parent"] == second["parent"]
    shown = {run.info.run_name: run for run in runs(uri)}
    assert len(shown) == 5
    assert {run.info.status for run in shown.values()} == {"FINISHED"}
    parent = next(run for name, run in shown.items() if name.startswith("digits "))
    assert parent.data.tags["git.commit"] == "abc"
    assert parent.data.tags["git.dirty"] == "true"
    assert parent.data.tags["data.sha256.images"] == "ab" * 32
    assert parent.data.params["train.steps"] == str(Settings().train.steps)
    assert parent.data.params["sample.n"] == str(Settings().sample.n)
    children = [run for run in shown.values() if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}


def test_a_sampler_has_its_metrics_at_step_nfe_and_its_certificates(uri: str, tmp_path: Path) -> None:
    finished_run(tmp_path)
    track_run("digits", uri=uri, commit=None)
    client = mlflow.MlflowClient(tracking_uri=uri)
    run = next(run for run in runs(uri) if run.info.run_name == "unipc-2 uniform-t")
    for part, shift in (("", 0.0), ("/low", -1.0), ("/high", 1.0)):
        history = client.get_metric_history(run.info.run_id, f"FD-classifier.1k{part}")
        expected = {
            n: certificate("unipc-2", "uniform-t", n)["results"][METRIC]["value"] + shift for n in NFE
        }
        assert {metric.step: metric.value for metric in history} == expected
    assert run.data.params["protocol.reference.split"] == "train"
    assert files_in_mlflow(uri, run.info.run_id) == {
        f"evaluate/plans/nfe{n}/unipc-2-uniform-t.json" for n in NFE
    }
    expected = {
        f"nfe{n:03d}.fd": certificate("unipc-2", "uniform-t", n)["results"][METRIC]["value"] for n in NFE
    }
    assert {name: value for name, value in run.data.metrics.items() if name.startswith("nfe")} == expected
    training = next(run for run in runs(uri) if run.info.run_name.startswith("train "))
    curve = client.get_metric_history(training.info.run_id, "loss")
    assert [metric.step for metric in sorted(curve, key=lambda metric: metric.step)] == [10, 20, 30]


def test_figures_and_card_are_artifacts_beside_the_results(uri: str, tmp_path: Path) -> None:
    finished_run(tmp_path)
    parent = track_run("digits", uri=uri, commit=None)["parent"]
    assert files_in_mlflow(uri, parent) == {
        "index.html",
        "leaderboard.csv",
        "metrics.json",
        "figures/fd.svg",
        "train/card.json",
    }
    assert (tmp_path / "mlartifacts" / "digits" / parent / "artifacts" / "train" / "card.json").exists()


def test_figures_of_one_name_do_not_overwrite_each_other(uri: str, tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    for stage in ("align", "search"):
        (folder / "report" / "figures" / stage).mkdir(exist_ok=True)
        (folder / "report" / "figures" / stage / "plan_nfe004.svg").write_text(f"<svg>{stage}</svg>")
    parent = track_run("digits", uri=uri, commit=None)["parent"]
    figures = tmp_path / "mlartifacts" / "digits" / parent / "artifacts" / "figures"
    for stage in ("align", "search"):
        assert (figures / stage / "plan_nfe004.svg").read_text() == f"<svg>{stage}</svg>"


def test_the_run_of_a_report_has_headline_numbers_dataset_and_description(uri: str, tmp_path: Path) -> None:
    finished_run(tmp_path)
    parent = track_run("digits", uri=uri, commit=None)["parent"]
    run = mlflow.MlflowClient(tracking_uri=uri).get_run(parent)
    assert run.data.metrics == {"certificates": 6, "nfe004.fd": 29.0, "nfe008.fd": 16.5}
    assert (run.data.params["nfe004.best"], run.data.params["metric"]) == ("ddim", METRIC)
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", "ab" * 8)
    assert json.loads(data.dataset.profile) == {"n": 200, "shape": [8, 8, 1]}
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "training"}
    assert "| 4 | ddim karras | 29 |" in run.data.tags["mlflow.note.content"]


def test_the_data_of_a_run_on_latents_are_its_latents(uri: str, tmp_path: Path) -> None:
    manifest = finished_run(tmp_path) / "prepare" / "manifest.json"
    hashes = {"latents": "ef" * 32, "labels": "cd" * 32}
    write_json(manifest, {"name": "digits", "sha256": hashes, "n": 200, "shape": [4, 4, 4]})
    parent = track_run("digits", uri=uri, commit=None)["parent"]
    (data,) = mlflow.MlflowClient(tracking_uri=uri).get_run(parent).inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits latents", "ef" * 8)


def test_the_pages_show_the_samplers_of_the_newest_state(uri: str, tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    track_run("digits", uri=uri, commit=None)
    headline = json.loads((folder / "report" / "metrics.json").read_text())
    write_json(folder / "report" / "metrics.json", headline | {"nfe004.fd": 1.0})
    parent = track_run("digits", uri=uri, commit=None)["parent"]
    experiment = mlflow.MlflowClient(tracking_uri=uri).get_experiment_by_name("digits")
    lines = list(pages.pages(uri, "http://host:1"))
    addresses = [line.split()[-1] for line in lines]
    assert [line.split(":")[0] for line in lines] == [
        "digits, FD of each sampler",
        "digits, FD against network calls",
        "digits, all states of the run",
    ]
    start = f"http://host:1/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&"
    assert all(address.startswith(start) for address in addresses)
    view = json.loads(experiment.tags["mlflow.sharedViewState.fewstep-chart"])
    state = json.loads(view["state"])
    shown = mlflow.MlflowClient(tracking_uri=uri).search_runs(
        [experiment.experiment_id], state["searchFilter"], order_by=[f"{state['orderByKey']} ASC"]
    )
    assert [run.info.run_name for run in shown][-1] == "unipc-2 uniform-t"
    assert len(shown) == 3
    assert {run.data.tags["mlflow.parentRunId"] for run in shown} == {parent}
    assert state["compareRunCharts"][0]["metricKey"] in shown[0].data.metrics
    assert state["selectedColumns"] == ["metrics.`nfe004.fd`", "metrics.`nfe008.fd`"]


def test_a_search_is_a_child_with_its_curves_costs_and_files(uri: str, tmp_path: Path) -> None:
    folder = finished_run(tmp_path, searched=(5, 8))
    first = track_run("digits", uri=uri, commit=None)
    assert (first["runs"], first["new"]) == (8, 8)  # two searches, and the searched plans as one sampler
    assert track_run("digits", uri=uri, commit=None)["new"] == 0
    client = mlflow.MlflowClient(tracking_uri=uri)
    shown = {run.info.run_name: run for run in runs(uri)}
    search = shown["search nfe5"]
    assert search.data.tags["mlflow.parentRunId"] == first["parent"]
    history = client.get_metric_history(search.info.run_id, "best_error")
    assert [(point.step, point.value) for point in history] == [tuple(p) for p in record(5, "")["history"]]
    numbers = search.data.metrics
    assert (numbers["fd_on_search_seeds.winner"], numbers["fd_on_search_seeds.best_preset"]) == (3.0, 9.0)
    assert (numbers["trials.pruned"], numbers["network_calls.polish"]) == (1, 500)
    assert numbers["polish.frechet"] == 0.5
    assert search.data.params["search.sampler"] == "s3"
    assert search.data.params["seeds.trials"] == str(tuple(SEEDS["trials"]))
    files = {"searched.nfe5.json", "search.nfe5.json", "trials.nfe5.parquet"}
    figures = {"figures/search/search_nfe005.svg", "figures/search/plan_nfe005.svg"}
    assert files_in_mlflow(uri, search.info.run_id) == files | figures
    sampler = shown["searched free"]
    points = client.get_metric_history(sampler.info.run_id, "FD-classifier.1k")
    assert sorted(point.step for point in points) == [5, 8]
    assert shown[f"digits {first_key(folder)}"].data.params["search.trials"] == str(Settings().search.trials)
    assert shown[f"digits {first_key(folder)}"].data.params["sample.n"] == str(Settings().sample.n)


def first_key(folder: Path) -> str:
    return str(json.loads((folder / "report" / "spec.json").read_text())["key"][:8])


def test_a_damaged_search_is_one_sentence(uri: str, tmp_path: Path) -> None:
    folder = finished_run(tmp_path, searched=(5,))
    (folder / "search" / "nfe5" / "search.nfe5.json").write_text("{")
    with pytest.raises(DataError, match=r"search\.nfe5\.json must be JSON"):
        track_run("digits", uri=uri, commit=None)


def test_new_numbers_under_the_same_key_are_a_new_state(uri: str, tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    first = track_run("digits", uri=uri, commit=None)
    write_json(folder / "report" / "metrics.json", {"best": 2.0})
    second = track_run("digits", uri=uri, commit=None)
    assert second["parent"] != first["parent"]
    assert second["new"] == 4  # the training and its curve are the same


def test_what_a_killed_process_left_is_made_again(uri: str, tmp_path: Path) -> None:
    finished_run(tmp_path)
    track_run("digits", uri=uri, commit=None)
    client = mlflow.MlflowClient(tracking_uri=uri)
    torn = next(run for run in runs(uri) if run.info.run_name == "ddim karras")
    client.update_run(torn.info.run_id, status="RUNNING")
    assert track_run("digits", uri=uri, commit=None)["new"] == 1
    assert len(runs(uri)) == 5
    gone = next(run for run in runs(uri) if run.info.run_name.startswith("digits "))
    client.delete_run(gone.info.run_id)
    again = track_run("digits", uri=uri, commit=None)
    children = [run for run in runs(uri) if run.info.run_id != again["parent"]]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {again["parent"]}


def test_what_another_checkout_is_writing_is_left_to_it(uri: str, tmp_path: Path) -> None:
    """And is made anew when that has given no sign of life for a while, or was a process here that has ended."""
    finished_run(tmp_path)
    track_run("digits", uri=uri, commit=None)
    client = mlflow.MlflowClient(tracking_uri=uri)
    for owner, beat, made in (
        ("elsewhere:1:1", time.time(), 0),
        ("elsewhere:1:1", time.time() - 2 * store.ABANDONED, 1),
        (f"{socket.gethostname()}:1:999999999", time.time(), 1),
    ):
        written = next(run for run in runs(uri) if run.info.run_name == "ddim karras")
        client.update_run(written.info.run_id, status="RUNNING")
        client.set_tag(written.info.run_id, "fewstep.owner", owner)
        client.set_tag(written.info.run_id, "fewstep.heartbeat", f"{beat:.0f}")
        assert track_run("digits", uri=uri, commit=None)["new"] == made
        names = [run.info.run_name for run in runs(uri)]
        assert sorted(set(names)) == sorted(names) and len(names) == 5


def test_of_two_that_make_a_run_at_once_one_does(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other checkout makes each run between the look for it and its making here."""
    finished_run(tmp_path)
    create = mlflow.MlflowClient.create_run

    def create_twice(self: Any, experiment: str, **options: Any) -> Any:
        first = create(self, experiment, **options)
        self.set_tag(first.info.run_id, "fewstep.owner", "elsewhere:1:1")
        return create(self, experiment, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", create_twice)
    assert track_run("digits", uri=uri, commit=None)["new"] == 0
    keys = [run.data.tags["fewstep.key"] for run in runs(uri)]
    assert len(keys) == len(set(keys)) == 5


def test_an_experiment_that_another_checkout_has_just_made_is_used(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run(tmp_path)
    find, looked = mlflow.MlflowClient.get_experiment_by_name, []

    def blind(self: Any, name: str) -> Any:
        looked.append(name)
        if len(looked) > 1:
            return find(self, name)
        self.create_experiment(name, artifact_location=str(tmp_path / "elsewhere"))
        return None

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", blind)
    assert track_run("digits", uri=uri, commit=None)["new"] == 5


def test_a_live_curve_is_continued_and_then_taken_over(uri: str, tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    key = json.loads((folder / "train" / "spec.json").read_text())["key"]
    curve = tmp_path / "growing.jsonl"
    with pytest.raises(KeyboardInterrupt), live_curve(curve, run="digits", key=key, uri=uri):
        raise KeyboardInterrupt  # before the first row
    lines = [
        json.dumps({"step": step, "loss": 1.0 / step, "note": "text is left out"}) + "\n" for step in STEPS
    ]
    for n in (2, 3):  # the second process writes the file again from its checkpoint on
        with live_curve(curve, run="digits", key=key, uri=uri):
            curve.write_text("".join(lines[:n]) + '{"step": 4')
    assert track_run("digits", uri=uri, commit=None)["new"] == 4
    training = [run for run in runs(uri) if run.data.tags["fewstep.key"] == key]
    assert len(training) == 1
    history = mlflow.MlflowClient(tracking_uri=uri).get_metric_history(training[0].info.run_id, "loss")
    assert sorted(metric.step for metric in history) == list(STEPS)
    assert "mlflow.parentRunId" in training[0].data.tags


def test_a_live_curve_is_seen_before_the_end(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_LIVE_SECONDS", 0.05)
    curve = tmp_path / "growing.jsonl"
    with live_curve(curve, run="digits", key="k", uri=uri):
        curve.write_text('{"step": 1, "loss": 2.0}\n')
        deadline = time.monotonic() + 20
        while not (shown := runs(uri)[0].data.metrics) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert shown == {"loss": 2.0}
    assert runs(uri)[0].info.status == "FINISHED"


def unreachable() -> str:
    """The address of a server that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_store_that_is_away_at_the_start_costs_no_training(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = finished_run(tmp_path)
    key = json.loads((folder / "train" / "spec.json").read_text())["key"]
    monkeypatch.setattr(live, "_LIVE_SECONDS", 0.05)
    curve = folder / "train" / "metrics.jsonl"
    with live_curve(curve, run="digits", key=key, uri="nowhere://x"):
        time.sleep(0.3)  # attempts fail on the way, too
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 2  # the first failure, and that at the end
    assert all("training goes on without MLflow" in text and "\n" not in text for text in said)
    assert track_run("digits", uri=uri, commit=None)["new"] == 5  # the curve among them
    training = next(run for run in runs(uri) if run.data.tags["fewstep.key"] == key)
    history = mlflow.MlflowClient(tracking_uri=uri).get_metric_history(training.info.run_id, "loss")
    assert sorted(metric.step for metric in history) == list(STEPS)


@pytest.mark.parametrize("back", [True, False])
def test_a_store_that_goes_away_during_training_costs_no_training(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, back: bool
) -> None:
    """A damaged database and whatever else is raised from below MLflow."""
    folder = finished_run(tmp_path)
    key = json.loads((folder / "train" / "spec.json").read_text())["key"]
    monkeypatch.setattr(live, "_LIVE_SECONDS", 0.02)
    there = [True]

    def damaged(*arguments: Any, **options: Any) -> Any:
        if there[0]:
            return open_store(*arguments, **options)
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(live, "open_store", damaged)
    curve = tmp_path / "growing.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0 / step}) + "\n" for step in STEPS]
    with live_curve(curve, run="digits", key=key, uri=uri):
        curve.write_text(lines[0])
        deadline = time.monotonic() + 20
        while not runs(uri)[0].data.metrics and time.monotonic() < deadline:
            time.sleep(0.02)
        there[0] = False
        curve.write_text("".join(lines))
        while "training goes on without MLflow" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
        there[0] = back
    assert "database is locked" in caplog.text
    assert track_run("digits", uri=uri, commit=None)["new"] == (4 if back else 5)
    (training,) = [run for run in runs(uri) if run.data.tags["fewstep.key"] == key]
    history = mlflow.MlflowClient(tracking_uri=uri).get_metric_history(training.info.run_id, "loss")
    assert sorted(metric.step for metric in history) == list(STEPS)


def test_an_experiment_deleted_in_mlflow_is_restored(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished_run(tmp_path)
    first = track_run("digits", uri=uri, commit=None)
    client = mlflow.MlflowClient(tracking_uri=uri)
    torn = next(run for run in runs(uri) if run.info.run_name == "ddim karras")
    client.update_run(torn.info.run_id, status="RUNNING")
    assert track_run("digits", uri=uri, commit=None)["new"] == 1  # the torn one is deleted
    client.delete_experiment(client.get_experiment_by_name("digits").experiment_id)
    again = track_run("digits", uri=uri, commit=None)
    assert (again["parent"], again["new"]) == (first["parent"], 0)
    assert len(runs(uri)) == 5  # without what was deleted before the experiment
    assert "the experiment digits was deleted in MLflow; it is restored" in caplog.text
    caplog.clear()
    assert track_run("digits", uri=uri, commit=None)["new"] == 0
    assert "restored" not in caplog.text


def test_an_experiment_deleted_during_training_takes_the_curve_again(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = tmp_path / "growing.jsonl"
    monkeypatch.setattr(live, "_LIVE_SECONDS", 0.02)
    client = mlflow.MlflowClient(tracking_uri=uri)
    with live_curve(curve, run="digits", key="k", uri=uri):
        client.delete_experiment(client.get_experiment_by_name("digits").experiment_id)
        curve.write_text('{"step": 1, "loss": 2.0}\n')
    # the last sending fails on the deleted experiment, or an earlier one did and the next restored it
    with live_curve(curve, run="digits", key="k", uri=uri):
        pass
    (run,) = runs(uri)
    assert (run.data.metrics, run.info.status) == ({"loss": 2.0}, "FINISHED")


def locked(path: Path) -> Any:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def changed(*statements: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with sqlite3.connect(path) as connection:
            for statement in statements:
                connection.execute(statement)

    return change


@pytest.mark.filterwarnings("ignore:Unnamed CHECK constraint")  # of the migration, before it fails
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (locked, "database is locked"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "malformed"),
        (lambda path: path.write_bytes(b"no database" * 1000), "file is not a database"),
        (changed("UPDATE alembic_version SET version_num = '451aebb31d03'"), "out-of-date database schema"),
        (
            changed("UPDATE alembic_version SET version_num = '451aebb31d03'", "DROP TABLE datasets"),
            "table .* already exists",
        ),
    ],
)
def test_a_damaged_database_is_one_sentence(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_run(tmp_path)
    path = tmp_path / "damaged.db"
    path.write_bytes(empty_store.read_bytes())
    held = damage(path)  # a connection that holds the lock
    uri = f"sqlite:///{path}"
    with pytest.raises(
        ConfigError, match=f"the MLflow store {uri} .* must be usable, but: .*{reason}"
    ) as caught:
        track_run("digits", uri=uri, commit=None)
    assert "\n" not in str(caught.value)
    del held


def test_the_pages_of_a_damaged_database_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    command = [
        sys.executable,
        "-m",
        "fewstep.app.tracking",
        f"sqlite:///{tmp_path}/mlflow.db",
        "http://host:1",
    ]
    path = os.environ | {"PYTHONPATH": str(Path(fewstep.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "must be usable, but: (sqlite3.DatabaseError) file is not a database" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("postgresql+nodriver://me:secret@host/x", "nodriver"),
        ("mssql+pyodbc://me:secret@host/x", "pyodbc"),
        ("postgresql://host:port/x", "port"),
        ("sqlite:////proc/nowhere/x.db", "No such file"),
    ],
)
def test_a_store_without_driver_or_place_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_run(tmp_path)
    with pytest.raises(ConfigError, match=rf"must be usable, but: .*{reason}") as caught:
        track_run("digits", uri=uri, commit=None)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_passwords_stay_out_of_messages() -> None:
    assert without_password("postgresql://me:a:b@host:5432/x") == "postgresql://me:***@host:5432/x"
    for uri in ("sqlite:///mlflow.db", "http://127.0.0.1:5000", "http://host/a:b@c"):
        assert without_password(uri) == uri


def test_a_server_that_is_not_there_is_given_up_after_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    finished_run(tmp_path)
    monkeypatch.setattr(store, "_SILENT_SECONDS", 0.1)
    uri, started = unreachable(), time.monotonic()
    with pytest.raises(
        ConfigError,
        match=f"the MLflow store {uri} .* must be usable, but: its server does not answer: .*refused$",
    ) as caught:
        track_run("digits", uri=uri, commit=None)
    assert time.monotonic() - started < 15  # 268 s with MLflow's own settings
    assert "\n" not in str(caught.value)
    assert f"waiting for the MLflow store {uri}" in caplog.text
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_a_server_that_does_not_answer_is_given_up_after_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "_SECONDS_TO_OPEN", "1")
    finished_run(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and says nothing
        started = time.monotonic()
        with pytest.raises(ConfigError, match="must be usable, but: its server does not answer: .*timed out"):
            track_run("digits", uri=f"http://127.0.0.1:{server.getsockname()[1]}", commit=None)
    assert time.monotonic() - started < 15


def test_the_environment_sets_the_patience_with_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    started = time.monotonic()
    with pytest.raises(ConfigError, match="must be usable"), open_store(unreachable()):
        raise AssertionError("the store must not open")
    assert time.monotonic() - started < 2
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"


def test_hundreds_of_certificates_are_one_child_run_per_sampler(uri: str, tmp_path: Path) -> None:
    samplers = [(f"sampler-{i}", grid) for i in range(10) for grid in ("uniform-t", "karras")]
    finished_run(tmp_path, nfe=tuple(range(1, 16)), samplers=samplers)
    assert track_run("digits", uri=uri, commit=None)["runs"] == 22


def test_an_unfinished_run_and_a_broken_store_are_one_sentence(uri: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="report/spec.json must exist"):
        track_run("digits", uri=uri, commit=None)
    finished_run(tmp_path)
    with pytest.raises(ConfigError, match="MLflow store nowhere://x .* must be usable"):
        track_run("digits", uri="nowhere://x", commit=None)


def test_the_environment_names_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri("sqlite:///mlflow.db") == "http://server:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri("sqlite:///mlflow.db") == "sqlite:///mlflow.db"


def test_a_model_of_the_zoo_is_recorded_with_the_settings_of_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_ZOO", str(Path(__file__).parents[3] / "zoo"))
    from_zoo = {"zoo": "cifar10-32-tiny"}
    settings = Settings.model_validate(
        {"model": from_zoo, "extractor": {"name": "effnet-lite0-p320"}, "evaluate": {"metrics": ["fd"]}}
    )
    specs = make_specs("z", {"z": settings})
    stamps = {place: specs[place].as_json() for place in ("zoo", "sample/plans/nfe4")}
    trained = {"model": {"channels": 32}, "train": {"steps": 5}}
    write_json(tmp_path / "zoo" / "card.json", {"settings": trained})
    found = _settings_of(tmp_path, stamps, STAGES)
    assert found["model"] == {"channels": 32, **from_zoo}
    assert found["train"] == {"steps": 5}
    assert found["sample"]["n"] == settings.sample.n
    write_json(tmp_path / "zoo" / "card.json", {"settings": {"model": "of other"}})
    assert _settings_of(tmp_path, stamps, STAGES)["model"] == {"network": "of other", **from_zoo}
