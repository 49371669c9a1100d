"""The MLflow store: opened by one process at a time, and filled by keys."""

import fcntl
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

from fewstep.app.tracking.entries import Data, Entry
from fewstep.checks import ConfigError, UserError
from fewstep.locks import flock, started
from fewstep.pipeline.passwords import without_password
from fewstep.pipeline.record import Point

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

KEY = "fewstep.key"
OWNER, BEAT = "fewstep.owner", "fewstep.heartbeat"
"""Who writes a run that is not finished, and when it last did, in seconds since 1970."""
PARENT = "mlflow.parentRunId"

SECONDS_BETWEEN_BEATS = 60.0
ABANDONED = 600.0
"""Seconds without a sign of life after which the owner on another host counts as dead."""

LOCK = Path("state/mlflow.lock")
ARTIFACTS = Path("mlartifacts")

_METRICS_PER_BATCH = 1000  # the most that MLflow takes in one call
_PARAMS_PER_BATCH = 100
_SILENT_SECONDS = 2.0
# A server that refuses is given up after 4 s, one that does not answer after 13 s; MLflow's own patience is 268 s.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_SECONDS_TO_OPEN, _SECONDS_PER_REQUEST = "3", "30"


def tracking_uri(setting: str) -> str:
    """The MLflow store in use: the environment variable MLFLOW_TRACKING_URI wins over the setting."""
    return os.environ.get("MLFLOW_TRACKING_URI") or setting


