"""One process at a time: with locks of the kernel, without them, and where other machines do not see them."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fewstep import locks
from fewstep.checks import ConfigError
from fewstep.locks import Lock, locked, take

HOLDING = """
import sys
from pathlib import Path
from fewstep import locks
if sys.argv[2] == "elsewhere":
    locks.socket.gethostname = lambda: "node7"
if sys.argv[3] != "kernel":
    locks.fcntl.flock = lambda file, operation: None
locks.BEAT = 0.2
lock = locks.take(Path(sys.argv[1]))
print(lock, flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["kernel", *map(errno.errorcode.get, (errno.ENOSYS, errno.ENOLCK)), "of one machine"])
def kind(request, monkeypatch):
    """What a file system has of locks."""
    if request.param == "of one machine":  # sshfs: everybody gets it
        monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)
    elif request.param != "kernel":

        def refuse(file, operation):
            raise OSError(getattr(errno, request.param), "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


class Other:
    """Another process that takes a lock."""

    def __init__(self, path, where="here", kind="kernel"):
        words = [sys.executable, "-c", HOLDING, str(path), where, kind]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said = self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        self.process.communicate()


def test_a_lock_has_one_holder_and_goes_with_it(tmp_path, kind):
    path = tmp_path / "state" / "run.lock"
    other = Other(path, kind=kind)
    assert take(path) == f"process {other.process.pid} on {os.uname().nodename}"
    with pytest.raises(ConfigError, match=rf"process {other.process.pid} on \S+ trains there; wait for it"):
        locked(path, "trains").__enter__()
    other.kill()
    for _ in range(2):
        lock = take(path)
        assert isinstance(lock, Lock)
        assert take(path) == f"process {os.getpid()} on {os.uname().nodename}"
        lock.release()


def test_a_holder_on_another_machine_is_named_while_it_gives_signs_of_life(tmp_path, kind, monkeypatch):
    path = tmp_path / "run.lock"
    other = Other(path, "elsewhere", kind="unseen")
    assert take(path) == f"process {other.process.pid} on node7"
    other.kill()
    monkeypatch.setattr(locks, "ABANDONED", 0.5)
    lock = take(path)
    assert isinstance(lock, Lock)
    assert take(path) == f"process {os.getpid()} on {os.uname().nodename}"
    lock.release()


def test_a_living_holder_gives_signs_of_life_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.02)
    lock = take(tmp_path / "run.lock")
    holder = tmp_path / "run.lock.holder"
    first, deadline = locks._read(holder), time.monotonic() + 10
    while locks._read(holder) in ({}, first):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()
    assert not holder.exists()


def test_a_holder_that_died_before_it_signed_is_waited_out(tmp_path, monkeypatch):
    (tmp_path / "run.lock.holder").touch()
    monkeypatch.setattr(locks, "ABANDONED", 0.2)
    lock = take(tmp_path / "run.lock")
    assert isinstance(lock, Lock)
    lock.release()


def test_the_place_of_who_came_first_is_not_taken(tmp_path):
    """Two find the same abandoned holder: the slower one must not remove the faster one's."""
    holder = tmp_path / "run.lock.holder"
    holder.write_text('{"token": "new"}')
    locks._remove(holder, {"token": "abandoned"})
    assert locks._read(holder) == {"token": "new"}
    assert [path.name for path in Path(tmp_path).iterdir()] == ["run.lock.holder"]
