import json

import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.data.conditions import (
    MANIFEST,
    TENSORS,
    load_conditions,
    read_conditions_manifest,
    save_conditions,
)
from fewstep.diffusion.condition import Condition
from fewstep.rng import generator


def rows(n=4):
    rng = generator(0)
    return Condition(
        {
            "context": torch.randn(n, 3, 2, generator=rng).half(),
            "label": torch.arange(n),
            "mask": torch.rand(n, 1, 2, 2, generator=rng),
        }
    )


@pytest.fixture
def folder(tmp_path):
    save_conditions(
        tmp_path / "c", rows(), source={"fingerprint": "f" * 64}, encoder={"name": "toy", "sha256": "e" * 64}
    )
    return tmp_path / "c"


def test_round_trip(folder):
    assert load_conditions(folder) == rows()
    manifest = read_conditions_manifest(folder)
    assert manifest["rows"] == 4 and manifest["sha256"] == rows().sha256
    assert manifest["values"]["context"] == {"shape": [4, 3, 2], "dtype": "float16"}
    assert (manifest["source"], manifest["encoder"]["name"]) == ({"fingerprint": "f" * 64}, "toy")
    assert sorted(path.name for path in folder.iterdir()) == [TENSORS, MANIFEST]


def test_writing_again_replaces_whole(folder):
    save_conditions(folder, rows(2))
    assert load_conditions(folder) == rows(2)
    assert [path.name for path in folder.parent.iterdir()] == ["c"]


def test_another_folder_is_not_replaced(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="notes.txt"):
        save_conditions(tmp_path / "c", rows())


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match="a row of conditions or more; got none"):
        save_conditions(tmp_path / "c", rows(0))
    assert not (tmp_path / "c").exists()


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="must be a folder of conditions, but it has no manifest.json"):
        load_conditions(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 200])
def test_a_truncated_file_is_one_sentence(folder, keep):
    file = folder / TENSORS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match="truncated or damaged") as caught:
        load_conditions(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_file_is_one_sentence(folder):
    (folder / TENSORS).unlink()
    with pytest.raises(DataError, match="no such file"):
        load_conditions(folder)


def test_changed_bytes_are_found(folder):
    file = folder / TENSORS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"must have the content with sha256 .* changed"):
        load_conditions(folder)


@pytest.mark.parametrize(
    "field, value, word",
    [
        ("schema", "fewstep.dataset/1", "schema is 'fewstep.dataset/1'"),
        ("rows", 0, "rows is 0"),
        ("rows", 5, "must hold 5 rows of context float16"),
        ("rows", True, "rows is True"),
        ("values", {}, "values is"),
        ("values", {"label": {"shape": [4], "dtype": "int64"}}, r"rows of label int64 \(4,\).*got context"),
        ("source", None, "source is None"),
        ("sha256", "x", "sha256 is 'x'"),
        ("sha256", None, "sha256 is None"),
        ("sha256", "0" * 64, "must have the content with sha256 000000000000"),
        ("encoder", ..., "lacks encoder"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(folder, field, value, word):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest[field] = value
    manifest = {name: value for name, value in manifest.items() if value is not ...}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=word) as caught:
        load_conditions(folder)
    assert "\n" not in str(caught.value)