@contextmanager
def open_store(uri: str, *, announce: bool = True) -> Iterator["MlflowClient"]:
    """The MLflow store, for one process at a time: its tables must not be created by two at once.

    Args:
        uri: The store.
        announce: Say so where opening takes more than a moment.

    Raises:
        ConfigError: The store cannot be used, whichever library below MLflow says so.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient

        with _announced(uri, announce) as opened, _locked(_lock_of(uri)):
            client = MlflowClient(tracking_uri=uri)
            if uri.startswith(("http:", "https:")):
                with _timeout(_SECONDS_TO_OPEN):
                    client.search_experiments(max_results=1)
            opened.cancel()
            with _timeout(_SECONDS_PER_REQUEST):
                yield client
    except UserError:
        raise
    except Exception as error:  # MLflow lets through what databases, their drivers and networks raise
        raise ConfigError(
            f"the MLflow store {without_password(uri)} (track.uri or MLFLOW_TRACKING_URI) must be usable, but: "
            f"{_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    cause = re.search(r"\(Caused by \w+\((.*)\)\)", line)  # of a request, after what it asked for
    return (
        line if cause is None else "its server does not answer: " + cause[1].strip("\"'").rpartition(": ")[2]
    )


@contextmanager
def _announced(uri: str, announce: bool) -> Iterator[Timer]:
    text = "waiting for the MLflow store %s (track.uri or MLFLOW_TRACKING_URI)"
    line = Timer(_SILENT_SECONDS, log.info, (text, without_password(uri)))
    line.daemon = True
    if announce:
        line.start()
    try:
        yield line
    finally:
        line.cancel()


def _lock_of(uri: str) -> Path:
    """The file that whoever opens the store locks: beside a database that is a file, as other checkouts may use it."""
    file = Path(uri.removeprefix("sqlite:///"))
    is_usable = uri.startswith("sqlite:///") and file.parent.is_dir() and os.access(file.parent, os.W_OK)
    return file.with_name(f"{file.name}.lock") if is_usable else LOCK


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lock:
        flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _timeout(seconds: str) -> Iterator[None]:
    """Of a request to a server, unless the environment says it; MLflow reads it at each request."""
    if _TIMEOUT in os.environ:
        yield
        return
    os.environ[_TIMEOUT] = seconds
    try:
        yield
    finally:
        del os.environ[_TIMEOUT]


class Shelf:
    """The MLflow experiment of one run, with the keys of what is already there.

    Other checkouts may use the store at the same time. What one of them is writing is left to it: the same key means
    the same content.
    """

    def __init__(self, client: "MlflowClient", run: str, uri: str) -> None:
        self._client = client
        self.experiment = _experiment(client, run, uri)
        self._known: dict[str, Any] = {}
        for found in sorted(self._search(), key=lambda found: not _finished(found)):
            if self._known.setdefault(found.data.tags[KEY], found) is not found and _abandoned(found):
                client.delete_run(found.info.run_id)  # deleted before, and restored with its experiment
        self._ids = {found.info.run_id for found in self._known.values()}
        self.new = 0

    def ensure(self, entry: Entry, *, parent: str | None = None) -> str:
        """The id of the MLflow run for the entry, which is made if it is not there."""
        found = self._known.get(entry.key)
        if found is not None and _finished(found):
            if parent and found.data.tags.get(PARENT) not in self._ids:  # a live curve, or its parent is gone
                self._client.set_tag(found.info.run_id, PARENT, parent)
            return str(found.info.run_id)
        if found is not None and not _abandoned(found):
            return str(found.info.run_id)
        if found is not None:  # left behind by a killed process
            self._client.delete_run(found.info.run_id)
        tags = {**entry.tags, **({PARENT: parent} if parent else {})}
        run_id, is_own = self._create(entry.key, entry.name, tags)
        if not is_own:
            return run_id
        _log_params(self._client, run_id, entry.params)
        log_points(self._client, run_id, entry.points)
        _log_data(self._client, run_id, entry.data)
        for file, folder in entry.files.items():
            self._client.log_artifact(run_id, str(file), artifact_path=folder or None)
            beat(self._client, run_id)
        self._client.set_terminated(run_id)
        self.new += 1
        return run_id

    def resume(self, key: str, *, name: str) -> tuple[str, int]:
        """A live run for the key and the last step in it; -1 for a new one.
        Raises: ConfigError: another process that is alive sends it.
        """
        found = self._known.get(key)
        if found is not None and not _finished(found) and not _abandoned(found):
            run_id, is_own = str(found.info.run_id), False
        elif found is None:
            run_id, is_own = self._create(key, name, {})
            if is_own:
                return run_id, -1
        else:
            run_id, is_own = str(found.info.run_id), True
        if not is_own:
            raise ConfigError(f"the run {run_id} must be sent by one process, but another one is sending it")
        assert found is not None
        self._client.update_run(run_id, status="RUNNING")
        self._client.set_tag(run_id, OWNER, _me())
        beat(self._client, run_id)
        steps = [
            metric.step
            for metric_name in found.data.metrics
            for metric in self._client.get_metric_history(run_id, metric_name)
        ]
        return run_id, max(steps, default=-1)

    def _create(self, key: str, name: str, tags: Mapping[str, str]) -> tuple[str, bool]:
        """A new run for the key, and True; or, where another process made one at the same time, that one and False."""
        own = {KEY: key, OWNER: _me(), BEAT: f"{time.time():.0f}"}
        created = self._client.create_run(self.experiment, run_name=name, tags={**tags, **own})
        alike = self._client.search_runs([self.experiment], filter_string=f"tags.`{KEY}` = '{key}'")
        living = [
            run
            for run in alike
            if _finished(run) or not _abandoned(run) or run.info.run_id == created.info.run_id
        ]
        first = min(living, key=lambda run: (run.info.start_time, run.info.run_id), default=created)
        if first.info.run_id == created.info.run_id:
            return str(created.info.run_id), True
        self._client.delete_run(created.info.run_id)
        return str(first.info.run_id), False

    def _search(self) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs([self.experiment], max_results=1000, page_token=token)
            yield from (found for found in page if KEY in found.data.tags)
            token = page.token
            if not token:
                return


def beat(client: "MlflowClient", run_id: str) -> None:
    """Say that this process still writes a run."""
    client.set_tag(run_id, BEAT, f"{time.time():.0f}")


def _finished(run: Any) -> bool:
    return bool(run.info.status == "FINISHED")


def _me() -> str:
    return f"{socket.gethostname()}:{started(os.getpid())}:{os.getpid()}"


def _abandoned(run: Any) -> bool:
    """Whether nobody will finish a run: its process has ended, or it is this one, which has failed to."""
    owner = run.data.tags.get(OWNER)
    if _finished(run):
        return False
    if owner is None or owner == _me():  # of an earlier version, or of an earlier attempt
        return True
    host, start, process = owner.rsplit(":", 2)
    if host == socket.gethostname():
        return bool(started(process) != start)
    beat = run.data.tags.get(BEAT, "0")
    return time.time() - float(beat if beat.isdecimal() else 0) > ABANDONED


def _experiment(client: "MlflowClient", run: str, uri: str) -> str:
    """The id of the experiment of a run: found, restored where it was deleted, or made."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(run)
    if found is None:
        # A server keeps artifacts where it likes; a local store keeps them here, next to the results.
        local = not uri.startswith(("http:", "https:", "databricks"))
        location = (ARTIFACTS / run).resolve().as_uri() if local else None
        try:
            return str(client.create_experiment(run, artifact_location=location))
        except MlflowException:  # another checkout was faster, or something else is wrong, which shows again
            found = client.get_experiment_by_name(run)
            if found is None:
                raise
    if found.lifecycle_stage != "active":  # its name stays taken until `mlflow gc`
        client.restore_experiment(found.experiment_id)
        log.warning("the experiment %s was deleted in MLflow; it is restored, with all of its runs", run)
    return str(found.experiment_id)


def _log_params(client: "MlflowClient", run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    entries = [Param(name, str(value)) for name, value in params.items()]
    for start in range(0, len(entries), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=entries[start : start + _PARAMS_PER_BATCH])


def log_points(client: "MlflowClient", run_id: str, points: Sequence[Point]) -> None:
    """Add numbers to an MLflow run."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, step) for name, value, step in points]
    for start in range(0, len(metrics), _METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])


def _log_data(client: "MlflowClient", run_id: str, data: Sequence[Data]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if data:
        inputs = [
            DatasetInput(
                dataset=Dataset(
                    name=one.name,
                    digest=one.digest,
                    source_type="code",  # the only kind whose source is free
                    source=json.dumps({"tags": one.source}),
                    profile=json.dumps(one.profile),
                ),
                tags=[InputTag("mlflow.data.context", "training")],
            )
            for one in data
        ]
        client.log_inputs(run_id, datasets=inputs)
