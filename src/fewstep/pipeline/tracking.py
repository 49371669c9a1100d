"""A view of finished results in MLflow, to be deleted and made again at will: the truth is in the files.

Per state of a run there is one MLflow run with settings, data hash, model card and figures. Below it stand
one with the training curve, one per search, whose best error is logged at step = network calls, and one per
sampler (preset on a grid, or searched), whose metrics are logged at step = NFE, so that MLflow draws quality
against network calls. Everything is found again by a key: tracking twice adds nothing.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from fewstep.checks import ConfigError, DataError
from fewstep.files import canonical_json, read_json, sha256_file, sha256_text
from fewstep.pipeline.specs import STAMP

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from fewstep.pipeline.searches import FinishedSearch

log = logging.getLogger(__name__)

KEY = "fewstep.key"
PARENT = "mlflow.parentRunId"
LOCK = Path("state/mlflow.lock")
ARTIFACTS = Path("mlartifacts")

_METRICS_PER_BATCH = 1000  # the most that MLflow takes in one call
_PARAMS_PER_BATCH = 100
_LIVE_SECONDS = 10.0
_FIGURES = {".png", ".svg", ".pdf"}

Row = Mapping[str, Any]
Point = tuple[str, float, int]  # name, value, step


@dataclass(frozen=True)
class _Record:
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


def track_run(run: str, *, uri: str, commit: str | None, results: Path = Path("results")) -> dict[str, Any]:
    """Show the finished results of a run in MLflow, unless they are already there.

    Args:
        run: Name of the run; also of the MLflow experiment.
        uri: The MLflow store, for example `sqlite:///mlflow.db`.
        commit: Commit of the code, or None when it is unknown.
        results: The folder that holds the folder of the run.

    Returns:
        The store, the experiment, the id of the parent run, how many runs belong to it and how many are new.

    Raises:
        DataError: The run has no finished report, or a file is missing or damaged.
        ConfigError: The store cannot be used.
    """
    from fewstep.pipeline.searches import read_searches  # not needed by the curve of a training

    folder = results / run
    report = _stamp(folder / "report")
    settings = report["settings"]
    nfe, searched = settings["plans"]["nfe"], settings.get("search", {}).get("nfe", [])
    searches = read_searches([folder / "plans" / "searched" / f"nfe{n}" for n in searched])
    made = [settings.get(section, {}).get("nfe") for section in ("stepaware", "align")]
    certified = [f"nfe{n}" for n in nfe] + ["searched"] * bool(searched) + ["composed"] * any(made)
    parent = _parent_record(run, folder, report, commit)
    children = [
        _training_record(folder),
        *(_search_record(folder, parent.key, search) for search in searches),
        *([_composition_record(folder, parent.key)] if any(made) else []),
        *_sampler_records(folder, parent.key, certified),
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
        rows = [row for row in _rows(metrics) if row["step"] > last] if metrics.exists() else []
        if rows:
            with _store(uri) as client:
                _log_points(client, run_id, [point for row in rows for point in _row_points(row)])
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

    def ensure(self, record: _Record, *, parent: str | None = None) -> str:
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


def _parent_record(run: str, folder: Path, report: Mapping[str, Any], commit: str | None) -> _Record:
    metrics = sha256_file(folder / "report" / "metrics.json")[:16]
    manifest = folder / "data" / "manifest.json"
    hashes = read_json(manifest)["sha256"] if manifest.exists() else {}  # a model of the zoo has no data here
    lock = Path("dvc.lock")
    tags = {
        "fewstep.spec_key": report["key"],
        "fewstep.metrics_sha": metrics,
        "snakemake.rule": "report",
        "git.commit": (commit or "unknown").removesuffix("+changes"),
        "git.dirty": str(bool(commit and commit.endswith("+changes"))).lower(),
        "dvc.lock": hashlib.md5(lock.read_bytes()).hexdigest() if lock.exists() else "none",
        **{f"data.sha256.{part}": digest for part, digest in hashes.items()},
    }
    figures = sorted(file for file in (folder / "report").rglob("*") if file.suffix in _FIGURES)
    tables = [folder / "report" / name for name in ("index.html", "leaderboard.csv", "metrics.json")]
    card = [folder / "model" / name for name in ("card.json", "config.json")]
    return _Record(
        key=f"{report['key']}/{metrics}",
        name=f"{run} {report['key'][:8]}",
        tags=tags,
        params=_settings_of(folder, report["settings"]),
        points=[],
        files=[file for file in (*card, *tables, *figures) if file.exists()],
    )


def _training_record(folder: Path) -> _Record:
    stamp = _stamp(folder / "model")
    curve = folder / "model" / "metrics.jsonl"
    settings = _stamped_settings(folder / "model")
    return _Record(
        key=stamp["key"],
        name=f"train {stamp['key'][:8]}",
        tags={"snakemake.rule": stamp["rule"]},
        params=_flat({name: settings[name] for name in ("model", "train")}),
        points=[point for row in _rows(curve) for point in _row_points(row)],
        files=[curve],
    )


def _search_record(folder: Path, parent: str, search: "FinishedSearch") -> _Record:
    record = search.record
    content = sha256_text("".join(map(sha256_file, search.files)))
    drawn = f"*_nfe{search.nfe:03d}.*"
    figures = sorted(file for file in (folder / "report" / "figures").glob(drawn) if _of_search(file))
    return _Record(
        key=f"{parent}/search/nfe{search.nfe}/{content[:16]}",
        name=f"search nfe{search.nfe}",
        tags={"snakemake.rule": "search"},
        params={
            "nfe": search.nfe,
            "winner": record.winner,
            "best_preset": record.best_preset,
            **_flat({"search": record.settings, "teacher": record.teacher, "seeds": record.seeds}),
        },
        points=list(_search_points(search)),
        files=[*search.files, *figures],
    )


def _composition_record(folder: Path, parent: str) -> _Record:
    """The comparison of narrowed and aligned plans, with the tables of the width searches beside its own."""
    from fewstep.pipeline.searches import COMPOSITION, read_composition

    composition = read_composition(folder / "plans" / "composed")
    tables = sorted((folder / "plans").glob("stepaware/*/trials.parquet"))
    files = [folder / "plans" / "composed" / COMPOSITION, *tables]
    table = composition.table
    winner = table[table["winner"]].iloc[0]
    return _Record(
        key=f"{parent}/composition/{sha256_text(''.join(map(sha256_file, files)))[:16]}",
        name="composition",
        tags={"snakemake.rule": "compose"},
        params={"winner": str(winner["plan"]), "target": str(table.iloc[0]["plan"]), "plans": len(table) - 1},
        points=[
            (f"{what}.{role}", float(row[what]), 0)
            for role, row in (("winner", winner), ("target", table.iloc[0]))
            for what in ("fd", "ms")
        ],
        files=[*files, *sorted((folder / "report" / "figures").glob("compos*"))],
    )


def _of_search(figure: Path) -> bool:
    return figure.name.startswith(("search_", "plan_"))


def _search_points(search: "FinishedSearch") -> Iterator[Point]:
    """The curves of a search at their steps, what was compared in the end, and counts and costs."""
    record = search.record
    for calls, error in record.history:
        yield "best_error", error, calls
    for tier, curve in record.polish.items():
        for point in curve:
            yield f"polish.{tier}", point.validation, point.iteration
    for role, name in (("winner", record.winner), ("best_preset", record.best_preset)):
        finalist = record.finalist(name)
        yield f"error.{role}", finalist.error, 0
        if finalist.fd is not None:
            yield f"fd_on_search_seeds.{role}", finalist.fd, 0
    for group in ("trials", "network_calls", "seconds"):
        for name, value in getattr(record, group).items():
            yield f"{group}.{name}", float(value), 0


def _sampler_records(folder: Path, parent: str, places: Iterable[str]) -> Iterator[_Record]:
    groups: dict[tuple[str, str], list[tuple[Path, Mapping[str, Any]]]] = defaultdict(list)
    for place in places:
        for file in sorted((folder / "eval" / place).glob("*.json")):
            certificate = read_json(file)
            if file.name != STAMP:
                plan = certificate["subject"]["plan"]
                groups[str(plan["sampler"]), str(plan["grid"])].append((file, certificate))
    for (sampler, grid), members in sorted(groups.items()):
        first = members[0][1]
        content = sha256_text("".join(canonical_json(certificate) for _, certificate in members))
        yield _Record(
            key=f"{parent}/{sampler}/{grid}/{content[:16]}",
            name=f"{sampler} {grid}",
            tags={"snakemake.rule": "evaluate"},
            params={"sampler": sampler, "grid": grid, **_flat({"protocol": first["protocol"]})},
            points=[point for _, certificate in members for point in _certificate_points(certificate)],
            files=[file for file, _ in members],
        )


def _certificate_points(certificate: Mapping[str, Any]) -> Iterator[Point]:
    """Every number of a certificate at step = NFE."""
    step = int(certificate["subject"]["plan"]["nfe"])
    for metric, result in certificate["results"].items():
        yield _metric_name(metric), float(result["value"]), step
        for end, bound in zip(("low", "high"), result.get("interval") or (), strict=False):
            yield f"{_metric_name(metric)}/{end}", float(bound), step
        if result.get("baseline") is not None:
            yield f"{_metric_name(metric)}/baseline", float(result["baseline"]), step
    cost = certificate["costs"].get("network_ms_per_image")
    if cost is not None:
        yield "network_ms_per_image", float(cost), step


def _row_points(row: Row) -> list[Point]:
    numbers = {
        name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"
    }
    return [(_metric_name(name), float(value), int(row["step"])) for name, value in numbers.items()]


def _rows(path: Path) -> Iterator[Row]:
    """The rows of a training curve; a torn last line is left for the next reading."""
    if not path.exists():
        raise DataError(
            f"{path} must hold the training curve, but there is no such file; train the model again"
        )
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _settings_of(folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """All settings behind the results of one number of calls, as the stamps state them."""
    settings: dict[str, Any] = {}
    places = [f"plans/searched/nfe{n}" for n in report.get("search", {}).get("nfe", [])[:1]]
    places += ["data", "model", "reference/extractor", "reference"]
    places += [f"{name}/nfe{report['plans']['nfe'][0]}" for name in ("plans", "samples", "eval")]
    for place in places:
        if (folder / place).exists():
            settings |= _stamped_settings(folder / place)
    settings.pop("tracking", None)
    return _flat(settings)


def _stamped_settings(folder: Path) -> dict[str, Any]:
    """What results were made with; a model of the zoo was trained elsewhere, with the settings of its card."""
    stamp = _stamp(folder)
    settings: dict[str, Any] = dict(stamp["settings"])
    if stamp["rule"] == "zoo":
        trained: dict[str, Any] = read_json(folder / "card.json")["settings"]
        return trained | {"model": trained["model"] | {"zoo": settings["model"]["zoo"]}}
    if stamp["rule"] == "zoo-stats":
        del settings["model"]  # read for the name in the zoo alone
    return settings


def _stamp(folder: Path) -> dict[str, Any]:
    stamp = read_json(folder / STAMP)
    if not isinstance(stamp, dict) or "key" not in stamp:
        raise DataError(
            f"{folder / STAMP} must be a spec written by the workflow; run snakemake to make it again"
        )
    return stamp


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _metric_name(name: str) -> str:
    """MLflow takes letters, digits and `_-. :/` in names: `FD-x#1k` becomes `FD-x.1k`."""
    return re.sub(r"[^\w\-. :/]", ".", name)


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
