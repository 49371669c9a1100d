import threading

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.checks import DataError
from fewstep.data.image_files import ImageFiles
from fewstep.data.left_out import NOT_IMAGES
from fewstep.data.packed import load_dataset
from fewstep.data.prepare import prepare
from fewstep.metrics import extractor as module
from fewstep.metrics.extractor import BATCH, Extractor, extract

SIZE = BATCH["cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """More images than two batches, in subfolders, as samplers write them."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2 * SIZE + 3, 5, 4, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = folder / f"{i // 10:03d}" / f"{i:06d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder, pixels


def pixel_extractor():
    return Extractor("pixels", 60, "none", "0" * 64, lambda x: x.float().flatten(1))


def test_files_far_apart_must_have_one_size(tmp_path):
    """The headers of all are read before the first image is decoded."""
    for i in range(8):
        Image.new("RGB", (4, 4) if i < 4 else (8, 8)).save(tmp_path / f"{i}.png")
    files = ImageFiles.in_folder(tmp_path)
    for use in (lambda: files[0:4], lambda: files.part(slice(0, 4)), lambda: files.shape):
        with pytest.raises(
            DataError, match=r"4\.png must have the size of .*0\.png, \(H, W, C\) = \(4, 4, 3\)"
        ):
            use()


COLOUR = np.random.default_rng(1).integers(0, 256, (3, 4, 3), dtype=np.uint8)
GREY = np.random.default_rng(2).integers(0, 256, (3, 4), dtype=np.uint8)


def some_of_each_mode(folder):
    """One image in every mode that a PNG may have, and what `prepare` makes of it."""
    wide = (GREY.astype(np.uint16) * 257).astype(np.uint16)
    alpha = np.full((3, 4), 128, np.uint8)
    images = {
        "colour": Image.fromarray(COLOUR),
        "grey": Image.fromarray(GREY),
        "wide": Image.fromarray(wide),
        "palette": Image.fromarray(COLOUR).quantize(),
        "alpha": Image.fromarray(np.dstack([COLOUR, alpha])),
        "translucent": Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(alpha))),
        "bits": Image.fromarray(GREY > 127),
    }
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return sorted(images)


@pytest.mark.parametrize("last", ["grey", "wide", "bits", "translucent", "colour", "palette", "alpha"])
def test_one_image_of_another_mode_is_read_as_prepare_reads_it(last, tmp_path):
    names = some_of_each_mode(tmp_path)
    files = ImageFiles([tmp_path / f"{name}.png" for name in (*(n for n in names if n != last), last)])
    assert files.shape == (3, 4, 3)
    assert files.part(slice(6, 7))[:].shape == (1, 3, 4, 3), "however late it comes"
    manifest = prepare("folder", tmp_path / "out", source=tmp_path, test_fraction=0.0, workers=1)
    expected = dict(zip(names, load_dataset(tmp_path / "out").images, strict=True))
    assert manifest["n"] == 7 and np.array_equal(files[6:7][0], expected[last])
    assert np.array_equal(expected["colour"], COLOUR) and np.array_equal(
        expected["wide"], np.dstack([GREY] * 3)
    )


def test_images_that_are_all_grey_have_one_channel(tmp_path):
    some_of_each_mode(tmp_path)
    files = ImageFiles([tmp_path / f"{name}.png" for name in ("grey", "wide")])
    assert np.array_equal(files[:], np.stack([GREY, GREY])[..., None])


def test_links_to_folders_are_followed(folder, tmp_path):
    path, pixels = folder
    (tmp_path / "again").symlink_to(path)
    assert np.array_equal(ImageFiles.in_folder(tmp_path)[:], pixels)


def test_what_is_left_out_is_known(folder):
    assert ImageFiles.in_folder(folder[0]).left_out == {NOT_IMAGES: {"count": 1, "examples": ["notes.txt"]}}


def test_files_are_an_array_in_the_order_of_their_names(folder):
    path, pixels = folder
    files = ImageFiles.in_folder(path)
    assert len(files) == len(pixels)
    assert np.array_equal(files[3:9], pixels[3:9])
    assert np.array_equal(extract(files, pixel_extractor()), extract(pixels, pixel_extractor()))


def test_grey_stays_grey_and_palettes_become_colour(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    assert np.array_equal(ImageFiles([tmp_path / "grey.png"])[:1][0, ..., 0], grey)
    assert ImageFiles([tmp_path / "palette.png"])[:1].shape == (1, 3, 4, 3)


def test_what_is_no_image_of_that_size_is_refused(folder, tmp_path):
    path, _ = folder
    with pytest.raises(DataError, match="holds none"):
        ImageFiles.in_folder(tmp_path)
    with pytest.raises(DataError, match="nowhere must be a folder of images, but there is no such folder"):
        ImageFiles.in_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="at least one"):
        ImageFiles([])
    Image.new("RGB", (9, 9)).save(tmp_path / "large.png")
    with pytest.raises(DataError, match=r"large.png.*\(5, 4, 3\).*\(9, 9, 3\)"):
        ImageFiles([path / "000" / "000000.png", tmp_path / "large.png"])[:2]
    (tmp_path / "cut.png").write_bytes((path / "000" / "000000.png").read_bytes()[:40])
    with pytest.raises(DataError, match="cut.png"):
        extract(ImageFiles([tmp_path / "cut.png"]), pixel_extractor())
    with pytest.raises(DataError, match="gone.png"):
        ImageFiles([tmp_path / "gone.png"])[:1]


def test_batches_are_read_ahead_of_the_network_by_another_thread(folder, monkeypatch):
    """The reader must have the second batch before the network is done with the first, and no more than two."""
    path, _ = folder
    read = [threading.Event() for _ in range(3)]
    readers = []
    plain = module._batch

    def noting(images, start, size):
        readers.append(threading.current_thread())
        found = plain(images, start, size)
        read[start // size].set()
        return found

    calls = []

    def forward(x):
        calls.append(len(x))
        assert read[min(len(calls), 2)].wait(10), "the next batch was not read meanwhile"
        return x.float().flatten(1)

    monkeypatch.setattr(module, "_batch", noting)
    features = extract(ImageFiles.in_folder(path), Extractor("pixels", 60, "none", "0" * 64, forward))
    assert calls == [SIZE, SIZE, 3] and len(features) == 2 * SIZE + 3
    assert threading.main_thread() not in readers


def test_a_tensor_and_its_files_have_equal_features(folder):
    path, pixels = folder
    tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    assert np.array_equal(
        extract(ImageFiles.in_folder(path), pixel_extractor()), extract(tensor, pixel_extractor())
    )
