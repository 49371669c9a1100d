"""A user's own pictures with masks, as large as a model's images."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.data.decoding import UNREADABLE, open_image, said
from fewstep.data.image_files import ImageFiles
from fewstep.data.masks import KINDS, as_mask, perlin_masks
from fewstep.data.transforms import to_mode
from fewstep.pipeline.pictures import open_pictures
from fewstep.rng import generator

log = logging.getLogger(__name__)
FILLED, STRIP = "inpaint.json", "before-mask-after.png"
MOST, NOTHING = 0.95, 0.0
"""Shares of a hole beyond which black and white may be the wrong way round."""


@dataclass(frozen=True)
class Holed:
    """Pictures with their holes.

    Attributes: names: of the files that are made, without ending. images: uint8 (N, C, H, W). masks: bool (N, 1, H, W),
        true in the hole.
    """

    names: Sequence[str]
    images: Tensor
    masks: Tensor


def open_holed(folder: Path, mask: str, shape: tuple[int, ...], *, seed: int) -> Holed:
    """The pictures of a folder, cut to the largest centred square and resized to a model's images, and their masks.

    Args:
        folder: of image files of any sizes.
        mask: a kind, `perlin:PERIOD`, or a black and white image as large as the pictures or as a model's images.
        shape: of a model's image, (C, H, W).
        seed: of masks that are drawn; that of picture i depends on i alone.

    Raises:
        DataError: no pictures, a damaged one, or a mask of another size or with other values.
        ConfigError: no such mask, or pictures of one name.
    """
    pictures = open_pictures(folder, shape, taken=Path(STRIP).stem)
    names = pictures.names
    masks = _masks(mask, pictures.files, shape[1], seed)
    for name, share in zip(names, masks.float().mean((1, 2)).tolist(), strict=True):
        if share > MOST or share == NOTHING:
            log.warning(
                "%s: the hole takes %.0f %% of the picture; white is the hole, black is kept",
                name,
                100 * share,
            )
    return Holed(names, pictures.images, masks[:, None])


def _masks(mask: str, files: ImageFiles, side: int, seed: int) -> Tensor:
    """The masks of some pictures, bool (N, H, W)."""
    kind, _, period = mask.partition(":")
    rngs = [generator(seed, "mask", kind, i) for i in range(len(files))]
    if kind == "perlin" and period:
        try:
            length = float(period)
        except ValueError:
            raise ConfigError(
                f"The period of Perlin noise must be a number of pixels; got {period!r}."
            ) from None
        return torch.cat([perlin_masks(1, side, side, rng=rng, period=length, share=0.5) for rng in rngs])
    if mask in KINDS:
        return torch.stack([KINDS[mask](side, side, rng) for rng in rngs])
    path = Path(mask)
    if not path.exists():
        raise ConfigError(
            f"--mask must be one of {', '.join(KINDS)}, perlin:PERIOD, or an image file; got {mask}, which is no file."
        )
    given = _read(path)
    own: dict[tuple[int, int], Tensor] = {}
    for file, header in zip(files.paths, files.headers, strict=True):
        if header.size not in own:
            if given.size not in (header.size, (side, side)):
                raise DataError(
                    f"{path} must be as large as {file.name}, {header.size[0]} x {header.size[1]}, or as the model's "
                    f"images, {side} x {side}; got {given.size[0]} x {given.size[1]}."
                )
            own[header.size] = as_mask(_square(given, side), name=str(path))
    return torch.stack([own[header.size] for header in files.headers])


def _read(path: Path) -> Image.Image:
    """A mask as it is, with its channels.
    Raises: DataError: it is no image, or not black and white.
    """
    try:
        image = open_image(path.read_bytes())
        given = image if image.mode in ("RGB", "L") else to_mode(image, grey=False)
    except (*UNREADABLE, OSError) as error:
        raise DataError(f"{path} must be an image, but cannot be read ({said(error)}); replace it.") from None
    as_mask(np.asarray(given), name=str(path))  # before it is resized
    return given


def _square(mask: Image.Image, side: int) -> NDArray[np.uint8]:
    """The largest centred square at a size, each pixel that of the nearest one."""
    width, height = mask.size
    least = min(width, height)
    left, top = (width - least) // 2, (height - least) // 2
    square = mask.crop((left, top, left + least, top + least))
    return np.asarray(square.resize((side, side), Image.Resampling.NEAREST))
