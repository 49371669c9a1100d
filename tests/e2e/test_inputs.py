"""What users bring from elsewhere: statistics of other programs, very large images, folders that are no models."""

import pickle
import shutil

import numpy as np
import pytest
from e2e.shell import fewstep, made, refused
from PIL import Image

from fewstep.files import sha256_file
from fewstep.metrics.certificate import read_certificate
from fewstep.metrics.reference import export_reference, load_reference

NAME = "ddim.uniform-t.to-zero.nfe4"


def fd_of(certificate):
    return next(record for name, record in certificate["results"].items() if name.startswith("FD"))


@pytest.fixture(scope="module")
def theirs(study, tmp_path_factory):
    """The statistics of the study as pytorch-fid writes them."""
    path = tmp_path_factory.mktemp("theirs") / "fid-refs.npz"
    export_reference(path, load_reference(study / "stats.npz"))
    return path


def test_statistics_of_another_program_give_the_same_distance(study, theirs, tmp_path):
    shutil.copy(theirs, tmp_path)
    n = load_reference(study / "stats.npz").meta["n"]
    said = made("stats", "fid-refs.npz", "--extractor", study / "extractor", "--n", n, "--name", "digits",
                "--out", "stats.npz", cwd=tmp_path)  # fmt: skip
    assert (
        f"of {n} images of digits; for Fréchet distances alone, without baseline: evaluate --metrics fd"
        in said
    )
    measure = ("evaluate", study / f"samples/{NAME}.npz", "--reference", "stats.npz", "--extractor",
               study / "extractor", "--resamples", 20)  # fmt: skip
    made(*measure, "--metrics", "fd", "--out", "eval/c.json", cwd=tmp_path)
    certificate, own = (
        read_certificate(tmp_path / "eval/c.json"),
        read_certificate(study / f"eval/{NAME}.json"),
    )
    assert fd_of(certificate)["value"] == fd_of(own)["value"]
    assert fd_of(certificate)["interval"] == fd_of(own)["interval"]
    assert fd_of(certificate)["baseline"] is None
    assert certificate["protocol"]["reference"] == own["protocol"]["reference"]
    assert certificate["files"]["data"] == {
        "path": "../fid-refs.npz",
        "sha256": {"": sha256_file(tmp_path / "fid-refs.npz")},
    }
    assert "0 failed, 0 not reached" in made("verify", "eval/c.json", cwd=tmp_path)
    for metric in ("kid", "pr", "dc", "mem"):
        sentence = refused(*measure, "--metrics", f"fd,{metric}", "--out", "d.json", cwd=tmp_path)
        assert "this one holds mean and covariance alone; leave kid, pr, dc and mem out" in sentence
    assert not (tmp_path / "d.json").exists()
    np.savez(tmp_path / "fid-refs.npz", mu=[0.0], sigma=[[1.0]])
    done = fewstep("verify", "eval/c.json", cwd=tmp_path)
    assert done.returncode == 1
    assert "failed  data: fid-refs.npz" in done.stdout


def test_statistics_of_edm2_tell_their_number_and_images_keep_their_features(study, theirs, tmp_path):
    with np.load(theirs) as arrays:
        fid = {name: arrays[name] for name in ("mu", "sigma")}
    (tmp_path / "digits.pkl").write_bytes(pickle.dumps({"num_images": 1437, "fid": fid}))
    made("stats", "digits.pkl", "--extractor", study / "extractor", "--out", "a", cwd=tmp_path)
    found = load_reference(tmp_path / "a/stats.npz")
    assert found.protocol | {"sha256": None} == {
        "name": "digits",
        "split": "train",
        "n": 1437,
        "sha256": None,
    }
    images = np.load(study / "data/images.npy")[:100]
    np.savez(tmp_path / "images.npz", images)
    said = made("stats", "images.npz", "--extractor", study / "extractor", "--out", "b.npz", cwd=tmp_path)
    assert "features of 100 images of images" in said
    assert load_reference(tmp_path / "b.npz").statistics.features.shape[0] == 100


def test_imports_that_cannot_be(study, theirs, tmp_path):
    stats, out = ("--extractor", study / "extractor"), ("--out", tmp_path / "s.npz")
    assert "--n and --name are for statistics of another" in refused(
        "stats", study / "data", *stats, *out, "--n", 5
    )
    assert "use it as it is, as --reference" in refused("stats", study / "stats.npz", *stats, *out)
    assert "import statistics of another program with fewstep stats FILE" in refused(
        "evaluate", study / "samples", "--reference", theirs, *stats, "--out", tmp_path / "e"
    )
    done = fewstep("stats", theirs, *stats, *out, "--n", 1)
    assert done.returncode == 2 and "--n" in done.stderr
    assert "choose the extractor it was made with" in refused(
        "stats", theirs, "--extractor", "effnet-lite0-p320", *out
    )
    assert list(tmp_path.iterdir()) == []


