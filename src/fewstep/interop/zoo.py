"""The model zoo: trained models and reference statistics that have a name, and checksums that they must keep to."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from fewstep.checks import ConfigError, DataError
from fewstep.files import read_json, sha256_file, write_json
from fewstep.nets import CARD, CONFIG, WEIGHTS

SCHEMA = "fewstep.zoo/1"
CHECKSUMS = "zoo.json"
STATISTICS = "stats.npz"
"""The file of a folder that fewstep stats, or fewstep zoo, has written in the workflow."""
REFERENCES = "reference"
"""The folder of the zoo that holds statistics, `DATASET.EXTRACTOR.npz`."""

_OF_CHECKOUT = Path(__file__).parents[3] / "zoo"
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text", Real: "a number"}
_NOT_SUMMED = {CHECKSUMS, "README.md"}  # what is said about a model may be put better without changing it


@dataclass(frozen=True)
class Entry:
    """One model of the zoo, and what its card says of it; None where it says nothing.

    Attributes: dataset: its name. images: how many it has to train on. megabytes: of the weights' file, 10^6 bytes.
        metric, value: the first number of the card's `metrics`, a mapping from name to number or to a record with
        `value`.
    """

    name: str
    folder: Path
    dataset: str | None
    images: int | None
    parameters: int | None
    images_seen: int | None
    megabytes: float
    metric: str | None
    value: float | None


def zoo_folder() -> Path:
    """$FEWSTEP_ZOO where it is set; otherwise ./zoo, or else the zoo of the checkout that this code stands in.

    Raises:
        ConfigError: There is no such folder.
    """
    given = os.environ.get("FEWSTEP_ZOO")
    for place in [Path(given)] if given else [Path("zoo"), _OF_CHECKOUT]:
        if place.is_dir():
            return place
    if given:
        raise ConfigError(
            f"$FEWSTEP_ZOO must be a folder, but there is none at {given}; set it anew or unset it."
        )
    raise ConfigError(
        f"The zoo must be the folder $FEWSTEP_ZOO (not set), ./zoo or {_OF_CHECKOUT}, but none of them "
        "exists; set FEWSTEP_ZOO to the zoo folder of a checkout."
    )


def entries() -> list[Entry]:
    """The models of the zoo by name.

    Raises:
        ConfigError: There is no zoo. DataError: a damaged card.
    """
    return [_entry(folder) for folder in _models().values()]


def _models() -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(zoo_folder().glob(f"*/{CONFIG}"))}


def _entry(folder: Path) -> Entry:
    path, weights = folder / CARD, folder / WEIGHTS
    card = mapping(path)
    data, metrics = field(card, "data", dict, path) or {}, field(card, "metrics", dict, path) or {}
    metric, value = next(iter(metrics.items()), (None, None))
    return Entry(
        folder.name,
        folder,
        dataset=field(data, "name", str, path),
        images=field(data, "n", Real, path),
        parameters=field(card, "parameters", Real, path),
        images_seen=field(card, "images_seen", Real, path),
        megabytes=weights.stat().st_size / 1e6 if weights.exists() else 0.0,
        metric=metric,
        value=field(value if isinstance(value, dict) else {"value": value}, "value", Real, path),
    )


def mapping(path: Path) -> dict[str, Any]:
    """The content of a JSON file, nothing where there is no file.

    Raises:
        DataError: It is damaged, or no JSON object.
    """
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise DataError(f"{path} must be a JSON object, got {type(found).__name__}; copy it again.")
    return found


def field(record: Mapping[str, Any], name: str, kind: type, path: Path) -> Any:
    """A field of what a file holds, None where it is absent or null.

    Raises:
        DataError: It is of another kind than dict, list, str or Real, as was wanted.
    """
    value = record.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise DataError(f"{path} must hold {_KINDS[kind]} as {name!r}, got {value!r}; copy it again.")


def references() -> dict[str, Path]:
    """The reference statistics of the zoo by name, `DATASET.EXTRACTOR`.

    Raises:
        ConfigError: There is no zoo.
    """
    return {path.stem: path for path in sorted((zoo_folder() / REFERENCES).glob("*.npz"))}


def find(name_or_path: str | Path) -> Path:
    """The folder of a model: an existing path is itself; NAME and zoo/NAME are models of the zoo.

    Raises:
        DataError: Neither; says which models the zoo has. Or a model of the zoo without checksums.
        ConfigError: $FEWSTEP_ZOO is no folder.
    """
    path = Path(name_or_path)
    if path.exists():
        return path
    known = _if_any(_models)
    name = path.relative_to("zoo") if path.is_relative_to("zoo") else path
    if str(name) in known:
        _sums(known[str(name)], (WEIGHTS, CONFIG))
        return known[str(name)]
    has = f", or a model of the zoo: {', '.join(known)}" if known else ""
    if not known and len(name.parts) == 1:
        has = f", or set $FEWSTEP_ZOO to the zoo folder of a checkout if {name} is a model of the zoo"
    raise DataError(f"no model folder at {path}; give a folder with {WEIGHTS} and {CONFIG}{has}.")


def find_reference(name_or_path: str | Path, extractor: str | Path | None = None) -> Path:
    """The file of reference statistics: a file, a folder with STATISTICS, or DATASET or DATASET.EXTRACTOR of the zoo.

    Args:
        name_or_path: one of these.
        extractor: which of several statistics of a dataset is meant; None: there must be one.

    Raises:
        DataError: Neither, a name that stands for several, or a file of the zoo that is not as it was or has no
            checksum. ConfigError: $FEWSTEP_ZOO is no folder.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if (path / STATISTICS).is_file():
        return path / STATISTICS
    known = _if_any(references)
    meant = [name for name in known if str(path) in (name, name.partition(".")[0])]
    meant = [name for name in meant if name == f"{path}.{extractor}"] or meant
    if len(meant) == 1:
        verify(known[meant[0]].parent, known[meant[0]].name)
        return known[meant[0]]
    if meant:
        raise DataError(f"{path} must name one file of statistics; name one of {', '.join(meant)}.")
    has = f", or name statistics of the zoo: {', '.join(known)}" if known else ""
    raise DataError(f"{path} must exist, but there is no such file; make it with fewstep stats{has}.")


