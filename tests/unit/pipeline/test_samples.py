import numpy as np
import pytest

from fewstep.checks import DataError
from fewstep.pipeline.samples import FACTS, Samples, files_in, read_samples, write_samples


def write(path, **facts):
    images, seeds = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3), np.array([7, 8])
    write_samples(path, Samples(images, seeds, {"seeds": "7-8", **facts}))
    return images


def test_what_is_written_is_read(tmp_path):
    images = write(tmp_path / "s.npz", **dict.fromkeys(FACTS, 1))
    read = read_samples(tmp_path / "s.npz")
    assert np.array_equal(read.images, images) and read.seeds.tolist() == [7, 8] and read.meta["nfe"] == 1
    assert read.sha256 == read.meta["images_sha256"]


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_that_a_certificate_needs_must_be_there(tmp_path, fact):
    write(tmp_path / "s.npz", **{other: 1 for other in FACTS if other != fact})
    with pytest.raises(DataError, match=rf"lacks {fact}; make it again"):
        read_samples(tmp_path / "s.npz")


def test_seeds_must_be_those_of_the_images(tmp_path):
    write(tmp_path / "s.npz", **{**dict.fromkeys(FACTS, 1), "seeds": "7-9"})
    with pytest.raises(DataError, match="its seeds are not 7-9"):
        read_samples(tmp_path / "s.npz")


def test_a_folder_stands_for_its_files_or_for_those_of_the_folders_below(tmp_path):
    for name in ("a/x.json", "a/spec.json", "b/nfe4/y.json", "b/.nfe5.tmp/z.json", "b/nfe4/spec.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert files_in([tmp_path], ".json") == [tmp_path / "a/x.json", tmp_path / "b/nfe4/y.json"]
    (tmp_path / "own.json").write_text("{}")
    assert files_in([tmp_path], ".json") == [tmp_path / "own.json"]
    with pytest.raises(DataError, match=r"must hold \.npz files, but there is none"):
        files_in([tmp_path], ".npz")
