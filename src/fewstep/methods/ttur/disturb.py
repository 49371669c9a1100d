"""Disturbances of images at rising levels, by which a distance between sets of images is judged.

[heusel2017ttur], section 4 and appendix A1: Gaussian noise, Gaussian blur, implanted black rectangles, swirled images,
and salt and pepper. Differs: blur and rectangles are shares of the side of the image, so that small images are
disturbed as much, and the rectangles leave something to see at each level.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fewstep.rng import generator

Images = NDArray[np.uint8]


def noise(images: Images, level: float, draw: torch.Generator) -> Images:
    """A share of Gaussian noise, whose mean and deviation are those of grey, in place of the image."""
    gaussian = 128 + 64 * torch.randn(images.shape, generator=draw).numpy()
    return _bytes((1 - level) * images + level * gaussian)


def blur(images: Images, level: float, draw: torch.Generator) -> Images:
    """A Gaussian kernel whose standard deviation is a share of the side."""
    kernel = ImageFilter.GaussianBlur(level * min(images.shape[1:3]))
    blurred = [
        np.asarray(Image.fromarray(image.squeeze()).filter(kernel)).reshape(image.shape) for image in images
    ]
    return np.stack(blurred)


def rectangles(images: Images, level: float, draw: torch.Generator) -> Images:
    """Five black squares, at random, whose side is a share of that of the image."""
    found = images.copy()
    height, width = images.shape[1:3]
    side = max(1, round(level * min(height, width)))
    for image in found:
        for _ in range(5):
            top = int(torch.randint(height - side + 1, (), generator=draw))
            left = int(torch.randint(width - side + 1, (), generator=draw))
            image[top : top + side, left : left + side] = 0
    return found


def swirl(images: Images, level: float, draw: torch.Generator) -> Images:
    """Turned about the centre by an angle, in radians, that falls off with the distance from it."""
    height, width = images.shape[1:3]
    y, x = torch.meshgrid(_centred(height), _centred(width), indexing="ij")
    angle = level * torch.exp(-3 * (x.square() + y.square()).sqrt())
    turned = torch.stack(
        [x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], dim=-1
    ).expand(len(images), -1, -1, -1)
    pixels = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), np.float32))
    moved = torch.nn.functional.grid_sample(pixels, turned, padding_mode="border", align_corners=False)
    return _bytes(moved.numpy().transpose(0, 2, 3, 1))


def salt_and_pepper(images: Images, level: float, draw: torch.Generator) -> Images:
    """A share of the pixels is black or white."""
    where = torch.rand(images.shape[:3], generator=draw).numpy()
    found = images.copy()
    found[where < level / 2] = 0
    found[where > 1 - level / 2] = 255
    return found


DISTURBANCES: dict[str, tuple[Callable[[Images, float, torch.Generator], Images], tuple[float, ...]]] = {
    "noise": (noise, (0.25, 0.5, 0.75)),
    "blur": (blur, (0.0625, 0.125, 0.25)),
    "rectangles": (rectangles, (0.125, 0.25, 0.375)),
    "swirl": (swirl, (1.0, 2.0, 4.0)),
    "salt-and-pepper": (salt_and_pepper, (0.1, 0.2, 0.3)),
}
"""Name -> how images (N, H, W, C) are disturbed, and the rising levels."""


def disturbed(images: Images, kind: str, level: float, *, seed: int = 0) -> Images:
    """Images of the same shape, disturbed; equal seeds disturb at the same places at each level.

    Args: images: uint8 (N, H, W, C) with 1 or 3 channels.
    """
    return DISTURBANCES[kind][0](images, level, generator(seed, "disturb", kind))


def _centred(size: int) -> torch.Tensor:
    return (2 * torch.arange(size, dtype=torch.float32) + 1) / size - 1


def _bytes(values: NDArray[np.floating]) -> Images:
    rounded: Images = np.rint(values).clip(0, 255).astype(np.uint8)
    return rounded
