import math
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.checks import ConfigError, DataError
from fewstep.files import (
    atomic_dir,
    atomic_file,
    canonical_json,
    read_json,
    require_replaceable,
    require_space,
    sha256_file,
    write_json,
)


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(target) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_others_can_read_what_a_library_wrote_for_its_owner_alone(tmp_path):
    with atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("x")
    usual = (tmp_path / "a").stat().st_mode
    with atomic_dir(tmp_path / "out") as temporary:
        (temporary / "private").write_text("x")
        (temporary / "private").chmod(0o600)
    assert (tmp_path / "out" / "private").stat().st_mode == usual


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    for content in ("old", "new"):
        with atomic_dir(target) as temporary:
            (temporary / content).write_text(content)
    assert [p.name for p in target.iterdir()] == ["new"]
    with pytest.raises(RuntimeError), atomic_dir(target) as temporary:
        (temporary / "half").write_text("half")
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("held", ["model", "photo.png", "x.json/deep", ".git/config"])
def test_a_folder_of_other_things_is_not_replaced(tmp_path, held):
    target = tmp_path / "out"
    (target / held).parent.mkdir(parents=True)
    (target / held).write_text("precious")
    with pytest.raises(ConfigError, match=f"holds {held.split('/')[0]}, which would be deleted"):
        require_replaceable(target, {".json"})
    with pytest.raises(ConfigError, match="would be deleted"), atomic_dir(target) as temporary:
        (temporary / "c.json").write_text("{}")
    assert (target / held).read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_is_kept_stays_beside_what_is_new(tmp_path):
    for names in (("a.json", "b.json"), ("b.json", "c.json")):
        with atomic_dir(tmp_path / "out", keep=True) as temporary:
            for name in names:
                (temporary / name).write_text(str(names))
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert found == {
        "a.json": "('a.json', 'b.json')",
        "b.json": "('b.json', 'c.json')",
        "c.json": "('b.json', 'c.json')",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_folder_one_is_in_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="the folder that you are in"), atomic_dir("."):
        pass


@pytest.mark.parametrize("text", ["", '{"x": 1', "\xff\xfe"])
def test_damaged_json_is_named(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match=r"a\.json must be JSON"):
        read_json(path)
    with pytest.raises(DataError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"x": math.nan})
    assert not list(tmp_path.iterdir())


def test_canonical_json_and_hash(tmp_path):
    assert canonical_json({"b": 0.1, "a": [1, None]}) == '{"a":[1,null],"b":0.1}'
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f").startswith("ba7816bf")


def test_too_little_space_is_said_before_work(tmp_path):
    require_space(tmp_path / "deep" / "file", 1)
    with pytest.raises(DataError, match="free some space"):
        require_space(tmp_path, 10**18)


ABANDONING = """
import os, sys
from fewstep.files import atomic_dir, atomic_file
with (atomic_dir if sys.argv[2] == "folder" else atomic_file)(sys.argv[1]) as temporary:
    print(temporary, flush=True)
    sys.stdin.read(1)
    os._exit(9)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_goes_with_the_next_start_and_what_a_living_one_writes_stays(
    tmp_path, kind
):
    write = atomic_dir if kind == "folder" else atomic_file
    target = tmp_path / "a.json"
    arguments = [sys.executable, "-c", ABANDONING, str(target), kind]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with write(target), write(tmp_path / "b"):
            assert left.exists()
        other.stdin.write("x")
    assert other.returncode == 9 and left.exists()
    with write(tmp_path / "a"), write(tmp_path / "b.a.json"):
        assert left.exists()
    with write(target), write(target) as second:  # neither takes the other for abandoned
        assert not left.exists() and second.exists()


def test_what_another_machine_writes_is_not_taken_for_abandoned(tmp_path, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "elsewhere")
        with atomic_file(tmp_path / "a") as other:
            pass
    other.write_text("its lock may be invisible here")
    with atomic_file(tmp_path / "a"):
        assert other.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"n": NaN}', "NaN is no finite number"),
        (b'{"n": -Infinity}', "-Infinity is no finite number"),
        (b'{"n": 1e999}', "1e999 is no finite number"),
        (b'{"n": 18446744073709551616}', "is no number of 64 bits"),
        (b'{"n": ' + b"1" * 5000 + b"}", "is no number of 64 bits"),
        (b'{"n": "\\ud800"}', "surrogates not allowed"),
        (b"[" * 5000, "recursion"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'"\xe9"', "can't decode"),
    ],
)
def test_what_cannot_be_json_is_damaged(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="must be JSON, but it is damaged") as refusal:
        read_json(path)
    assert message in str(refusal.value)


def test_numbers_that_json_has_not_can_be_admitted(tmp_path):
    """diffusers writes the lower bound of a log-SNR as -Infinity; numbers of 64 bits are always read."""
    path = tmp_path / "a.json"
    path.write_text('{"low": -Infinity, "n": [18446744073709551615, -9223372036854775808]}')
    assert read_json(path, constants=True) == {"low": float("-inf"), "n": [2**64 - 1, -(2**63)]}
