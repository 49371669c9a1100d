import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from fewstep.checks import ConfigError, DataError
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.reference import from_features
from fewstep.pipeline.evaluation import Evaluation
from fewstep.pipeline.images import arrays_in, open_images
from fewstep.pipeline.samples import FACTS, Samples, write_samples
from fewstep.pipeline.settings import MeasureSettings

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


# codecs


@pytest.mark.parametrize(
    "form, name, codec",
    [
        ("PNG", "1.png", "lossless"), ("JPEG", "1.png", "jpeg"), ("PNG", "1.jpg", "lossless"),
        ("WEBP", "1.png", "webp"),
    ],
)  # fmt: skip
def test_the_codec_is_that_of_the_bytes_and_not_of_the_name(form, name, codec, tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / name, form)
    assert open_images(tmp_path).codec == codec


def test_several_codecs_are_all_told(tmp_path):
    for i, form in enumerate(("PNG", "JPEG")):
        Image.fromarray(PIXELS[0]).save(tmp_path / f"{i}.png", form)
    assert open_images(tmp_path).codec == "jpeg+lossless"


def test_names_that_are_no_utf8_are_hashed(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(path, "wb") as file:
        Image.fromarray(PIXELS[0]).save(file, "PNG")
    images = open_images(tmp_path)
    assert len(images.sha256) == 64 and np.array_equal(images.images[:], PIXELS[:1])


# arrays


def test_a_bare_array_is_read(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    images = open_images(tmp_path / "a.npy")
    assert np.array_equal(images.images, PIXELS) and images.codec == "unknown" and images.name == "a"
    np.savez(tmp_path / "a.npz", PIXELS)
    assert open_images(tmp_path / "a.npz").sha256 == images.sha256


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_in_another_order_has_the_same_images(save, tmp_path):
    save(tmp_path / "a.npz", np.asfortranarray(PIXELS))
    assert np.array_equal(open_images(tmp_path / "a.npz").images, PIXELS)
    np.save(tmp_path / "a.npy", np.asfortranarray(PIXELS))
    assert np.array_equal(open_images(tmp_path / "a.npy").images, PIXELS)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"images": PIXELS}, r"as arr_0, but holds images uint8 \(5, 4, 6, 3\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, r"as arr_0, but holds mu float64 \(3,\), sigma float64"),
        ({}, "as arr_0, but holds nothing"),
        ({"arr_0": PIXELS, "arr_1": PIXELS}, "all images in arr_0, but holds arr_0 and arr_1"),
        ({"arr_0": PIXELS[:0]}, r"arr_0 must be at least one image, .* got uint8 \(0, 4, 6, 3\)"),
        ({"arr_0": PIXELS.astype(np.float32)}, r"arr_0 must be .* got float32 \(5, 4, 6, 3\)"),
        ({"arr_0": PIXELS.transpose(0, 3, 1, 2)}, r"arr_0 must be .* got uint8 \(5, 3, 4, 6\)"),
        ({"arr_0": PIXELS[0]}, r"arr_0 must be .* got uint8 \(4, 6, 3\)"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_a_file_holds_instead_of_images_is_said(save, arrays, message, tmp_path):
    save(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_images(tmp_path / "a.npz")


def test_labels_beside_images_are_no_images(tmp_path):
    np.savez(tmp_path / "a.npz", PIXELS, np.arange(5))  # as ADM's samplers write them
    assert np.array_equal(open_images(tmp_path / "a.npz").images, PIXELS)


@pytest.mark.parametrize("array", [PIXELS[:0], PIXELS.astype(float), np.array([{}, None]), np.uint8(3)])
def test_a_bare_array_of_anything_else_is_refused(array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"a\.npy"):
        open_images(tmp_path / "a.npy")


def test_files_of_other_kinds(tmp_path):
    with pytest.raises(DataError, match="must exist, but there is no such file"):
        open_images(tmp_path / "gone.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(DataError, match="damaged or none"):
        open_images(tmp_path / "text.npz")
    with zipfile.ZipFile(tmp_path / "pngs.zip", "w") as archive:
        archive.writestr("cat/1.png", b"")
    with pytest.raises(DataError, match=r"as arr_0, but holds cat/1\.png"):
        open_images(tmp_path / "pngs.zip")


def test_a_changed_byte_of_an_array_is_found(tmp_path):
    np.savez(tmp_path / "a.npz", PIXELS)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[400] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        open_images(tmp_path / "a.npz")


def test_samples_without_their_hash_are_refused(tmp_path):
    meta = {**dict.fromkeys(FACTS, 1), "seeds": "0-4"}
    write_samples(tmp_path / "s.npz", Samples(PIXELS, np.arange(5), meta))
    assert open_images(tmp_path / "s.npz").seeds == "0-4"
    write_samples(tmp_path / "few.npz", Samples(PIXELS[:4], np.arange(5), meta))
    with pytest.raises(DataError, match="for N = 5 seeds"):
        open_images(tmp_path / "few.npz")


# folders


def test_arrays_of_a_folder_are_sets(tmp_path):
    assert arrays_in(tmp_path) == [tmp_path]
    np.save(tmp_path / "b.npy", PIXELS)
    np.savez(tmp_path / "a.npz", PIXELS)
    np.savez(tmp_path / ".a.npz.x.npz", PIXELS)
    assert arrays_in(tmp_path) == [tmp_path / "a.npz", tmp_path / "b.npy"]
    (tmp_path / "x").mkdir()
    Image.fromarray(PIXELS[0]).save(tmp_path / "x" / "1.png")
    with pytest.raises(DataError, match=r"arrays or image files, but holds a\.npz and x/1\.png"):
        arrays_in(tmp_path)


# before any feature is made


def evaluation(metrics, shape=None):
    network = Extractor("toy", 4, "none", "a" * 64, lambda x: x.float().flatten(1)[:, :4], shape=shape)
    features = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    dataset = {"name": "toy", "fingerprint": None, "split": "train", "heldout_split": None}
    reference = from_features(features, network.protocol, dataset=dataset)
    settings = MeasureSettings.model_construct(metrics=metrics)  # also of no name
    return Evaluation(reference, None, None, network, settings, None, None)


@pytest.mark.parametrize(
    "metrics, n, message",
    [
        (["pr"], 1, "at least 2 images, got 1"), (["fd"], 2, "at least 4 images, got 2"),
        (["fd", "kid"], 5, "at least 20 images on either side, got 5"), (["dc"], 5, "at least 6 images"),
    ],
)  # fmt: skip
def test_too_few_images_are_refused(metrics, n, message, tmp_path):
    np.save(tmp_path / "a.npy", PIXELS[:n])
    with pytest.raises(DataError, match=message):
        evaluation(metrics).require_measurable([open_images(tmp_path / "a.npy")])


def test_shape_and_what_is_left_out_are_said(tmp_path, caplog):
    for i, image in enumerate(PIXELS):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / ".DS_Store").touch()
    images = open_images(tmp_path)
    with pytest.raises(DataError, match=r"toy takes images \(C, H, W\) = \(3, 6, 4\), got \(3, 4, 6\)"):
        evaluation(["fd"], shape=(3, 6, 4)).require_measurable([images])
    evaluation(["fd"], shape=(3, 4, 6)).require_measurable([images])
    assert f"{tmp_path}, left out: 1 hidden, or of macOS alone (.DS_Store)" in caplog.text
    with pytest.raises(ConfigError, match="metrics must be of"):
        evaluation(["nope"]).require_measurable([images])


def test_large_images_can_be_admitted(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(buffer, "PNG")
    (tmp_path / "large.png").write_bytes(buffer.getvalue())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(DataError, match=r"large\.png must be an image, .* exceeds limit"):
        open_images(tmp_path)
    assert np.array_equal(open_images(tmp_path, max_pixels=24).images[:], PIXELS[:1])
