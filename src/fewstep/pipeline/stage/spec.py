"""Specs: how a result says what it was made from, and where its command takes its settings from.

For every result that a run is to have there is a spec: the settings that it depends on, a hash of the code that makes
it and the keys of the results that it builds on. Its `key` is a hash of all that, hence of the whole provenance. A
command copies the spec beside its results as its last act, as their stamp, so that files that a version control tool
has put back, or a copied folder, can be told from the results that the present settings and code would give.
"""

import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fewstep.checks import ConfigError, DataError
from fewstep.files import (
    atomic_dir,
    is_hidden,
    object_or_empty,
    read_json,
    require_folder,
    require_replaceable,
    write_json,
)
from fewstep.pipeline.stage.code import code_hash
from fewstep.pipeline.stage.settings import Section

SCHEMA = "fewstep.spec/2"
STAMP = "spec.json"
_KEY = re.compile(r"[0-9a-f]{16}")
_MODULE = re.compile(r"fewstep(\.\w+)*")
_SectionT = TypeVar("_SectionT", bound=Section)


@dataclass(frozen=True)
class Spec:
    """What a command must make: read with `load_spec`, left beside the result with `stamp`.

    Attributes:
        stage: its name.
        run: the run of params.yaml.
        place: of the result, below the folder of the run.
        key: hash of all that the result depends on.
        roots: modules whose code, with all they import, it depends on.
        code: hash of that code.
        settings: by section.
        upstream: place -> key of the results that it builds on.
    """

    stage: str
    run: str
    place: str
    key: str
    roots: tuple[str, ...]
    code: str
    settings: dict[str, dict[str, Any]]
    upstream: dict[str, str]

    def section(self, name: str, kind: type[_SectionT]) -> _SectionT:
        """The settings of one section.

        Raises:
            ConfigError: The stage does not depend on that section, or its values are not valid.
        """
        if name not in self.settings:
            raise ConfigError(
                f"a spec of this command must hold {name} settings, got the spec of stage {self.stage}"
            )
        try:
            return kind.model_validate(self.settings[name])
        except ValidationError as error:
            raise ConfigError(
                f"the {name} settings of the spec for {self.run}/{self.place} must be valid, got "
                f"{error.errors()[0]['msg']!r}; run the workflow again to renew it"
            ) from error

    def value(self, field: str) -> Any:
        """A setting by its dotted name, such as `sample.guidance`, which the stage says that it reads."""
        section, _, name = field.partition(".")
        try:
            return self.settings[section][name]
        except KeyError:
            raise ConfigError(
                f"the spec for {self.run}/{self.place} must hold {field}; run the workflow again to renew it"
            ) from None

    def as_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {"schema": SCHEMA, **asdict(self), "roots": list(self.roots), "spec_key": self.key}


def load_spec(path: str | Path) -> Spec:
    """Read the spec that a command was given.

    Raises:
        DataError: The file is missing or is not a spec.
        ConfigError: The installed code is not the code that the spec was written for.
    """
    content = read_json(Path(path))
    fields = tuple(Spec.__dataclass_fields__)
    if (
        not isinstance(content, dict)
        or content.get("schema") != SCHEMA
        or not all(field in content for field in fields)
        or not _KEY.fullmatch(str(content["key"]))
        or not all(isinstance(content[name], str) for name in ("stage", "run", "place", "code"))
        or not all(isinstance(content[name], dict) for name in ("settings", "upstream"))
        or not all(isinstance(values, dict) for values in content["settings"].values())
        or not isinstance(content["roots"], list)
        or not all(isinstance(root, str) and _MODULE.fullmatch(root) for root in content["roots"])
    ):
        raise DataError(
            f"{path} must be a spec written by the workflow ({SCHEMA}); run snakemake to write it"
        )
    spec = Spec(**{field: content[field] for field in fields} | {"roots": tuple(content["roots"])})
    if code_hash(spec.roots) != spec.code:
        raise ConfigError(
            f"the code of stage {spec.stage} must be the code that {path} was written for, but it has changed "
            "since; run the workflow again"
        )
    return spec


def stamp(spec: Spec, folder: str | Path) -> Path:
    """Leave the spec beside the results in `folder`, after everything else there is complete, with their names."""
    folder = Path(folder)
    path = folder / STAMP
    files = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and file != path and not is_hidden(file.relative_to(folder))
    )
    write_json(path, {**spec.as_json(), "files": files})
    return path


def read_stamp(folder: Path) -> Mapping[str, Any]:
    """The stamp of a finished result.
    Raises: DataError: there is none.
    """
    content = read_json(folder / STAMP)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise DataError(
            f"{folder / STAMP} must be a spec written by the workflow; run snakemake to make it again"
        )
    return content


def require_result_folder(out: Path, spec: Spec | None, suffixes: Set[str]) -> None:
    """Raise ConfigError, before any work, where `result_folder` would: for a run, suffixes of files that may go."""
    if spec:
        require_replaceable(out, suffixes, names={STAMP})
    else:
        require_folder(out)


@contextmanager
def result_folder(out: Path, spec: Spec | None) -> Iterator[Path]:
    """Yield the folder to write results into. A run's is replaced whole and stamped; what else others hold stays."""
    with atomic_dir(out, keep=spec is None) as folder:
        yield folder
        if spec:
            stamp(spec, folder)
        elif object_or_empty(out / STAMP).get("schema") == SCHEMA:
            (out / STAMP).unlink()  # not all here is what the run made any more