def _if_any(listed: Callable[[], dict[str, Path]]) -> dict[str, Path]:
    """What the zoo has; nothing where there is no zoo and none was set, since a path may be meant."""
    try:
        return listed()
    except ConfigError:
        if os.environ.get("FEWSTEP_ZOO"):
            raise
        return {}


def digest(folder: str | Path) -> str:
    """Hash of a folder's checksums: another file in it is another hash.

    Raises:
        DataError: It has none.
    """
    path = Path(folder) / CHECKSUMS
    if not path.exists():
        raise DataError(f"{path} must state checksums, but there is no such file; copy the zoo again.")
    return sha256_file(path)


def verify(folder: str | Path, *required: str) -> tuple[str, ...]:
    """Compare files with the checksums that stand beside them; a folder without checksums has nothing to keep to.

    Args:
        folder: Of a model, or of statistics.
        *required: Names of files that must have a checksum.

    Returns:
        The names of the files that were compared.

    Raises:
        DataError: A file is missing or has changed, a checksum is missing, or they cannot be read.
    """
    sums = _sums(folder, required)
    for name, digest in sorted(sums.items()):
        file = Path(folder) / name
        if not file.is_file():
            raise DataError(f"{file} must be there, as {CHECKSUMS} says, but is not; copy the folder again.")
        if (found := sha256_file(file)) != digest:
            raise DataError(
                f"{file} must have the sha256 {digest[:12]}... that {CHECKSUMS} states, but has {found[:12]}...; "
                "copy it again, for it is damaged or was changed."
            )
    return tuple(sorted(sums))


def _sums(folder: str | Path, required: Iterable[str]) -> dict[str, str]:
    sums: dict[str, str] = _read_checksums(folder)["sha256"]
    if missing := [name for name in required if name not in sums]:
        raise DataError(
            f"{Path(folder) / CHECKSUMS} must state checksums of {' and '.join(missing)}, but has none; copy the zoo "
            "again, or name the folder by its path to do without."
        )
    return sums


def licence_of(folder: str | Path) -> str | None:
    """What stands beside the checksums about the licence, None without checksums.

    Raises:
        DataError: The checksums cannot be read.
    """
    stated: str | None = _read_checksums(folder).get("licence")
    return stated


def _read_checksums(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / CHECKSUMS
    if not path.exists():
        return {"sha256": {}}
    stated = read_json(path)
    schema = stated.get("schema") if isinstance(stated, dict) else type(stated).__name__
    if not isinstance(stated, dict) or schema != SCHEMA:
        raise DataError(f"{path} must have the schema {SCHEMA!r}, got {schema!r}; copy it again.")
    sums = stated.get("sha256")
    if not isinstance(sums, dict) or not all(isinstance(digest, str) for digest in sums.values()):
        raise DataError(f"{path} must say a sha256 for each file by name; copy it again.")
    return stated


def write_checksums(folder: str | Path, *, licence: str) -> None:
    """Write the checksums of all files in a folder of the zoo and in those within it, but not of its README.

    Raises:
        DataError: There is no such folder, or nothing in it.
    """
    folder = Path(folder)
    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in inside
        if path.name not in _NOT_SUMMED
    }
    if not sums:
        raise DataError(f"{folder} must be a folder with files; name a model of the zoo by its folder.")
    write_json(folder / CHECKSUMS, {"schema": SCHEMA, "sha256": sums, "licence": licence})