def test_large_images_are_admitted_by_a_setting(study, tmp_path, monkeypatch):
    """Here 64 pixels are large; Pillow refuses more than twice its limit."""
    (tmp_path / "raw").mkdir()
    for i, image in enumerate(np.load(study / "data/images.npy")[:60]):
        Image.fromarray(image[:, :, 0]).save(tmp_path / f"raw/{i:02d}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    pack = ("prepare", "folder", "--source", tmp_path / "raw", "--workers", 1, "--out", tmp_path / "data")
    assert "exceeds limit of 20 pixels" in (sentence := refused(*pack))
    assert "admit it with max_pixels" in sentence
    assert "60 x" in made(*pack, "--max-pixels", 64, "--test-fraction", 0.0).replace(
        "60 train images of", "60 x"
    )
    measure = ("evaluate", tmp_path / "raw", "--reference", study / "stats.npz", "--extractor", study / "extractor",
               "--resamples", 20, "--out", tmp_path / "c.json")  # fmt: skip
    assert "admit it with max_pixels" in refused(*measure)
    made(*measure, "--max-pixels", 64)
    done = fewstep("verify", tmp_path / "c.json")
    assert done.returncode == 1
    assert "admit it with max_pixels" in done.stdout
    assert "0 failed" in made("verify", tmp_path / "c.json", "--max-pixels", 64)


def test_a_cache_of_the_hub_is_told_which_folder_to_name(pipelines, tmp_path):
    cache = tmp_path / "models--org--name"
    shutil.copytree(pipelines["ddim"], cache / "snapshots/ab12")
    plan = ("plan", "ddim", "--nfe", 4, "--out", tmp_path / "p.json", "--model")
    assert f"further down; name {cache / 'snapshots/ab12'}." in refused(*plan, cache)
    made(*plan, cache / "snapshots/ab12")
    (cache / "snapshots/ab12/scheduler/scheduler_config.json").unlink()
    sentence = refused(*plan, cache / "snapshots/ab12/unet")
    assert "copy the pipeline's scheduler/scheduler_config.json to" in sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prepare", "folder", "--out", "new"), "--source must name the file or folder that holds folder, got nothing"),
        (("prepare", "lsun-cat", "--out", "new"), "--source must name the file or folder that holds lsun-cat"),
        (("prepare", "lsun-../cat", "--out", "new"), "lsun-<category>; got 'lsun-../cat'"),
        (("extractor", "--data", "data", "--out", "text.txt"), "text.txt must be a folder or new, but is a file"),
        (("train", "--data", "data", "--out", "text.txt", "--checkpoints", "new"), "text.txt must be a folder or new"),
        (("plan", "ddim", "--model", "model", "--nfe", 3, "--out", "empty"), "empty must be a file or new, but is a"),
        (("plan", "ddim", "--model", "model", "--nfe", 3, "--grid", "", "--out", "new"), "uniform-lambda"),
        (("plan", "ddim", "--model", ".", "--nfe", 3, "--out", "new"), "holds them further down; name"),
        (("sample", "model", "plans", "--seeds", "\u0663", "--out", "new"), "--seeds must be FIRST-LAST"),
        (("stats", "text.txt", "--extractor", "extractor", "--out", "new"), "but it is damaged (it is no .npz)"),
        (("stats", "data", "--extractor", "extractor", "--out", "dir.npz"), "dir.npz must be a file or new"),
        (("verify", "loop"), "loop must be a file that can be read, but: Too many levels of symbolic links"),
        (("evaluate", "broken", "--reference", "stats.npz", "--extractor", "extractor", "--out", "new"),
         "broken/a.png must be an image, but cannot be read (it is of no kind that Pillow knows)"),
        (("evaluate", f"samples/{NAME}.npz", "--reference", "stats.npz", "--extractor", "extractor", "--out",
          "dir.json"), "dir.json must be a file or new, but is a folder"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_before_any_work(study, tmp_path, arguments, words):
    for name in ("data", "model", "extractor", "plans", "samples", "stats.npz"):
        (tmp_path / name).symlink_to(study / name)
    for name in ("empty", "dir.json", "dir.npz", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "broken/a.png").write_text("hello")
    (tmp_path / "loop").symlink_to("loop")
    before = set(tmp_path.rglob("*"))
    assert words in refused(*arguments, cwd=tmp_path)
    assert set(tmp_path.rglob("*")) == before
