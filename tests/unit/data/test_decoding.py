import io

import numpy as np
import pytest
from formats import can_write, encoded, noise, write_files
from PIL import Image

from fewstep.checks import ConfigError, DataError
from fewstep.data.decoding import read_header
from fewstep.data.image_files import ImageFiles
from fewstep.data.left_out import FRAMES
from fewstep.data.packed import load_dataset
from fewstep.data.prepare import prepare

PIXELS = noise(8, 8, 3)


def animated_webp(*, lossless):
    buffer = io.BytesIO()
    frames = [Image.fromarray(noise(8, 8, 3, seed=i)) for i in range(2)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=lossless)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "codec, blob",
    [
        *(("lossless", encoded(PIXELS, form)) for form in ("PNG", "BMP", "PPM", "TGA", "GIF", "TIFF")),
        *(
            ("lossless", encoded(PIXELS, "TIFF", compression=kind))
            for kind in ("tiff_lzw", "tiff_adobe_deflate")
        ),
        ("jpeg", encoded(PIXELS, "TIFF", compression="jpeg")),
        ("jpeg", encoded(PIXELS, "JPEG")),
        ("jpeg", encoded(PIXELS, "MPO")),
        ("webp", encoded(PIXELS, "WEBP")),
        ("webp", encoded(PIXELS, "WEBP", exif=b"Exif\x00\x00")),  # chunks before the picture's
        ("webp", encoded(noise(8, 8, 4), "WEBP")),
        ("webp", animated_webp(lossless=False)),
        ("lossless", encoded(PIXELS, "WEBP", lossless=True)),
        ("lossless", encoded(PIXELS, "WEBP", lossless=True, icc_profile=b"odd")),
        ("lossless", animated_webp(lossless=True)),
        *(("avif", encoded(PIXELS, form)) for form in ("AVIF",) if can_write(form)),
        ("jpeg2000", encoded(PIXELS, "JPEG2000")),
    ],
)
def test_codec_is_told_by_the_bytes(codec, blob):
    header = read_header(io.BytesIO(blob))
    assert header.codec == codec and header.size == (8, 8)


def gif(n):
    frames = [Image.fromarray(noise(4, 4, seed=i)) for i in range(n)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def pages(n):
    frames = [Image.fromarray(noise(4, 4, 3, seed=i)) for i in range(n)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize("workers", [1, 2])
def test_further_frames_are_counted(workers, tmp_path):
    files = {"1.gif": gif(3), "2.gif": gif(1), "3.tif": pages(2), "4.tif": pages(1)}
    raw = write_files(tmp_path / "raw", files | {"5.png": encoded(noise(4, 4, 3))})
    manifest = prepare("folder", tmp_path / "out", source=raw, test_fraction=0.0, workers=workers)
    assert manifest["left_out"] == {FRAMES: {"count": 2, "examples": ["1.gif", "3.tif"]}}
    images = load_dataset(tmp_path / "out").images
    assert np.array_equal(images[0, :, :, 0], noise(4, 4, seed=0)), (
        "the first of the frames, as without others"
    )
    assert np.array_equal(images[2], noise(4, 4, 3, seed=0))


def test_too_large_images_are_named_and_can_be_admitted(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 25)  # Pillow refuses more than twice as many
    raw = write_files(tmp_path / "raw", {"1.png": encoded(noise(5, 5, 3)), "2.png": encoded(noise(5, 5, 3))})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"1\.png must be a readable image, .* exceeds limit of 20 pixels"):
        prepare("folder", tmp_path / "out", source=raw, workers=1)
    with pytest.raises(DataError, match=r"1\.png must be an image, .* exceeds limit of 20 pixels"):
        ImageFiles.in_folder(raw).shape  # noqa: B018
    assert prepare("folder", tmp_path / "out", source=raw, workers=1, max_pixels=25)["n"] == 2
    assert ImageFiles.in_folder(raw, max_pixels=25)[:].shape == (2, 5, 5, 3)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(DataError, match="exceeds limit of 24"):
        ImageFiles.in_folder(raw, max_pixels=24).shape  # noqa: B018
    with pytest.raises(ConfigError, match="max_pixels must be at least 1"):
        prepare("folder", tmp_path / "out", source=raw, max_pixels=0)
