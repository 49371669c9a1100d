import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from formats import encoded, noise, write_files, write_tar

from fewstep.checks import ConfigError, DataError
from fewstep.data.engine import prepare_source
from fewstep.data.folder import folder_source
from fewstep.data.manifest import verify
from fewstep.data.packed import load_dataset
from fewstep.data.prepare import DATASETS, prepare


def images(n: int) -> dict[str, bytes]:
    return {f"{'ab'[i % 2]}/{i:03d}.png": encoded(noise(6, 6, 3, seed=i)) for i in range(n)}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pack(source: Path, out: Path, **options):
    return prepare_source(folder_source(source), out, **{"workers": 1, "shard_items": 4, **options})


@pytest.fixture
def raw(tmp_path):
    return write_files(tmp_path / "raw", images(18))


@pytest.mark.parametrize("form", ["folder", "stream"])
def test_workers_and_shards_do_not_change_a_byte(form, raw, tmp_path):
    if form == "stream":
        files = {path.relative_to(raw).as_posix(): path.read_bytes() for path in raw.rglob("*.png")}
        raw = write_tar(tmp_path / "raw.tar.gz", files, "w:gz")
    for name, options in {"a": {}, "b": {"workers": 2}, "c": {"workers": 3, "shard_items": 5}}.items():
        pack(raw, tmp_path / name, **options)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b") == bytes_of(tmp_path / "c")
    assert not list(tmp_path.glob(".*.work"))


def test_progress_counts_images_and_knows_their_number(raw, tmp_path):
    seen = []

    def progress(ticks):
        seen.append(len(ticks))
        for tick in ticks:
            seen.append(tick)
            yield tick

    pack(raw, tmp_path / "out", progress=progress)
    assert seen[0] == 18
    assert sorted(seen[1:]) == list(range(18))


