import json

import numpy as np
import pytest
import torch
from formats import encoded, noise, write_files

from fewstep.checks import ConfigError, DataError
from fewstep.data.engine import prepare_source
from fewstep.data.folder import folder_source
from fewstep.data.manifest import verify
from fewstep.data.packed import load_dataset


@pytest.fixture
def packed(tmp_path):
    files = {
        f"{split}/{name}/{i}.png": encoded(noise(6, 4, 3, seed=i))
        for split in ("train", "test")
        for name in ("a", "b")
        for i in range(3)
    }
    prepare_source(
        folder_source(write_files(tmp_path / "raw", files)), tmp_path / "packed", name="x", workers=1
    )
    return tmp_path / "packed"


def change(folder, **fields):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))


def test_dataset_is_a_read_only_map_with_labels(packed):
    data = load_dataset(packed)
    assert isinstance(data.images, np.memmap)
    assert not data.images.flags.writeable
    assert (len(data), data.shape, data.name, data.classes) == (12, (3, 6, 4), "x", ("a", "b"))
    assert data.labels.dtype == np.int64
    assert data.attributes is None
    verify(packed)


def test_splits_are_ranges_of_the_same_array(packed):
    train, test = load_dataset(packed, "train"), load_dataset(packed, "test")
    assert len(train) == len(test) == 6
    assert np.array_equal(np.concatenate([train.images, test.images]), load_dataset(packed).images)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.fingerprint == test.fingerprint == load_dataset(packed).fingerprint


def test_batch_is_channels_first(packed):
    data = load_dataset(packed)
    batch = data.batch(torch.tensor([5, 0, 5]))
    assert batch.dtype == torch.uint8
    assert batch.shape == (3, 3, 6, 4)
    assert batch.is_contiguous()
    assert np.array_equal(batch[1].permute(1, 2, 0).numpy(), data.images[0])
    assert torch.equal(batch[0], batch[2])
    assert data.batch([]).shape == (0, 3, 6, 4)
    with pytest.raises(IndexError):
        data.batch([12])


def test_unknown_split_lists_the_known_ones(packed):
    with pytest.raises(ConfigError, match="one of test, train"):
        load_dataset(packed, "valid")


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("keep", [0, 40, -1])
def test_truncated_array_is_one_clear_error(packed, name, keep):
    path = packed / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"{name} is truncated or damaged"):
        load_dataset(packed)


def test_missing_array(packed):
    (packed / "images.npy").unlink()
    with pytest.raises(DataError, match=r"images\.npy must exist"):
        load_dataset(packed)
    with pytest.raises(DataError, match=r"images\.npy must exist"):
        verify(packed)


def test_pickled_array_is_refused(packed):
    np.save(packed / "labels.npy", np.array([{}] * 12, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="labels"):
        load_dataset(packed)


def test_array_of_another_shape(packed):
    np.save(packed / "labels.npy", np.zeros(11, np.int64))
    with pytest.raises(DataError, match=r"labels\.npy must hold int64 \(12,\)"):
        load_dataset(packed)


def test_folder_without_a_dataset(tmp_path):
    with pytest.raises(DataError, match="fewstep prepare"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "field, value",
    [
        ("schema", "fewstep.dataset/2"),
        ("n", 0),
        ("n", True),
        ("shape", [6, 4]),
        ("classes", [1, 2]),
        ("splits", {}),
        ("splits", {"train": [0, 13]}),
        ("splits", {"train": [3, 3]}),
        ("sha256", {"images": None}),
        ("sha256", {"images": "00", "labels": None}),
    ],
)
def test_manifest_fields_are_checked(packed, field, value):
    change(packed, **{field: value})
    with pytest.raises(DataError, match=rf"manifest\.json.*{field}"):
        load_dataset(packed)


def test_manifest_that_is_no_object_or_lacks_a_field(packed):
    (packed / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="not a JSON object"):
        load_dataset(packed)
    (packed / "manifest.json").write_text('{"schema": "fewstep.dataset/1"}')
    with pytest.raises(DataError, match="lacks name"):
        load_dataset(packed)


def test_verify_finds_one_changed_byte(packed):
    path = packed / "images.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    load_dataset(packed)
    with pytest.raises(DataError, match=r"images\.npy must have sha256"):
        verify(packed)
