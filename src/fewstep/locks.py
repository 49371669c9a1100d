"""One process at a time in a folder, also where several machines share it and file systems have no locks.

`flock` goes with the process that holds it, however that ends. But Lustre without `-o flock` and NFS without lockd have
none, and sshfs has one that other machines do not see. So a holder also has a file beside the lock, `NAME.holder`,
which can be made by one process only (O_EXCL), says host and process, and changes as long as the holder is alive.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fewstep.checks import ConfigError

log = logging.getLogger(__name__)

BEAT = 10.0
"""Seconds between two signs of life of a holder."""
ABANDONED = 60.0
"""Seconds without one after which a holder of another machine counts as ended; clocks are not compared."""

_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


def flock(file: IO[Any], operation: int) -> bool:
    """`fcntl.flock`; False where the file system has no such locks.
    Raises: BlockingIOError: another process has it, and `operation` says LOCK_NB.
    """
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            return False
        raise
    return True


class Lock:
    """A lock that this process holds, until `release` or its end."""

    def __init__(self, file: IO[str], holder: Path, token: str) -> None:
        self._file, self._holder, self._token = file, holder, token
        self._released = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        beats = 0
        while not self._released.wait(BEAT):
            beats += 1
            with suppress(OSError):  # a full disk must not end what is done under the lock
                if _read(self._holder).get("token") == self._token:
                    _write(self._holder, self._token, os.O_WRONLY, beats=beats)
                else:
                    log.warning(
                        "%s was taken by another process while this one was still at work", self._holder
                    )
                    return

    def release(self) -> None:
        """Let others have it."""
        self._released.set()
        if _read(self._holder).get("token") == self._token:
            self._holder.unlink(missing_ok=True)
        self._file.close()


def take(path: Path) -> Lock | str:
    """Take the lock file `path`, which is made if there is none.

    Where a process of another machine has it, or had it when it ended, this waits for a sign of life of that one.

    Returns:
        The lock, or who holds it: "process 4711 on node3".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_name(f"{path.name}.holder")
    file = path.open("a+", encoding="utf-8")
    try:
        flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return _said(_read(holder))
    token = uuid.uuid4().hex
    while True:
        try:
            _write(holder, token, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            found = _read(holder)
            if _is_alive(holder, found):
                file.close()
                return _said(found)
            _remove(holder, found)
        else:
            return Lock(file, holder, token)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`.

    Args: what: is being done under the lock, for the sentence of whoever comes second.
    Raises: ConfigError: another process holds it.
    """
    lock = take(path)
    if isinstance(lock, str):
        raise ConfigError(f"{path.parent} must be free, but {lock} {what} there; wait for it, or end it.")
    try:
        yield
    finally:
        lock.release()


def started(process: int | str) -> str | None:
    """When a process of this machine started, in ticks of its clock; None where it has ended."""
    try:
        state, *fields = Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else fields[18]


def _write(holder: Path, token: str, flags: int, *, beats: int = 0) -> None:
    content = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": started(os.getpid()),
        "token": token,
        "beats": f"{beats:012d}",  # always as long, as the file is written over
    }
    with os.fdopen(os.open(holder, flags, 0o666), "w", encoding="utf-8") as file:
        json.dump(content, file)


def _read(holder: Path) -> dict[str, Any]:
    try:
        content = json.loads(holder.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it has just been made, or removed
        return {}
    return content if isinstance(content, dict) else {}


def _said(found: dict[str, Any]) -> str:
    if not found:
        return "another process"
    return f"process {found.get('process')} on {found.get('host')}"


def _is_alive(holder: Path, found: dict[str, Any]) -> bool:
    """Whether who made the file is at work: by the process on this machine, by signs of life on others."""
    if found.get("host") == socket.gethostname():
        return started(found.get("process", "")) == found.get("started") is not None
    deadline = time.monotonic() + ABANDONED
    while time.monotonic() < deadline and holder.exists():
        now = _read(
            holder
        )  # opened anew, as file systems of several machines show others' changes no earlier
        if now and now != found:
            return True
        time.sleep(min(0.5, BEAT))
    return False


def _remove(holder: Path, abandoned: dict[str, Any]) -> None:
    """Remove the file of a holder that has ended; not that of one who has just taken its place."""
    aside = holder.with_name(f".{holder.name}.{uuid.uuid4().hex}")
    try:
        holder.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != abandoned:
        with suppress(OSError):  # yet another one may have the place by now
            os.link(aside, holder)
    aside.unlink(missing_ok=True)
