"""Files appear whole or not at all."""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fewstep.checks import ConfigError, DataError

_DIGITS = 20  # of the longest number of 64 bits


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` on success, remove it on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, folder=False) as temporary:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)


@contextmanager
def atomic_dir(path: str | Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, else it is removed.

    Args: keep: leave what else is in `path` there; each new file then appears by a rename of its own.
    Raises: ConfigError: `path` is no folder, or holds what is not of the kind of the new content, and would be lost.
    """
    path = Path(path).absolute()
    require_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, folder=True) as temporary:
        yield temporary
        umask = _umask()
        temporary.chmod(0o777 & ~umask)
        for inside in temporary.rglob("*"):
            if inside.is_file():  # some libraries write files that nobody else can read
                inside.chmod(0o666 & ~umask)
        if not path.exists():
            temporary.replace(path)
        elif keep:
            for inside in temporary.iterdir():
                inside.replace(path / inside.name)
        else:
            made = list(temporary.iterdir())
            suffixes = {one.suffix for one in made if one.is_file()}
            require_replaceable(path, suffixes, names={one.name for one in made})
            # A folder cannot be replaced by rename: move the old one aside first, then delete it.
            with _temporary(path, folder=True) as aside:
                path.replace(aside / "old")
                temporary.replace(path)


@contextmanager
def _temporary(path: Path, *, folder: bool) -> Iterator[Path]:
    """An empty file or folder beside `path`, locked while this process lives, and removed at the end if still there."""
    remove_abandoned(path.parent, re.escape(path.name))
    prefix = f".{path.name}{_mark()}"
    while True:
        if folder:
            temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
            handle = os.open(temporary, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
            temporary = Path(name)
        with suppress(OSError):  # a file system without locks: then nobody takes it for abandoned
            fcntl.flock(handle, fcntl.LOCK_EX)
        if temporary.exists():
            break
        os.close(handle)  # removed as abandoned before it was locked
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


def remove_abandoned(folder: Path, names: str) -> None:
    """Remove what killed processes of this machine left of temporary files and folders.

    Args: folder: where. names: of what they were to become, a regular expression.
    """
    pattern = re.compile(rf"\.(?:{names}){re.escape(_mark())}\w{{8}}(?:\.[^.]*)?")
    for name in os.listdir(folder) if folder.is_dir() else []:
        if pattern.fullmatch(name):
            with (
                suppress(OSError),
                _opened(folder / name) as handle,
            ):  # another process may be removing it, too
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
                _remove(folder / name)


def _mark() -> str:
    """What tells temporaries of this machine from others, whose locks it may not see."""
    return f".tmp-{sha256_text(socket.gethostname())[:6]}-"


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        yield handle
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def require_folder(path: str | Path) -> None:
    """Raise ConfigError where there is something at `path`, and it is no folder."""
    if Path(path).exists() and not Path(path).is_dir():
        raise ConfigError(f"{path} must be a folder or new, but is a file; name another.")


def require_file(path: str | Path) -> None:
    """Raise ConfigError where there is a folder at `path`, at which a file is to be written."""
    if Path(path).is_dir():
        raise ConfigError(f"{path} must be a file or new, but is a folder; name a file in it.")


def require_replaceable(folder: str | Path, suffixes: Set[str], *, names: Set[str] = frozenset()) -> None:
    """Refuse to put a new folder in the place of one that holds anything else than its like.

    Args: suffixes: of files that may be lost. names: of files and folders that may be lost.
    Raises: ConfigError: says what the folder holds.
    """
    folder = Path(folder).absolute()
    require_folder(folder)
    if not folder.exists():
        return
    if Path.cwd().is_relative_to(folder):
        raise ConfigError(
            f"{folder} must be a new folder or an earlier result, but is the folder that you are in; name another."
        )
    for inside in sorted(folder.iterdir()):
        is_like = inside.is_file() and (inside.suffix in suffixes or inside.name.startswith("."))
        if not is_like and inside.name not in names:
            raise ConfigError(
                f"{folder} must be a new folder or an earlier result, but it holds {inside.name}, which would be "
                "deleted; name another folder."
            )


def is_hidden(path: Path) -> bool:
    """Whether a relative path is of a temporary file, or of one in a temporary folder: some part starts with a dot."""
    return any(part.startswith(".") for part in path.parts)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` with sorted keys by rename.
    Raises: ValueError: it holds NaN or infinity, which JSON cannot.
    """
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path, *, constants: bool = False) -> Any:
    """Read a JSON file.

    Args: constants: take NaN and Infinity, which other programs write, though JSON has none.
    Raises: DataError: the file is missing, truncated or not JSON, or holds a number that is none or beyond 64 bits.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} must exist, but there is no such file; check the path.") from None
    except (IsADirectoryError, NotADirectoryError):
        raise DataError(f"{path} must be a JSON file, but it is a folder; name the file.") from None
    except OSError as error:
        raise DataError(f"{path} must be a file that can be read, but: {error.strerror}; check it.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be JSON, but it is damaged ({error}); make it again.") from None
    return parse_json(text, str(path), constants=constants)


def parse_json(text: str, where: str, *, constants: bool = False) -> Any:
    """As `read_json`, of text; `where` is named by errors."""
    try:
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=None if constants else _finite,
            parse_constant=None if constants else _finite,
        )
        if "\\ud" in text.lower():  # half a character, which can be neither shown nor written
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} must be JSON, but it is damaged ({error}); make it again.") from None
    return value


def _integer(text: str) -> int:
    if len(text) > _DIGITS or not -(1 << 63) <= (number := int(text)) < 1 << 64:
        raise ValueError(f"{text:.24}... is no number of 64 bits")
    return number


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text:.24} is no finite number")
    return number


def object_or_empty(path: str | Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, for a torn file must be replaced, not reported."""
    try:
        content = read_json(path)
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}


def canonical_json(value: Any) -> str:
    """The one text of a value: sorted keys, no spaces, shortest round-trip floats, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    """Hex digest of the UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(path: str | Path, n_bytes: int) -> None:
    """Fail before work starts when the disk under `path` cannot hold what will be written.
    Raises: DataError: fewer than `n_bytes` bytes are free.
    """
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise DataError(
            f"{path} needs {n_bytes / 1e6:,.1f} MB of free disk, but {folder} has {free / 1e6:,.1f} MB; "
            "free some space or write elsewhere."
        )
