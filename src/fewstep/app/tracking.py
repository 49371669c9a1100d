"""A view of finished results in MLflow, to be deleted and made again at will: the truth is in the files.

Per state of a run there is one MLflow run with settings, data hash, model card and figures. Below it stand those of
the stages that have something to show, such as the training curve and each search, and one per sampler (preset on a
grid, or a plan made for the model), whose metrics are logged at step = NFE, so that MLflow draws quality against
network calls. Everything is found again by a key: tracking twice adds nothing.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from fewstep.checks import ConfigError
from fewstep.files import canonical_json, read_json, sha256_file, sha256_text
from fewstep.pipeline.record import Point, Record, curve_rows, flat, metric_name, row_points
from fewstep.pipeline.stage.spec import STAMP, read_stamp
from fewstep.pipeline.stage.stages import Stages

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

KEY = "fewstep.key"
PARENT = "mlflow.parentRunId"
LOCK = Path("state/mlflow.lock")
ARTIFACTS = Path("mlartifacts")

_METRICS_PER_BATCH = 1000  # the most that MLflow takes in one call
_PARAMS_PER_BATCH = 100
_LIVE_SECONDS = 10.0
_FIGURES = {".png", ".svg", ".pdf"}

Stamps = Mapping[str, Mapping[str, Any]]
"""The stamps of results, by place."""

_SHOWN = {".json", ".jsonl", ".parquet", ".csv"}


@dataclass(frozen=True)
class _Entry:
    """What one MLflow run is to hold."""

    key: str
    name: str
    tags: Mapping[str, str]
    params: Mapping[str, Any]
    points: Sequence[Point]
    files: Sequence[Path]


def tracking_uri(setting: str) -> str:
    """The MLflow store in use: the environment variable MLFLOW_TRACKING_URI wins over the setting."""
    return os.environ.get("MLFLOW_TRACKING_URI") or setting


def track_run(
    run: str, *, stages: Stages, uri: str, commit: str | None, results: Path = Path("results")
) -> dict[str, Any]:
    """Show the finished results of a run in MLflow, unless they are already there.

    Args:
        run: Name of the run; also of the MLflow experiment.
        stages: All stages, of which some have runs of their own.
        uri: The MLflow store, for example `sqlite:///mlflow.db`.
        commit: Commit of the code, or None when it is unknown.
        results: The folder that holds the folder of the run.

    Returns:
        The store, the experiment, the id of the parent run, how many runs belong to it and how many are new.

    Raises:
        DataError: The run has no finished report, or a file is missing or damaged.
        ConfigError: The store cannot be used.
    """
    folder = results / run
    stamps = _provenance(folder, "report")
    parent = _parent_entry(run, folder, stamps, commit, stages)
    children = [
        *(
            entry
            for place in stamps
            for entry in _stage_entries(folder, place, stamps[place], parent.key, stages)
        ),
        *_sampler_entries(folder, stamps, parent.key, stages),
    ]
    with _store(uri) as client:
        shelf = _Shelf(client, run, uri)
        parent_id = shelf.ensure(parent)
        for record in children:
            shelf.ensure(record, parent=parent_id)
    return {"uri": uri, "experiment": run, "parent": parent_id, "runs": 1 + len(children), "new": shelf.new}


@contextmanager
def live_curve(metrics: Path, *, run: str, key: str, uri: str) -> Iterator[None]:
    """While the block runs, send the rows that appear in a `metrics.jsonl` to MLflow, the last at its end.

    Rows up to the last step that a killed process had sent are skipped, so a resumed training continues its
    curve. `track_run` later finds the curve by `key` and adds nothing. A store that fails on the way is a
    warning: training goes on, and the file has the curve.

    Args:
        metrics: The file, which need not exist yet.
        run: Name of the run.
        key: Spec key of the training.
        uri: The MLflow store.

    Raises:
        ConfigError: The store cannot be used at the start.
    """
    with _store(uri) as client:
        run_id, last = _Shelf(client, run, uri).resume(key, name=f"train {key[:8]}")
    ended = Event()

    def send() -> None:
        nonlocal last
        rows = [row for row in curve_rows(metrics) if row["step"] > last] if metrics.exists() else []
        if rows:
            with _store(uri) as client:
                _log_points(client, run_id, [point for row in rows for point in row_points(row)])
            last = int(rows[-1]["step"])

    def follow() -> None:
        while not ended.wait(_LIVE_SECONDS):
            try:
                send()
            except ConfigError as error:
                log.warning("the training curve waits in %s: %s", metrics, error)

    follower = Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
    send()
    with _store(uri) as client:
        client.set_terminated(run_id)


class _Shelf:
    """The MLflow experiment of one run, with the keys of what is already there."""

    def __init__(self, client: "MlflowClient", run: str, uri: str) -> None:
        self._client = client
        self._experiment = _experiment(client, run, uri)
        self._known = {found.data.tags[KEY]: found for found in self._search()}
        self._ids = {found.info.run_id for found in self._known.values()}
        self.new = 0

    def ensure(self, record: _Entry, *, parent: str | None = None) -> str:
        """The id of the finished MLflow run for the record, which is made if it is not there."""
        found = self._known.get(record.key)
        if found is not None and found.info.status == "FINISHED":
            if parent and found.data.tags.get(PARENT) not in self._ids:  # a live curve, or its parent is gone
                self._client.set_tag(found.info.run_id, PARENT, parent)
            return str(found.info.run_id)
        if found is not None:  # left behind by a killed process
            self._client.delete_run(found.info.run_id)
        run_id = self._create(
            record.key, record.name, {**record.tags, **({PARENT: parent} if parent else {})}
        )
        _log_params(self._client, run_id, record.params)
        _log_points(self._client, run_id, record.points)
        for file in record.files:
            self._client.log_artifact(run_id, str(file))
        self._client.set_terminated(run_id)
        self.new += 1
        return run_id

    def resume(self, key: str, *, name: str) -> tuple[str, int]:
        """A live run for the key and the last step in it; -1 for a new one."""
        found = self._known.get(key)
        if found is None:
            return self._create(key, name, {}), -1
        self._client.update_run(found.info.run_id, status="RUNNING")
        steps = [
            metric.step
            for name in found.data.metrics
            for metric in self._client.get_metric_history(found.info.run_id, name)
        ]
        return str(found.info.run_id), max(steps, default=-1)

    def _create(self, key: str, name: str, tags: Mapping[str, str]) -> str:
        created = self._client.create_run(self._experiment, run_name=name, tags={KEY: key, **tags})
        return str(created.info.run_id)

    def _search(self) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=1000, page_token=token)
            yield from (found for found in page if KEY in found.data.tags)
            token = page.token
            if not token:
                return


def _experiment(client: "MlflowClient", run: str, uri: str) -> str:
    found = client.get_experiment_by_name(run)
    if found is not None:
        return str(found.experiment_id)
    # A server keeps artifacts where it likes; a local store keeps them here, next to the results.
    local = not uri.startswith(("http:", "https:", "databricks"))
    location = (ARTIFACTS / run).resolve().as_uri() if local else None
    return str(client.create_experiment(run, artifact_location=location))


@contextmanager
def _store(uri: str) -> Iterator["MlflowClient"]:
    """The MLflow store, for one process at a time: its tables must not be created by two at once."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield MlflowClient(tracking_uri=uri)
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"the MLflow store {uri} (tracking.uri or MLFLOW_TRACKING_URI) must be usable, but: {reason}"
            ) from error


