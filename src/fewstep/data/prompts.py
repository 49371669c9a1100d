"""Lists of prompts: read, cleaned and kept as conditions, a row of UTF-8 bytes each."""

import csv
import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.checks import DataError
from fewstep.diffusion.condition import Condition, Entry

PROMPT = "prompt"
"""Name of the condition: UTF-8, filled up with zeros, uint8 (B, L)."""
ENTRIES = {PROMPT: Entry((None,), torch.uint8)}
SUFFIXES = (".txt", ".csv", ".parquet")
_COLUMNS = ("prompt", "caption", "text")
"""Columns that are taken where none is named, the first of them that is there."""


def is_prompts(path: Path) -> bool:
    """Whether a path, with or without a column, names a list of prompts and not a folder of conditions."""
    return not path.is_dir() and split_column(path)[0].suffix.lower() in SUFFIXES


def split_column(path: Path) -> tuple[Path, str | None]:
    """FILE[:COLUMN] as file and column."""
    name, colon, column = path.name.rpartition(":")
    if colon and column and Path(name).suffix.lower() in SUFFIXES:
        return path.with_name(name), column
    return path, None


def read_prompts(path: Path) -> list[str]:
    """The prompts of FILE[:COLUMN]: a text with a line each, or a column of a CSV or Parquet file.

    They are composed to NFC and their blanks to single spaces; empty lines of a text are passed over.

    Raises:
        DataError: no such file or column, a prompt that is empty or there twice, or none.
    """
    file, column = split_column(path)
    if not file.is_file():
        raise DataError(
            f"{file} must be a list of prompts ({', '.join(SUFFIXES)}), but there is no such file."
        )
    read = {".txt": _lines, ".csv": _csv, ".parquet": _parquet}[file.suffix.lower()]
    try:
        raw = read(file, column)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} must be text in UTF-8, but: {error}; save it again.") from None
    prompts = [" ".join(unicodedata.normalize("NFC", text).split()) for text in raw]
    if not prompts:
        raise DataError(f"{file} must hold a prompt or more; got none.")
    known: dict[str, int] = {}
    for row, prompt in enumerate(prompts, 1):
        if not prompt:
            raise DataError(f"{file} must hold no empty prompt, but prompt {row} is empty; take it out.")
        if prompt.casefold() in known:
            raise DataError(
                f"{file} must hold each prompt once, but {known[prompt.casefold()]} and {row} are both "
                f"{prompt[:60]!r}; take one out."
            )
        known[prompt.casefold()] = row
    return prompts


def prompts_condition(prompts: Sequence[str]) -> Condition:
    """Prompts as a condition, a row each."""
    encoded = [prompt.encode() for prompt in prompts]
    length = max(map(len, encoded), default=0)
    filled = b"".join(text.ljust(length, b"\0") for text in encoded)
    table = torch.frombuffer(bytearray(filled), dtype=torch.uint8) if filled else torch.zeros(0).byte()
    return Condition({PROMPT: table.reshape(len(prompts), length)})


def prompts_of(condition: Condition) -> list[str]:
    """The inverse of `prompts_condition`."""
    return [bytes(row.tolist()).rstrip(b"\0").decode() for row in condition.values[PROMPT].cpu()]


def digest(prompt: str) -> str:
    """What a prompt is known by in provenance: 16 hex digits, whatever its case."""
    return hashlib.sha256(prompt.casefold().encode()).hexdigest()[:16]


def _lines(file: Path, column: str | None) -> list[str]:
    if column is not None:
        raise DataError(f"A text has no columns, but {column!r} of {file} is named; leave it out.")
    return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _csv(file: Path, column: str | None) -> list[str]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text)
        chosen = _column(file, column, list(reader.fieldnames or ()))
        return [row[chosen] or "" for row in reader]


def _parquet(file: Path, column: str | None) -> list[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(
            f"{file} needs pyarrow to be read; install it with pip install 'fewstep[pipeline]', or save the prompts as "
            "text."
        ) from None
    try:
        chosen = _column(file, column, parquet.read_schema(file).names)
        values: list[Any] = parquet.read_table(file, columns=[chosen]).column(chosen).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} must be a Parquet file, but: {error!s:.200}; copy it again.") from None
    if any(not isinstance(value, str | None) for value in values):
        raise DataError(f"The column {chosen} of {file} must be text; name another, as {file.name}:COLUMN.")
    return [value or "" for value in values]


def _column(file: Path, column: str | None, names: Sequence[str]) -> str:
    wanted = _COLUMNS if column is None else (column,)
    for name in wanted:
        if name in names:
            return name
    raise DataError(
        f"{file} must have the column {' or '.join(wanted)}; it has {', '.join(names) or 'none'}; name one, as "
        f"{file.name}:COLUMN."
    )
