"""The journal of a study outlives its processes, wherever they are killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from unit.pipeline import journalling

from fewstep.pipeline import journal as module
from fewstep.pipeline.journal import Journal

PATIENCE = 60  # seconds for starts of Python on a loaded machine


def entries(n):
    return [{"i": i, "filling": "\u00e9\n" * i} for i in range(n)]


def appended(place, n):
    journal = Journal(place)
    for entry in entries(n):
        journal.append_logs([entry])
    return journal


def read(place):
    return list(Journal(place).read_logs(0))


def script(*arguments, **options):
    command = [sys.executable, journalling.__file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


@contextlib.contextmanager
def holding(place, **options):
    """Another process that has the lock of a journal."""
    with script("hold", place, **options) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def test_operations_are_lines_of_a_file(tmp_path):
    place = tmp_path / "new" / "journal.log"
    assert list(appended(place, 3).read_logs(1)) == entries(3)[1:]
    assert [json.loads(line) for line in place.read_text().splitlines()] == entries(3)
    assert [path.name for path in place.parent.iterdir()] == ["journal.log"]  # no lock that may be left


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_lock_of_a_process_that_is_killed_is_free(tmp_path, monkeypatch, how):
    """Also where the path is relative, as it always is in the workflow."""
    monkeypatch.chdir(tmp_path)
    with holding("journal.log") as process:
        process.send_signal(how)
        process.wait(PATIENCE)
        began = time.monotonic()
        appended("journal.log", 1)
        assert time.monotonic() - began < 5  # which Optuna's lock would have been for ever
    monkeypatch.chdir("/")
    assert read(tmp_path / "journal.log") == entries(1)


def test_the_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal("journal.log")
    monkeypatch.chdir("/")
    journal.append_logs(entries(1))
    assert read(tmp_path / "journal.log") == list(journal.read_logs(0)) == entries(1)


@pytest.mark.parametrize(
    "kills, how",
    [
        (15, "SIGTERM"),
        (15, "SIGKILL"),
        pytest.param(200, "SIGTERM", marks=pytest.mark.slow),
        pytest.param(200, "SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_processes_that_are_killed_while_they_append_leave_a_journal(tmp_path, kills, how):
    with script("kill", "journal.log", kills, how, cwd=tmp_path) as process:
        out, _ = process.communicate(timeout=4 * PATIENCE)
    lengths = [int(line) for line in out.split()]
    assert process.returncode == 0 and len(lengths) == kills
    assert all(a < b for a, b in zip(lengths, lengths[1:], strict=False))


# A torn last line


def test_a_line_that_was_torn_at_any_place_is_cut_off(tmp_path):
    place = tmp_path / "journal.log"
    appended(place, 3)
    whole = place.read_bytes()
    begins = whole[:-1].rindex(b"\n") + 1
    for end in range(begins + 1, len(whole)):
        place.write_bytes(whole[:end])
        assert read(place) == entries(2)  # opened
        place.write_bytes(whole[:end])
        journal = Journal(place)
        place.write_bytes(whole[:end])  # another worker is killed while this one goes on
        journal.append_logs(entries(3)[2:])
        assert place.read_bytes() == whole and read(place) == entries(3)


@pytest.mark.parametrize("left", [b"", b"{", b"x" * (1 << 17)], ids=["empty", "one byte", "long"])
def test_a_journal_without_a_whole_line_is_empty(tmp_path, left):
    place = tmp_path / "journal.log"
    place.write_bytes(left)
    assert read(place) == [] and place.read_bytes() == b""
    appended(place, 2)
    assert read(place) == entries(2)


def test_a_reader_sees_what_comes_in_the_place_of_a_torn_line(tmp_path):
    place = tmp_path / "journal.log"
    reader = appended(place, 1)
    with place.open("ab") as file:
        file.write(b'{"i":1,')
    assert list(reader.read_logs(1)) == []
    appended(place, 2)
    assert list(reader.read_logs(1)) == entries(2)


# Waiting


def test_who_waits_says_for_whom(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "NOTICE", 0.2)
    place = tmp_path / "journal.log"
    with holding(place) as process:
        process.send_signal(signal.SIGSTOP)
        threading.Timer(1, process.kill).start()
        appended(place, 1)
    assert read(place) == entries(1)
    first, *others = [record.getMessage() for record in caplog.records]
    assert str(place) in first and "has been locked for 0 s by " in first and len(others) <= 5
    if Path("/proc/locks").exists() and "FLOCK" in Path("/proc/locks").read_text():
        assert f"process {process.pid} (" in first and "which is stopped" in first


def test_threads_of_one_process_wait_for_each_other(tmp_path):
    place = tmp_path / "journal.log"
    journals = [Journal(place) for _ in range(2)]

    def append(k):
        for i in range(50):
            journals[k].append_logs([{"k": k, "i": i}])

    threads = [threading.Thread(target=append, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(2):
        assert [entry["i"] for entry in read(place) if entry["k"] == k] == list(range(50))


# Locks of earlier versions


def old_lock(place, kind, age):
    lock = place.with_name("journal.log.lock")
    if kind == "link":
        lock.symlink_to("results/journal.log")  # relative to somewhere else: it points nowhere
    else:
        lock.touch()
    stamp = time.time() - age
    os.utime(lock, (stamp, stamp), follow_symlinks=False)
    return lock


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_a_killed_worker_of_an_earlier_version_has_left_is_removed(tmp_path, kind, caplog):
    place = tmp_path / "journal.log"
    lock = old_lock(place, kind, age=3600)
    assert read(place) == []
    assert not os.path.lexists(lock) and f"{lock}, the lock of a worker that was killed" in caplog.text


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_lock_of_an_earlier_version_is_left_while_it_may_be_held(tmp_path, monkeypatch, kind, caplog):
    monkeypatch.setattr(module, "OLD_LOCK", 5.0)
    place = tmp_path / "journal.log"
    lock = old_lock(place, kind, age=0)
    threading.Timer(0.5, lock.unlink).start()
    began = time.monotonic()
    assert read(place) == []
    assert 0.4 < time.monotonic() - began < 4 and not caplog.records
