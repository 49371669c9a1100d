"""What the MLflow runs of finished results hold, said without MLflow."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from fewstep.files import canonical_json, read_json, sha256_file, sha256_text
from fewstep.pipeline.record import Point, Record, flat, metric_name
from fewstep.pipeline.stage.spec import STAMP, read_stamp
from fewstep.pipeline.stage.stages import Stages

NOTE = "mlflow.note.content"
"""The tag whose text MLflow shows as the description of a run or an experiment."""

RULE = "snakemake.rule"

Stamps = Mapping[str, Mapping[str, Any]]
"""The stamps of results, by place."""

_FIGURES = {".png", ".svg", ".pdf"}
_SHOWN = {".json", ".jsonl", ".parquet", ".csv"}


@dataclass(frozen=True)
class Data:
    """A dataset behind results: its name, the start of its hash, where it is from, and what it holds."""

    name: str
    digest: str
    source: Mapping[str, Any]
    profile: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """What one MLflow run is to hold."""

    key: str
    name: str
    tags: Mapping[str, str]
    params: Mapping[str, Any]
    points: Sequence[Point]
    files: Mapping[Path, str]
    data: Sequence[Data] = field(default=())


def entries(run: str, folder: Path, commit: str | None, stages: Stages) -> tuple[Entry, list[Entry]]:
    """The MLflow run of a run's results, and those below it.

    Args:
        run: Name of the run.
        folder: Its results.
        commit: Commit of the code, or None when it is unknown.
        stages: All stages, of which some have runs of their own.

    Raises:
        DataError: The run has no finished report, or a file is missing or damaged.
    """
    stamps = _provenance(folder, "report")
    headline = read_json(folder / "report" / "metrics.json")
    parent = _parent_entry(run, folder, stamps, commit, stages, headline)
    children = [
        entry
        for place in stamps
        for entry in _stage_entries(folder, place, stamps[place], parent.key, stages)
    ]
    return parent, [*children, *_sampler_entries(folder, stamps, parent.key, stages, headline.get("metric"))]


def _placed(files: Iterable[Path], *roots: Path) -> dict[Path, str]:
    """Files with their folders below the first root that holds them: bare names would overwrite each other."""
    placed = {}
    for file in files:
        root = next(root for root in roots if file.is_relative_to(root))
        placed[file] = file.parent.relative_to(root).as_posix().removeprefix(".")
    return placed


def _provenance(folder: Path, place: str) -> Stamps:
    """The stamps of a result and of all that it was made from, what was made first before what needs it."""
    found: dict[str, Mapping[str, Any]] = {}

    def collect(place: str) -> None:
        if place not in found:
            stamp = read_stamp(folder / place)
            for upstream in stamp["upstream"]:
                if not upstream.startswith("../"):  # of another run, which has its own place
                    collect(upstream)
            found[place] = stamp

    collect(place)
    return found


def _parent_entry(
    run: str, folder: Path, stamps: Stamps, commit: str | None, stages: Stages, headline: Mapping[str, Any]
) -> Entry:
    key, report = stamps["report"]["key"], folder / "report"
    metrics = sha256_file(report / "metrics.json")[:16]
    lock = Path("dvc.lock")
    tags = {
        "fewstep.spec_key": key,
        "fewstep.metrics_sha": metrics,
        RULE: "report",
        "git.commit": (commit or "unknown").removesuffix("+changes"),
        "git.dirty": str(bool(commit and commit.endswith("+changes"))).lower(),
        "dvc.lock": hashlib.md5(lock.read_bytes()).hexdigest() if lock.exists() else "none",
    }
    data = []
    for place in _making("dataset", stamps, stages):  # a model of the zoo has no data here
        manifest = read_json(folder / place / "manifest.json")
        tags |= {f"data.sha256.{part}": digest for part, digest in manifest["sha256"].items()}
        data.append(_data(manifest))
    models = [
        folder / place / name
        for place in _making("model", stamps, stages)
        for name in ("card.json", "config.json")
    ]
    tables = [report / name for name in ("index.html", "leaderboard.csv", "metrics.json")]
    figures = sorted(file for file in report.rglob("*") if file.suffix in _FIGURES)
    numbers, words = _headline(headline)
    return Entry(
        key=f"{key}/{metrics}",
        name=f"{run} {key[:8]}",
        tags=tags | {NOTE: _note(run, headline)},
        params=flat(_settings_of(folder, stamps, stages)) | words,
        points=[(name, value, 0) for name, value in numbers.items()],
        files=_placed((file for file in (*tables, *figures, *models) if file.exists()), report, folder),
        data=data,
    )


def _data(manifest: Mapping[str, Any]) -> Data:
    """A dataset of images, or of their latents, by the hash of its main array."""
    source = manifest.get("source") or {}
    part = "latents" if "latents" in manifest["sha256"] else "images"
    return Data(
        name=manifest["name"] if part == "images" else f"{manifest['name']} latents",
        digest=manifest["sha256"][part][:16],
        source=source if isinstance(source, Mapping) else {"source": source},
        profile={name: manifest[name] for name in ("n", "shape", "splits") if name in manifest},
    )


def _headline(headline: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """The numbers and the words of a report's metrics.json under names that MLflow takes."""
    numbers: dict[str, float] = {}
    words: dict[str, str] = {}
    for name, value in headline.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[metric_name(name)] = float(value)
        else:
            words[metric_name(name)] = str(value)
    return numbers, words


