"""Which results of a run are current: the spec that each must carry now, and how the workflow sees that one does not.

A spec is an input of its rule. It is dated older than any result as long as the result carries the wanted key and has
all of its files, and newer otherwise, so that the workflow runs what does not fit and nothing else.
"""

import os
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fewstep.app.params import Params
from fewstep.app.stages import STAGES
from fewstep.files import canonical_json, object_or_empty, sha256_text, write_json
from fewstep.pipeline.stage import Stage
from fewstep.pipeline.stage.code import code_hash
from fewstep.pipeline.stage.settings import RunSettings
from fewstep.pipeline.stage.spec import STAMP, Spec
from fewstep.pipeline.stage.stages import Given, Result

RUN_LOCK = Path("state/run.lock")
SLOTS = Path("state/devices")

_OLDER_THAN_ANY_RESULT = 946684800  # 2000-01-01, as an mtime: never a reason to run again


def spec_path(run: str, place: str) -> Path:
    """Where the wanted spec of a result stands, relative to the working directory."""
    return Path("state", run, "spec", f"{place}.json")


def make_specs(run: str, runs: Mapping[str, RunSettings]) -> dict[str, Spec]:
    """The specs that the results of a run must carry now, by place.

    Args:
        run: its name.
        runs: the settings of all runs, as one may read what others made.
    """
    made: dict[tuple[str, str], Spec] = {}
    return {result.place: _make(result, run, runs, made) for result in STAGES.results(runs[run])}


def _make(
    result: Result, run: str, runs: Mapping[str, RunSettings], made: dict[tuple[str, str], Spec]
) -> Spec:
    if result.run:
        return _make(Result(result.stage), result.run, runs, made)
    if (run, result.place) in made:
        return made[run, result.place]
    stage, settings = result.stage, runs[run]
    inputs = STAGES.inputs(result, settings)
    upstream = {
        given.result.place: _make(given.result, run, runs, made).key
        for values in inputs.values()
        for given in values
        if given.result is not None
    }
    roots = (*roots_of(stage), *stage.uses_code(settings))
    code = code_hash(roots)
    body = {
        "stage": stage.name,
        "nfe": result.nfe,
        "settings": _chosen(settings.result_settings(), stage),
        "code": code,
        "inputs": {name: [_identity(given, upstream) for given in values] for name, values in inputs.items()},
        "source": None if stage.source is None else stage.source(settings),
    }
    own = [stage.name] if stage.settings is not None else []
    sections = {*own, *(name.partition(".")[0] for name in stage.reads), *stage.uses}
    made[run, result.place] = Spec(
        stage=stage.name,
        run=run,
        place=result.place,
        key=sha256_text(canonical_json(body))[:16],
        roots=roots,
        code=code,
        settings=settings.model_dump(mode="json", include=sections),
        upstream=dict(sorted(upstream.items())),
    )
    return made[run, result.place]


def _identity(given: Given, upstream: Mapping[str, str]) -> list[str]:
    place = "" if given.result is None else given.result.place
    return [place, upstream.get(place, ""), given.text, given.label]


@cache
def roots_of(stage: Stage) -> tuple[str, ...]:
    """The modules whose code results depend on; those of a report are all panels, too, of tracking all records, and of
    a board all that claims measure by.
    """
    measures = (
        {one.measures for one in STAGES if one.measures is not None} if stage.across is not None else ()
    )
    panels = [one.panel for one in STAGES if one.panel is not None] if stage.makes == "report" else []
    records = [one.record for one in STAGES if one.record is not None]
    return (
        *stage.roots,
        *sorted(measures),
        *panels,
        *(("fewstep.app.tracking", *records) if stage.root == "state" else ()),
    )


def _chosen(settings: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """The settings that the results of a stage depend on, by dotted name.

    Fields that cannot change any result are not in `settings`, and so are left out.
    """
    reads = {stage.name, *stage.reads}
    ignores = {*stage.ignores, *([f"{stage.name}.nfe"] if stage.nfe is not None else [])}
    return {
        f"{section}.{field}": value
        for section, fields in settings.items()
        for field, value in fields.items()
        if (section in reads or f"{section}.{field}" in reads) and f"{section}.{field}" not in ignores
    }


def sync_specs(params: Params) -> None:
    """Bring `state/<run>/spec/` up to date. Results that do not exist need no signal."""
    for run, settings in params.runs.items():
        specs = make_specs(run, params.runs)
        for result in STAGES.results(settings):
            _sync(specs[result.place], result.folder(run))


def _sync(want: Spec, folder: Path) -> None:
    path = spec_path(want.run, want.place)
    have = object_or_empty(path)
    serial = have.pop("serial", 0)
    result = folder / STAMP
    stale = result.exists() and not _is_current(folder, want)
    changed = have != want.as_json()
    signalled = not changed and stale and path.stat().st_mtime > result.stat().st_mtime
    if changed or stale:
        date = path.stat().st_mtime_ns if signalled else time.time_ns()
        # A serial, as Snakemake overlooks the date if it knows the checksum from an earlier job.
        write_json(path, {**want.as_json(), "serial": time.time_ns() if stale else serial})
        # What was made since the signal stays: an interrupted workflow does not start over.
        os.utime(path, ns=(date, date))
    if not stale:
        os.utime(path, (_OLDER_THAN_ANY_RESULT, _OLDER_THAN_ANY_RESULT))


def _is_current(folder: Path, want: Spec) -> bool:
    """Whether a finished result carries the wanted key and has all of its files."""
    stamp = object_or_empty(folder / STAMP)
    files = stamp.get("files", [])
    is_list = isinstance(files, list) and all(isinstance(name, str) for name in files)
    return stamp.get("key") == want.key and is_list and all((folder / name).exists() for name in files)


def leftovers(run: str, settings: RunSettings) -> list[Path]:
    """Result folders that the settings of a run no longer ask for, and half-written ones."""
    wanted = {result.folder(run) for result in STAGES.results(settings)}
    top = Path("results", run)
    return sorted(folder for folder in _folders(top) if folder not in wanted)


def _folders(top: Path) -> Iterator[Path]:
    """Folders below that are stamped, or hidden, as temporary ones are."""
    for path in sorted(top.iterdir()) if top.is_dir() else []:
        if path.is_dir():
            if path.name.startswith(".") or (path / STAMP).exists():
                yield path
            if not path.name.startswith("."):
                yield from _folders(path)