def _provenance(folder: Path, place: str) -> Stamps:
    """The stamps of a result and of all that it was made from, what was made first before what needs it."""
    found: dict[str, Mapping[str, Any]] = {}

    def collect(place: str) -> None:
        if place not in found:
            stamp = read_stamp(folder / place)
            for upstream in stamp["upstream"]:
                collect(upstream)
            found[place] = stamp

    collect(place)
    return found


def _parent_entry(run: str, folder: Path, stamps: Stamps, commit: str | None, stages: Stages) -> _Entry:
    key, report = stamps["report"]["key"], folder / "report"
    metrics = sha256_file(report / "metrics.json")[:16]
    lock = Path("dvc.lock")
    tags = {
        "fewstep.spec_key": key,
        "fewstep.metrics_sha": metrics,
        "snakemake.rule": "report",
        "git.commit": (commit or "unknown").removesuffix("+changes"),
        "git.dirty": str(bool(commit and commit.endswith("+changes"))).lower(),
        "dvc.lock": hashlib.md5(lock.read_bytes()).hexdigest() if lock.exists() else "none",
    }
    for place in _making("dataset", stamps, stages):  # a model of the zoo has no data here
        hashes = read_json(folder / place / "manifest.json")["sha256"]
        tags |= {f"data.sha256.{part}": digest for part, digest in hashes.items()}
    models = [
        folder / place / name
        for place in _making("model", stamps, stages)
        for name in ("card.json", "config.json")
    ]
    tables = [report / name for name in ("index.html", "leaderboard.csv", "metrics.json")]
    figures = sorted(file for file in report.rglob("*") if file.suffix in _FIGURES)
    return _Entry(
        key=f"{key}/{metrics}",
        name=f"{run} {key[:8]}",
        tags=tags,
        params=flat(_settings_of(folder, stamps, stages)),
        points=[],
        files=[file for file in (*models, *tables, *figures) if file.exists()],
    )