def _note(run: str, headline: Mapping[str, Any]) -> str:
    """What is in the MLflow run of a report, in Markdown, with the best sampler of each number of network calls."""
    rows = [
        f"| {int(nfe)} | {headline[name]} {headline.get(f'nfe{nfe}.grid', '')} | {_short(headline, nfe, 'fd')} "
        f"| {_short(headline, nfe, 'fd_ddim')} |"
        for name in headline
        if (match := re.fullmatch(r"nfe(\d+)\.best", name)) and (nfe := match[1])
    ]
    table = [
        f"| NFE | best sampler | {headline.get('metric', 'FD')} | DDIM |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(
        [
            f"The report of `results/{run}`: `index.html` among the artifacts shows all of it, `leaderboard.csv` its "
            "numbers, `figures/` its figures, one by one.",
            "",
            *(table if rows else ()),
            "The runs below this one are the training curve, the searches, and one per sampler, whose metrics stand at "
            "step = number of network calls (NFE).",
        ]
    )


def _short(headline: Mapping[str, Any], nfe: str, name: str) -> str:
    value = headline.get(f"nfe{nfe}.{name}")
    return "" if value is None else f"{value:.4g}"


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
            network = trained["model"]  # that of the model it was started from has a sentence in its place
            network = network if isinstance(network, Mapping) else {"network": network}
            settings["model"] = {**network, "zoo": stamps[place]["settings"]["model"].get("zoo")}
    settings.pop("track", None)
    return settings


def _stage_entries(
    folder: Path, place: str, stamp: Mapping[str, Any], parent: str, stages: Stages
) -> Iterator[Entry]:
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
        yield Entry(
            key=record.key or f"{parent}/{place}/{content}",
            name=record.name,
            tags={RULE: stage.name},
            params=flat(record.params),
            points=record.points,
            files=_placed(record.files, folder / place, folder) | _placed(figures, folder / "report"),
        )


def _plain_record(folder: Path, place: str, stamp: Mapping[str, Any]) -> Record:
    """Settings and tables of a stage that says nothing of its own."""
    files = [folder / name for name in stamp["files"] if Path(name).suffix in _SHOWN]
    return Record(place.replace("/", " "), params=stamp["settings"], files=files)


def _sampler_entries(
    folder: Path, stamps: Stamps, parent: str, stages: Stages, ranking: str | None
) -> Iterator[Entry]:
    """One per sampler; `ranking` is the metric that the report ranks by."""
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
        yield Entry(
            key=f"{parent}/{sampler}/{grid}/{content[:16]}",
            name=f"{sampler} {grid}",
            tags={RULE: "evaluate"},
            params={"sampler": sampler, "grid": grid, **flat({"protocol": first["protocol"]})},
            points=[
                point for _, certificate in members for point in _certificate_points(certificate, ranking)
            ],
            files=_placed((file for file, _ in members), folder),
        )


def _certificate_points(certificate: Mapping[str, Any], ranking: str | None) -> Iterator[Point]:
    """Every number of a certificate at step = NFE, and that of the ranking also as a column of its NFE."""
    step = int(certificate["subject"]["plan"]["nfe"])
    for metric, result in certificate["results"].items():
        yield metric_name(metric), float(result["value"]), step
        if metric == ranking:
            yield f"nfe{step:03d}.fd", float(result["value"]), step
        for end, bound in zip(("low", "high"), result.get("interval") or (), strict=False):
            yield f"{metric_name(metric)}/{end}", float(bound), step
        if result.get("baseline") is not None:
            yield f"{metric_name(metric)}/baseline", float(result["baseline"]), step
    cost = certificate["costs"].get("network_ms_per_image")
    if cost is not None:
        yield "network_ms_per_image", float(cost), step
