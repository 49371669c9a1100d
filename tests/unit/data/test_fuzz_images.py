"""Damaged image files: pixels, or one sentence that names the file, alike for `prepare` and for `evaluate`."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
from formats import can_write, encoded, noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewstep.checks import DataError
from fewstep.data.engine import prepare_source
from fewstep.data.folder import folder_source
from fewstep.data.image_files import ImageFiles
from fewstep.data.packed import load_dataset

FORMS = (
    "PNG",
    "JPEG",
    "GIF",
    "TIFF",
    "WEBP",
    "BMP",
    "PPM",
    "TGA",
    "JPEG2000",
    "AVIF",
    "QOI",
    "ICO",
    "PCX",
    "DDS",
)
WHOLE = {form: encoded(noise(16, 16, 3), form) for form in FORMS if can_write(form)}


def read_by(use):
    """What it returns, or its sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow about damaged metadata
        try:
            return use()
        except DataError as error:
            assert "1.png" in str(error) and "\n" not in str(error)
            return None


@settings(derandomize=True, deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 120) | st.integers(0, 4000), st.integers(0, 255)), max_size=4),
    st.none() | st.integers(0, 1000),
)
def test_damaged_images(form, changes, cut):
    data = bytearray(WHOLE[form])
    for position, value in changes:
        data[position % len(data)] = value
    data = data[:cut]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "raw"
        folder.mkdir()
        (folder / "1.png").write_bytes(data)
        out = Path(temporary) / "out"
        packed = read_by(lambda: prepare_source(folder_source(folder), out, workers=1))
        images = read_by(lambda: ImageFiles.in_folder(folder)[:])
        assert (packed is None) == (images is None)
        if images is not None:
            pixels = np.array(load_dataset(out).images)
            assert np.array_equal(pixels, images if images.shape[-1] == 3 else np.repeat(images, 3, -1))