def test_corrupt_image_is_named(raw, tmp_path):
    (raw / "b" / "007.png").write_bytes((raw / "b" / "007.png").read_bytes()[:60])
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"b/007\.png must be a readable image"):
            pack(raw, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def test_skipping_lists_what_was_left_out_and_resumes(raw, tmp_path):
    (raw / "a" / "000.png").write_bytes(b"")
    (raw / "b" / "007.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"a/000\.png"):
        pack(raw, tmp_path / "out")
    manifest = pack(raw, tmp_path / "out", skip_corrupt=True)
    assert manifest["skipped"] == ["a/000.png", "b/007.png"]
    assert manifest["n"] == 16
    data = load_dataset(tmp_path / "out")
    assert len(data.labels) == 16
    (raw / "a" / "000.png").unlink()
    (raw / "b" / "007.png").unlink()
    without = pack(raw, tmp_path / "without")
    assert without["sha256"] == manifest["sha256"]
    verify(tmp_path / "out")


def test_shards_that_skipped_are_redone_when_nothing_may_be_skipped(raw, tmp_path):
    (raw / "b" / "007.png").write_bytes(b"text")
    interrupted(raw, tmp_path / "out", after=4, skip_corrupt=True)
    with pytest.raises(DataError, match=r"b/007\.png"):
        pack(raw, tmp_path / "out")


def test_all_corrupt_is_an_error(tmp_path):
    raw = write_files(tmp_path / "raw", {"1.png": b"x", "2.png": b"y"})
    for size in (None, 4):
        with pytest.raises(DataError, match="readable"):
            prepare("folder", tmp_path / "out", source=raw, size=size, skip_corrupt=True, workers=1)


def test_limit_is_spread_evenly(raw, tmp_path):
    manifest = pack(raw, tmp_path / "out", limit=9)
    assert manifest["n"] == 9
    pack(raw, tmp_path / "all")
    train = load_dataset(tmp_path / "all").images
    assert np.array_equal(load_dataset(tmp_path / "out").images, train[::2])


def test_foreign_folder_is_not_replaced(raw, tmp_path):
    write_files(tmp_path / "out", {"thesis.tex": b"precious"})
    with pytest.raises(DataError, match=r"holds thesis\.tex"):
        pack(raw, tmp_path / "out")
    with pytest.raises(DataError, match="it is a file"):
        pack(raw, tmp_path / "out" / "thesis.tex")


def test_earlier_dataset_and_empty_folder_are_replaced(raw, tmp_path):
    (tmp_path / "out").mkdir()
    pack(raw, tmp_path / "out", limit=4)
    assert pack(raw, tmp_path / "out")["n"] == 18
    assert len(load_dataset(tmp_path / "out")) == 18


def test_full_disk_is_told_before_work(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="free disk"):
        pack(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_write_error_is_one_sentence(raw, tmp_path, monkeypatch):
    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(DataError, match="No space left"):
        pack(raw, tmp_path / "out")


def test_two_processes_do_not_share_the_work(raw, tmp_path):
    import fcntl

    (tmp_path / ".out.work").mkdir()
    with (tmp_path / ".out.work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process prepares"):
            pack(raw, tmp_path / "out")


SLOW_PREPARE = """
import sys, time
from pathlib import Path
import fewstep.data.shards as shards
from fewstep.data.folder import folder_source
from fewstep.data.engine import prepare_source

def slowly(ticks):
    for tick in ticks:
        time.sleep(0.02)
        yield tick

if __name__ == "__main__":
    source, out, workers = sys.argv[1:]
    prepare_source(folder_source(Path(source)), out, workers=int(workers), shard_items=4, progress=slowly)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_run_goes_on_where_it_was(workers, tmp_path):
    raw = write_files(tmp_path / "raw", images(120))
    script = tmp_path / "slow.py"
    script.write_text(SLOW_PREPARE)
    out, records = tmp_path / "out", tmp_path / ".out.work" / "records"
    process = subprocess.Popen([sys.executable, script, raw, out, str(workers)])
    deadline = time.monotonic() + 60
    while len(list(records.glob("0*.json"))) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)  # workers see that their parent is gone
    done = {path.name: path.stat().st_mtime_ns for path in records.glob("0*.json")}
    assert 5 <= len(done) < 30
    assert not out.exists()

    remaining, kept = [], {}

    def watch(ticks):
        remaining.append(len(ticks))
        yield from ticks
        kept.update({path.name: path.stat().st_mtime_ns for path in records.glob("0*.json")})

    pack(raw, out, progress=watch)
    assert remaining == [120 - 4 * len(done)]
    assert {name: kept[name] for name in done} == done
    pack(raw, tmp_path / "uninterrupted")
    assert bytes_of(out) == bytes_of(tmp_path / "uninterrupted")


def interrupted(raw, out, after=2, **options):
    """Leave finished shards behind, as a kill does."""

    def stop(ticks):
        for count, tick in enumerate(ticks):
            if count == 4 * after:
                raise KeyboardInterrupt
            yield tick

    with pytest.raises(KeyboardInterrupt):
        pack(raw, out, progress=stop, **options)


@pytest.mark.parametrize("change", ["size", "grey", "bytes", "limit", "shards"])
def test_other_source_or_settings_start_anew(change, raw, tmp_path):
    interrupted(raw, tmp_path / "out")
    settings, options = {}, {"shard_items": 4}
    if change == "size":
        settings = {"size": 4}
    elif change == "grey":
        settings = {"grey": True}
    elif change == "bytes":
        (raw / "a" / "000.png").write_bytes(encoded(noise(6, 6, 3, seed=99)))
    elif change == "limit":
        options["limit"] = 12
    else:
        options["shard_items"] = 5
    counts = []

    def count(ticks):
        counts.append(len(ticks))
        return ticks

    manifest = prepare_source(
        folder_source(raw, **settings), tmp_path / "out", workers=1, progress=count, **options
    )
    assert counts == [manifest["n"]]
    clean = prepare_source(folder_source(raw, **settings), tmp_path / "clean", workers=1, **options)
    assert manifest == clean


def test_damaged_state_starts_anew(raw, tmp_path):
    interrupted(raw, tmp_path / "out")
    (tmp_path / ".out.work" / "state.json").write_text("{")
    assert pack(raw, tmp_path / "out")["n"] == 18


def test_dead_worker_is_a_data_error(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.data.shards._pack_in_worker", kill_worker)
    with pytest.raises(DataError, match="one died"):
        pack(raw, tmp_path / "out", workers=2)


def kill_worker(shard):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("field", ["workers", "shard_items", "limit"])
def test_counts_below_one(field, raw, tmp_path):
    with pytest.raises(ConfigError, match=field):
        pack(raw, tmp_path / "out", **{field: 0})


def test_unknown_dataset_lists_the_names(tmp_path):
    for name in ("cifar", "lsun-", "lsun"):
        with pytest.raises(ConfigError, match="digits, cifar10, celeba, folder, lsun-<category>"):
            prepare(name, tmp_path / "out")
    assert set(DATASETS) == {"digits", "cifar10", "celeba", "folder"}


@pytest.mark.parametrize("settings", [{"size": 0}, {"test_fraction": 1.0}, {"test_fraction": -0.1}])
def test_settings_out_of_range(settings, tmp_path):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        prepare("digits", tmp_path / "out", **settings)


def test_manifest_is_what_was_returned(raw, tmp_path):
    manifest = prepare("folder", tmp_path / "out", source=raw, name="pets", workers=1)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert manifest["name"] == "pets"
    assert str(tmp_path) not in json.dumps(manifest)
