"""Spec keys: how a result says what it was made from, and how the workflow sees that it no longer fits.

For every (run, rule) there is a spec: the settings the rule reads, a hash of the code it uses and the keys of
the rules it builds on. Its `key` is a hash of all that, hence of the whole provenance. The spec is written to
`state/<run>/spec/<rule>.json`, is an input of the rule, and is where the command takes its settings from. A
command copies it beside its results as its last act (`stamp`), so files that a version control tool has put
back, or a copied folder, can be told from the results that the present settings and code would give.
"""

import ast
import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import ValidationError

from fewstep.checks import ConfigError, DataError
from fewstep.files import (
    atomic_dir,
    canonical_json,
    read_json,
    require_folder,
    require_replaceable,
    sha256_text,
    write_json,
)
from fewstep.interop.zoo import REFERENCES, digest, find, zoo_folder
from fewstep.pipeline.config import Params, Section, Settings

SCHEMA = "fewstep.spec/1"
STAMP = "spec.json"
RUN_LOCK = Path("state/run.lock")

_PACKAGE = Path(__file__).parents[1]
_OLDER_THAN_ANY_RESULT = 946684800  # 2000-01-01, as an mtime: never a reason to run again
_SOURCES = {".py", ".j2", ".css", ".js"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_SectionT = TypeVar("_SectionT", bound=Section)


@dataclass(frozen=True)
class Rule:
    """What the results of one workflow rule depend on, and where they say so.

    Attributes:
        reads: Settings, as `section` or `section.field`.
        code: Modules and folders of the package, relative to it: all that its command imports.
        upstream: Rules whose results are read.
        results: The JSON file in the working directory that carries the key; one per `{nfe}` if it names it.
        ignores: Settings within `reads` that do not change a result of this rule.
    """

    reads: tuple[str, ...]
    code: tuple[str, ...]
    upstream: tuple[str, ...]
    results: str
    ignores: tuple[str, ...] = ()


# Left out, as no result depends on them: fewstep/__init__, __main__, process, progress, _typing, and of pipeline/
# config, tracking and options (the values are in the key), specs, devices (where, not what) and environment (it only
# describes).
_MODEL = (
    "diffusion",
    "nets",
    "data/packed.py",
    "data/pixels.py",
    "data/manifest.py",
    "rng.py",
    "files.py",
    "checks.py",
)
_PREPARE = ("pipeline/commands/data.py", "data", "rng.py", "files.py", "checks.py")
_TRAIN = (
    "pipeline/commands/model.py",
    "methods/ddsm/__init__.py",
    "methods/ddsm/sandwich.py",
    "interop/zoo.py",
    "train",
    *_MODEL,
)
_ZOO = ("pipeline/commands/zoo.py", "interop/zoo.py", "nets/__init__.py", "files.py", "checks.py")
_LOAD = ("interop/load.py", "interop/zoo.py", "interop/diffusers_model.py", *_MODEL)
_SAMPLE = (
    "pipeline/commands/sampling.py",
    "pipeline/drawing.py",
    "pipeline/parts.py",
    "pipeline/recorded.py",
    "pipeline/samples.py",
    "pipeline/seeds.py",
    "sampling",
    "train/world.py",
    *_LOAD,
)
_EVALUATE = (
    "pipeline/commands/evaluation.py",
    "pipeline/evaluation.py",
    "pipeline/features.py",
    "pipeline/images.py",
    "pipeline/parts.py",
    "pipeline/recorded.py",
    "pipeline/samples.py",
    "data/archives.py",
    "data/image_files.py",
    "data/source.py",
    "data/transforms.py",
    "metrics",
    "train/world.py",
    "interop/zoo.py",
    *_MODEL,
)
_SEARCH = (
    "pipeline/commands/search.py",
    "pipeline/search.py",
    "pipeline/seeds.py",
    "pipeline/solutions.py",
    "pipeline/measure.py",
    "pipeline/study.py",
    "methods/s3",
    "sampling",
    "metrics",
    *_LOAD,
)
_MAKES_PLANS = ("pipeline/samples.py", "pipeline/seeds.py", "sampling", "metrics", *_LOAD)
_STEPAWARE = (
    "pipeline/commands/stepaware.py",
    "pipeline/narrowing.py",
    "pipeline/stepaware.py",
    "pipeline/search.py",
    "pipeline/measure.py",
    "pipeline/study.py",
    "methods/ddsm",
    "methods/s3",
    *_MAKES_PLANS,
)
_ALIGN = (
    "pipeline/commands/align.py",
    "pipeline/alignment.py",
    "pipeline/measure.py",
    "methods/aligner",
    *_MAKES_PLANS,
)
_COMPOSE = (
    "pipeline/commands/compose.py",
    "pipeline/compose.py",
    "pipeline/measure.py",
    "pipeline/searches.py",
    "methods/ddsm",
    *_MAKES_PLANS,
)
_DETECT = (
    "pipeline/commands/detect.py",
    "pipeline/detection.py",
    "pipeline/detections.py",
    "pipeline/samples.py",
    "methods/multilid",
    "metrics",
    *_MODEL,
)
_REPORT = (
    "pipeline/commands/results.py",
    "pipeline/report",
    "pipeline/samples.py",
    "pipeline/searches.py",
    "pipeline/detections.py",
    "methods/ddsm/__init__.py",
    "methods/ddsm/widths.py",
    "methods/multilid",
    "metrics/certificate.py",
    "metrics/uncertainty.py",
    "metrics/statistics.py",
    "metrics/frechet.py",
    "sampling",
    "diffusion",
    "rng.py",
    "files.py",
    "checks.py",
)

RULES: dict[str, Rule] = {
    "prepare": Rule(
        reads=("data",),
        code=_PREPARE,
        upstream=(),
        results="results/{run}/data/spec.json",
    ),
    "train": Rule(
        reads=("model", "train", "tracking"),
        code=_TRAIN,
        upstream=("prepare",),
        results="results/{run}/model/spec.json",
        ignores=("tracking.uri",),
    ),
    "zoo": Rule(
        reads=("model.zoo",),
        code=_ZOO,
        upstream=(),
        results="results/{run}/model/spec.json",
    ),
    "zoo-stats": Rule(
        reads=("model.zoo", "extractor.name"),
        code=_ZOO,
        upstream=(),
        results="results/{run}/reference/spec.json",
    ),
    "extractor": Rule(
        reads=("extractor",),
        code=_TRAIN,
        upstream=("prepare",),
        results="results/{run}/reference/extractor/spec.json",
    ),
    "stats": Rule(
        reads=("stats", "extractor.name"),
        code=_EVALUATE,
        upstream=("prepare", "extractor"),
        results="results/{run}/reference/spec.json",
    ),
    "plans": Rule(
        reads=("plans",),
        code=_SAMPLE,
        upstream=(
            "train",
            "zoo",
        ),
        results="results/{run}/plans/nfe{nfe}/spec.json",
        ignores=("plans.nfe",),  # each number of calls has a folder of its own
    ),
    "teacher": Rule(
        reads=("search.noises", "search.teacher_nfe", "search.seed", "plans.to_zero", "sample.guidance"),
        code=_SEARCH,
        upstream=(
            "train",
            "zoo",
        ),
        results="results/{run}/reference/teacher/spec.json",
    ),
    "search": Rule(
        reads=("search", "plans.to_zero", "sample.guidance"),
        code=_SEARCH,
        upstream=("train", "zoo", "teacher", "stats", "zoo-stats"),
        results="results/{run}/plans/searched/nfe{nfe}/spec.json",
        ignores=("search.nfe",),
    ),
    "stepaware": Rule(
        reads=("stepaware", "sample.guidance", "plans.presets", "plans.grids", "plans.to_zero", "search.nfe"),
        code=_STEPAWARE,
        upstream=("train", "zoo", "plans", "search", "stats", "zoo-stats"),
        results="results/{run}/plans/stepaware/nfe{nfe}/spec.json",
        ignores=("stepaware.nfe",),
    ),
    "align": Rule(
        reads=(
            "align",
            "sample.guidance",
            "stepaware.nfe",
            "plans.presets",
            "plans.grids",
            "plans.to_zero",
            "search.nfe",
        ),
        code=_ALIGN,
        upstream=("train", "zoo", "plans", "search", "stepaware", "stats", "zoo-stats"),
        results="results/{run}/plans/aligned/nfe{nfe}/spec.json",
        ignores=("align.nfe",),
    ),
    "compose": Rule(
        reads=("compose", "sample.guidance", "search.nfe", "stepaware.nfe", "align.nfe"),
        code=_COMPOSE,
        upstream=("train", "zoo", "search", "stepaware", "align", "stats", "zoo-stats"),
        results="results/{run}/plans/composed/spec.json",
    ),
    "sample": Rule(
        reads=("sample",),
        code=_SAMPLE,
        upstream=("train", "zoo", "plans"),
        results="results/{run}/samples/nfe{nfe}/spec.json",
    ),
    "sample-searched": Rule(
        reads=("sample", "search.nfe"),
        code=_SAMPLE,
        upstream=("train", "zoo", "search"),
        results="results/{run}/samples/searched/spec.json",
    ),
    "evaluate": Rule(
        reads=("evaluate",),
        code=_EVALUATE,
        upstream=("sample", "stats", "zoo-stats"),
        results="results/{run}/eval/nfe{nfe}/spec.json",
    ),
    "evaluate-searched": Rule(
        reads=("evaluate",),
        code=_EVALUATE,
        upstream=("sample-searched", "stats", "zoo-stats"),
        results="results/{run}/eval/searched/spec.json",
    ),
    "sample-composed": Rule(
        reads=("sample",),
        code=_SAMPLE,
        upstream=("train", "zoo", "compose"),
        results="results/{run}/samples/composed/spec.json",
    ),
    "evaluate-composed": Rule(
        reads=("evaluate",),
        code=_EVALUATE,
        upstream=("sample-composed", "stats", "zoo-stats"),
        results="results/{run}/eval/composed/spec.json",
    ),
    "detect": Rule(
        reads=("detect", "search.nfe"),
        code=_DETECT,
        upstream=("prepare", "extractor", "sample", "sample-searched"),
        results="results/{run}/detection/spec.json",
    ),
    "report": Rule(
        reads=("plans.nfe", "search.nfe", "stepaware.nfe", "align.nfe", "detect.nfe"),
        code=_REPORT,
        upstream=("evaluate", "evaluate-searched", "evaluate-composed", "detect"),
        results="results/{run}/report/spec.json",
    ),
    "track": Rule(
        reads=("tracking",),
        code=("pipeline/tracking.py", "pipeline/searches.py"),
        upstream=("report",),
        results="state/{run}/tracked.json",
    ),
}

TRAINING = ("prepare", "train", "extractor", "stats")
SEARCHING = ("teacher", "search", "sample-searched", "evaluate-searched")
COMPOSING = ("compose", "sample-composed", "evaluate-composed")


@dataclass(frozen=True)
class Spec:
    """What a command must make: read with `load_spec`, left beside the result with `stamp`."""

    rule: str
    run: str
    key: str
    code: str
    settings: dict[str, dict[str, Any]]
    upstream: dict[str, str]

    def section(self, kind: type[_SectionT]) -> _SectionT:
        """The settings of one section, for example `spec.section(TrainSettings)`.

        Raises:
            ConfigError: The rule does not depend on that section, or its values are not valid.
        """
        name = next(name for name, field in Settings.model_fields.items() if field.annotation is kind)
        if name not in self.settings:
            raise ConfigError(
                f"a spec of this command must hold {name} settings, got the spec of rule {self.rule}"
            )
        try:
            return kind.model_validate(self.settings[name])
        except ValidationError as error:
            raise ConfigError(
                f"the {name} settings of the spec for {self.run}/{self.rule} must be valid, got "
                f"{error.errors()[0]['msg']!r}; run the workflow again to renew it"
            ) from error

    def as_json(self) -> dict[str, Any]:
        """The content of the stamp."""
        return {
            "schema": SCHEMA,
            "rule": self.rule,
            "run": self.run,
            "key": self.key,
            "spec_key": self.key,
            "code": self.code,
            "settings": self.settings,
            "upstream": self.upstream,
        }


def applies(rule: str, settings: Settings) -> bool:
    """Whether a run has this rule: not every extractor is trained, and not every run searches."""
    if rule in ("zoo", "zoo-stats"):
        return settings.model.zoo is not None
    if rule in TRAINING and settings.model.zoo is not None:
        return False
    if rule == "extractor":
        return settings.extractor.name == "classifier"
    if rule in ("stepaware", "align"):
        return bool(_numbers(rule, settings))
    if rule == "detect":
        return bool(settings.detect.nfe)
    if rule in COMPOSING:
        return bool(settings.stepaware.nfe or settings.align.nfe)
    return bool(settings.search.nfe) or rule not in SEARCHING


def _numbers(rule: str, settings: Settings) -> list[int]:
    """The numbers of calls that a rule with `{nfe}` in its results is run for."""
    if rule in SEARCHING:
        return settings.search.nfe
    return {"stepaware": settings.stepaware.nfe, "align": settings.align.nfe}.get(rule, settings.plans.nfe)


def spec_path(run: str, rule: str) -> Path:
    """Where the wanted spec of a rule stands, relative to the working directory."""
    return Path("state", run, "spec", f"{rule}.json")


def make_spec(run: str, rule: str, settings: Settings) -> Spec:
    """The spec that results of a rule must carry now."""
    depends = RULES[rule]
    upstream = {
        name: make_spec(run, name, settings).key for name in depends.upstream if applies(name, settings)
    }
    code = code_hash(depends.code)
    body = {
        "rule": rule,
        "settings": _chosen(settings.result_settings(), depends),
        "code": code,
        "upstream": upstream,
        "source": _source(rule, settings),
    }
    sections = {name.partition(".")[0] for name in depends.reads}
    return Spec(
        rule=rule,
        run=run,
        key=sha256_text(canonical_json(body))[:16],
        code=code,
        settings=settings.model_dump(mode="json", include=sections),
        upstream=upstream,
    )


def load_spec(path: str | Path) -> Spec:
    """Read the spec that a command was given.

    Raises:
        DataError: The file is missing or is not a spec.
        ConfigError: The installed code is not the code that the spec was written for.
    """
    content = read_json(Path(path))
    fields = ("rule", "run", "key", "code", "settings", "upstream")
    if (
        not isinstance(content, dict)
        or content.get("schema") != SCHEMA
        or not all(f in content for f in fields)
    ):
        raise DataError(
            f"{path} must be a spec written by the workflow ({SCHEMA}); run snakemake to write it"
        )
    spec = Spec(**{field: content[field] for field in fields})
    if spec.rule not in RULES or code_hash(RULES[spec.rule].code) != spec.code:
        raise ConfigError(
            f"the code of rule {spec.rule} must be the code that {path} was written for, but it has changed "
            "since; run the workflow again"
        )
    return spec


def stamp(spec: Spec, folder: str | Path) -> Path:
    """Leave the spec beside the results in `folder`, after everything else there is complete."""
    path = Path(folder) / STAMP
    write_json(path, spec.as_json())
    return path


def require_result_folder(out: Path, spec: Spec | None, suffixes: Set[str]) -> None:
    """Raise ConfigError, before any work, where `result_folder` would: for a run, suffixes of files that may go."""
    if spec:
        require_replaceable(out, suffixes)
    else:
        require_folder(out)


@contextmanager
def result_folder(out: Path, spec: Spec | None) -> Iterator[Path]:
    """Yield the folder to write results into. A run's is replaced whole and stamped; what else others hold stays."""
    with atomic_dir(out, keep=spec is None) as folder:
        yield folder
        if spec:
            stamp(spec, folder)
        elif _json_or_empty(out / STAMP).get("schema") == SCHEMA:
            (out / STAMP).unlink()  # not all here is what the run made any more


def sync_specs(params: Params) -> None:
    """Bring `state/<run>/spec/` up to date, so that the workflow runs what does not fit and nothing else.

    A spec is an input of its rule. It is dated older than any result when all results that exist carry the
    wanted key, and newer than those that do not. Results that do not exist need no signal.
    """
    for run, settings in params.runs.items():
        for rule in RULES:
            if applies(rule, settings):
                _sync(make_spec(run, rule, settings), _numbers(rule, settings))


def leftovers(run: str, settings: Settings) -> list[Path]:
    """Result folders that the settings of a run no longer ask for, and half-written ones."""
    found: set[Path] = set()
    wanted: set[Path] = set()
    for rule, depends in RULES.items():
        parent = Path(depends.results.format(run=run, nfe="*")).parent
        if "results" not in parent.parts:
            continue
        if applies(rule, settings):
            wanted |= {Path(depends.results.format(run=run, nfe=n)).parent for n in _numbers(rule, settings)}
        found |= {*parent.parent.glob(parent.name), *parent.parent.glob(f".{parent.name}.*")}
    return sorted(found - wanted)


def acquire_lock(path: Path = RUN_LOCK) -> tuple[IO[str] | None, str]:
    """Take the lock of this working directory; the kernel drops it when the process dies, however it dies.

    Returns:
        The open file, to be kept until the end of the run, and ""; or None and who holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        holder = handle.read().strip()
        handle.close()
        return None, holder
    handle.truncate(0)
    handle.write(f"process {os.getpid()}")
    handle.flush()
    return handle, ""


@cache
def code_hash(modules: Sequence[str], package: Path = _PACKAGE) -> str:
    """Hash of what modules do: comments, formatting, docstrings and annotations of functions do not count.

    Args:
        modules: Files and folders relative to `package`; a folder stands for all that is in it.
        package: The folder of the package.
    """
    files: set[Path] = set()
    for name in modules:
        path = package / name
        files.update(_sources(path) if path.is_dir() else [path])
    parts = [f"{file.relative_to(package)}\n{_meaning(file)}" for file in sorted(files)]
    return sha256_text("\0".join(parts))[:16]


def _sources(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix in _SOURCES)


@cache
def _meaning(file: Path) -> str:
    """The text of a module without what does not run; a template or style sheet as it is."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):  # also where commands keep their help texts
            node.annotation = None
    return ast.unparse(tree)  # unlike ast.dump, the same text for the same code in every Python


def _chosen(settings: dict[str, Any], rule: Rule) -> dict[str, Any]:
    """The settings that the results of a rule depend on, by dotted name.

    Fields that cannot change any result are not in `settings`, and so are left out.
    """
    return {
        f"{section}.{field}": value
        for section, fields in settings.items()
        for field, value in fields.items()
        if (section in rule.reads or f"{section}.{field}" in rule.reads)
        and f"{section}.{field}" not in rule.ignores
    }


def _source(rule: str, settings: Settings) -> str | None:
    """What a rule reads from outside the workflow."""
    if rule == "prepare":
        return _source_md5(settings)
    if rule == "zoo" and settings.model.zoo is not None:
        return digest(find(settings.model.zoo))
    if rule == "zoo-stats":
        return digest(zoo_folder() / REFERENCES)
    return None


def _source_md5(settings: Settings) -> str | None:
    """The hash that `dvc add` has recorded for the raw data; None when it is not tracked."""
    if settings.data.source is None:
        return None
    record = Path(f"{settings.data.source}.dvc")
    found = re.search(r"^\s*-?\s*md5:\s*(\S+)", record.read_text(), re.MULTILINE) if record.exists() else None
    return found[1] if found else None


def _sync(want: Spec, nfe: Sequence[int]) -> None:
    path = spec_path(want.run, want.rule)
    have = _json_or_empty(path)
    serial = have.pop("serial", 0)
    # Only what the settings ask for: leftovers of removed settings must not make the others stale.
    results = {Path(RULES[want.rule].results.format(run=want.run, nfe=n)) for n in nfe}
    stale = [
        file.stat().st_mtime
        for file in results
        if file.exists() and _json_or_empty(file).get("spec_key") != want.key
    ]
    changed = have != want.as_json()
    signalled = not changed and bool(stale) and path.stat().st_mtime > max(stale)
    if changed or stale:
        date = path.stat().st_mtime_ns if signalled else time.time_ns()
        # A serial, as Snakemake overlooks the date if it knows the checksum from an earlier job.
        write_json(path, {**want.as_json(), "serial": time.time_ns() if stale else serial})
        # What was made since the signal stays: an interrupted workflow does not start over.
        os.utime(path, ns=(date, date))
    if not stale:
        os.utime(path, (_OLDER_THAN_ANY_RESULT, _OLDER_THAN_ANY_RESULT))


def _json_or_empty(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, for a torn file must be replaced, not reported."""
    try:
        content = read_json(path)
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}