def _making(kind: str, stamps: Stamps, stages: Stages) -> list[str]:
    """The places of the results that are of a kind."""
    return [place for place, stamp in stamps.items() if stages[stamp["stage"]].makes == kind]


def _settings_of(folder: Path, stamps: Stamps, stages: Stages) -> dict[str, Any]:
    """All settings behind the results; of a model of the zoo, which was trained elsewhere, those of its card."""
    settings: dict[str, Any] = {}
    for stamp in stamps.values():
        settings |= stamp["settings"]
    for place in _making("model", stamps, stages):
        trained = read_json(folder / place / "card.json").get("settings", {})
        settings |= trained
        if "model" in trained:
            settings["model"] = trained["model"] | {"zoo": stamps[place]["settings"]["model"].get("zoo")}
    settings.pop("track", None)
    return settings


def _stage_entries(
    folder: Path, place: str, stamp: Mapping[str, Any], parent: str, stages: Stages
) -> Iterator[_Entry]:
    """What a result shows of itself, with the figures of its stage in the report."""
    stage = stages[stamp["stage"]]
    if stage.record is not None:
        found: Iterable[Record] = import_module(stage.record).records(folder / place, stamp)
    elif stage.panel is not None:
        found = [_plain_record(folder / place, place, stamp)]
    else:
        return
    number = place.rpartition("/nfe")[2] if "/nfe" in place else ""
    pattern = f"*nfe{int(number):03d}*" if number else "*"
    figures = sorted((folder / "report" / "figures" / stage.name).glob(pattern))
    for record in found:
        content = sha256_text("".join(sha256_file(file) for file in record.files))[:16]
        yield _Entry(
            key=record.key or f"{parent}/{place}/{content}",
            name=record.name,
            tags={"snakemake.rule": stage.name},
            params=flat(record.params),
            points=record.points,
            files=[*record.files, *figures],
        )


def _plain_record(folder: Path, place: str, stamp: Mapping[str, Any]) -> Record:
    """Settings and tables of a stage that says nothing of its own."""
    files = [folder / name for name in stamp["files"] if Path(name).suffix in _SHOWN]
    return Record(place.replace("/", " "), params=stamp["settings"], files=files)


def _sampler_entries(folder: Path, stamps: Stamps, parent: str, stages: Stages) -> Iterator[_Entry]:
    groups: dict[tuple[str, str], list[tuple[Path, Mapping[str, Any]]]] = defaultdict(list)
    for place in _making("certificates", stamps, stages):
        for file in sorted((folder / place).glob("*.json")):
            certificate = read_json(file)
            if file.name != STAMP:
                plan = certificate["subject"]["plan"]
                groups[str(plan["sampler"]), str(plan["grid"])].append((file, certificate))
    for (sampler, grid), members in sorted(groups.items()):
        first = members[0][1]
        content = sha256_text("".join(canonical_json(certificate) for _, certificate in members))
        yield _Entry(
            key=f"{parent}/{sampler}/{grid}/{content[:16]}",
            name=f"{sampler} {grid}",
            tags={"snakemake.rule": "evaluate"},
            params={"sampler": sampler, "grid": grid, **flat({"protocol": first["protocol"]})},
            points=[point for _, certificate in members for point in _certificate_points(certificate)],
            files=[file for file, _ in members],
        )


def _certificate_points(certificate: Mapping[str, Any]) -> Iterator[Point]:
    """Every number of a certificate at step = NFE."""
    step = int(certificate["subject"]["plan"]["nfe"])
    for metric, result in certificate["results"].items():
        yield metric_name(metric), float(result["value"]), step
        for end, bound in zip(("low", "high"), result.get("interval") or (), strict=False):
            yield f"{metric_name(metric)}/{end}", float(bound), step
        if result.get("baseline") is not None:
            yield f"{metric_name(metric)}/baseline", float(result["baseline"]), step
    cost = certificate["costs"].get("network_ms_per_image")
    if cost is not None:
        yield "network_ms_per_image", float(cost), step


def _log_params(client: "MlflowClient", run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    entries = [Param(name, str(value)) for name, value in params.items()]
    for start in range(0, len(entries), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=entries[start : start + _PARAMS_PER_BATCH])


def _log_points(client: "MlflowClient", run_id: str, points: Sequence[Point]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, step) for name, value, step in points]
    for start in range(0, len(metrics), _METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])
