import numpy as np
import pytest
from formats import noise
from PIL import Image

from fewstep.data.transforms import FITS, Transform, celeba_crop, centre_crop, shorter_side


def test_own_size_keeps_the_pixels():
    array = noise(5, 7, 3)
    assert np.array_equal(Transform()(array), array)
    assert np.array_equal(Transform()(Image.fromarray(array)), array)


def test_centre_crop_is_what_edm_does():
    array = noise(31, 48, 3)
    crop = array[:, (48 - 31) // 2 : (48 + 31) // 2]
    expected = np.array(Image.fromarray(crop).resize((16, 16), Image.Resampling.LANCZOS))
    assert np.array_equal(Transform(size=16)(array), expected)


@pytest.mark.parametrize("width, height", [(300, 256), (256, 341), (64, 64), (65, 97)])
def test_shorter_side_gives_a_centred_square(width, height):
    ramp = np.broadcast_to(np.linspace(0, 255, width, dtype=np.uint8)[None, :, None], (height, width, 3))
    out = np.asarray(shorter_side(Image.fromarray(np.ascontiguousarray(ramp)), 64)).astype(float)
    assert out.shape == (64, 64, 3)
    assert abs(out[:, 31:33].mean() - 127.5) < 3  # the middle of the ramp stays in the middle, within a pixel


def test_both_squares_agree_inside():
    image = Image.fromarray(noise(64, 96, 3)).resize((192, 128), Image.Resampling.BICUBIC)
    inner = (slice(None), slice(4, -4))
    difference = (
        np.asarray(centre_crop(image, 32), int)[inner] - np.asarray(shorter_side(image, 32), int)[inner]
    )
    assert np.abs(difference).max() <= 1


def test_celeba_crop_is_centred_at_row_121_column_89():
    array = np.zeros((218, 178, 3), np.uint8)
    array[57:185, 25:153] = 255
    assert np.asarray(celeba_crop(Image.fromarray(array), 64)).min() == 255
    assert (57 + 185) / 2 == 121
    assert (25 + 153) / 2 == 89
    with pytest.raises(ValueError, match="178x218"):
        celeba_crop(Image.new("RGB", (178, 178)), 64)


def test_grey_becomes_rgb_and_back():
    array = noise(4, 4)
    assert np.array_equal(Transform()(array), np.repeat(array[:, :, None], 3, axis=2))
    assert np.array_equal(Transform(grey=True)(array)[:, :, 0], array)


def test_sixteen_bits_are_rounded_to_eight():
    wide = np.array([[0, 128, 129, 257, 65535]], np.uint16)
    for image in (Image.fromarray(wide), Image.fromarray(wide.astype(np.int32))):
        assert Transform(grey=True)(image)[0, :, 0].tolist() == [0, 0, 1, 1, 255]


def test_transparent_pixels_are_laid_over_white():
    layer = np.zeros((1, 2, 4), np.uint8)
    layer[0, 1] = (10, 20, 30, 255)
    assert Transform()(Image.fromarray(layer)).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_palette_gives_its_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert Transform()(image).tolist() == [[[1, 2, 3], [200, 100, 50]]]
    image.info["transparency"] = 0
    assert Transform()(image).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_bits_and_cmyk_are_converted():
    assert Transform()(Image.new("1", (1, 1), 1)).tolist() == [[[255, 255, 255]]]
    assert Transform()(Image.new("CMYK", (1, 1), (0, 0, 0, 255))).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("image", [Image.new("F", (2, 2), 0.5), Image.new("I", (2, 2), 70000)])
def test_pixels_without_a_white_are_refused(image):
    with pytest.raises(ValueError, match="white is unknown"):
        Transform()(image)


def test_names_tell_transforms_apart():
    names = {Transform(size, fit, grey).name for size in (32, 64) for fit in FITS for grey in (True, False)}
    assert len(names) == 12
    assert Transform().name == "rgb + own size"
