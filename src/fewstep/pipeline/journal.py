"""The journal of a study: a file of one JSON line per operation, whose lock the kernel frees when its holder ends."""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

from optuna.storages.journal import JournalFileBackend

from fewstep.locks import flock

log = logging.getLogger(__name__)

NOTICE = 10.0  # seconds of waiting for the lock before each message
PAUSE = 0.1  # longest pause between two attempts
OLD_LOCK = (
    10.0  # seconds after which a lock of earlier versions, which held it for milliseconds, is a dead worker's
)


class Journal(JournalFileBackend):
    """Optuna's journal file, safe against processes that are killed at any moment.

    Optuna's own locks are files that somebody must remove; this one is a `flock` of the journal itself, which goes with
    the process that has it. What a killed process has left of its last line is cut off under the lock, as nobody can
    have read it, and a line appended to it would make the rest of the journal unreadable.

    Args: path: of the file, which is made if there is none.
    Raises: OSError: it cannot be made, read or locked.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(str(self._path))
        _remove_old_lock(self._path)
        with _locked(self._path):
            pass

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations, and wait until the disk has them."""
        lines = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs)
        with _locked(self._path) as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The journal, which ends with a whole line, open for appending; no other process appends meanwhile."""
    with path.open("ab+") as file:  # closing it frees the lock, however the body ends
        _lock(file, path)
        _cut_torn_line(file)
        yield file


def _lock(file: IO[bytes], path: Path) -> None:
    """Wait for the lock; every `NOTICE` seconds say who has it."""
    started, said, pause = time.monotonic(), 0.0, 0.001
    while True:
        try:
            if not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _warn_once(path)
            return
        except BlockingIOError:
            waited = time.monotonic() - started
        if waited >= said + NOTICE:
            said = waited
            log.warning(
                "%s has been locked for %.0f s by %s; a search waits until that process continues or is ended.",
                path,
                waited,
                _holder(file),
            )
        time.sleep(pause)
        pause = min(2 * pause, PAUSE)


@cache
def _warn_once(path: Path) -> None:
    log.warning(
        "%s is on a file system without locks: only one process may search there; give several a database (--storage).",
        path,
    )


def _holder(file: IO[bytes]) -> str:
    """The process that holds the lock of a file, as Linux lists it."""
    status = os.fstat(file.fileno())
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        locks = []
    for fields in map(str.split, locks):  # "1: FLOCK ADVISORY WRITE <pid> <device>:<inode> 0 EOF"
        if fields[1] == "FLOCK" and fields[5] == place:
            return f"process {fields[4]}{_state(fields[4])}"
    return "a process of another machine or container"


def _state(pid: str) -> str:
    try:
        state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
        command = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
    return f" ({command.strip()[:80]}{', which is stopped' if state in 'Tt' else ''})"


def _cut_torn_line(file: IO[bytes]) -> None:
    """Cut the journal back to its last newline."""
    end = size = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        end = start + newline + 1
        if newline >= 0:
            break
    if end < size:
        file.truncate(end)
    file.seek(0, os.SEEK_END)


def _remove_old_lock(path: Path) -> None:
    """Remove the lock file, or the link, that a killed worker of an earlier version has left."""
    lock = path.with_name(f"{path.name}.lock")
    while True:
        try:
            age = time.time() - lock.lstat().st_mtime
            if age >= OLD_LOCK:
                lock.unlink()
                log.warning("%s, the lock of a worker that was killed %.0f s ago, was removed.", lock, age)
        except FileNotFoundError:
            return
        time.sleep(min(max(OLD_LOCK - age, 0), PAUSE))
