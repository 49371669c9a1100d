"""A user's own pictures, as large as a model's images, and strips of images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.data.image_files import ImageFiles
from fewstep.data.transforms import Transform

_GREY = 127


@dataclass(frozen=True)
class Pictures:
    """Pictures of a folder.

    Attributes: names: of the files that are made of them, without ending. images: uint8 (N, C, H, W). files: the
        pictures as they are.
    """

    names: Sequence[str]
    images: Tensor
    files: ImageFiles = field(repr=False)


def open_pictures(folder: Path, shape: tuple[int, ...], *, taken: str) -> Pictures:
    """The pictures of a folder, cut to the largest centred square and resized to a model's images.

    Args:
        folder: of image files of any sizes.
        shape: of a model's image, (C, H, W).
        taken: name that none may have, as another file is written under it.

    Raises:
        DataError: no pictures, or a damaged one. ConfigError: pictures of one name.
    """
    channels, height, width = shape
    if height != width:
        raise ConfigError(f"Pictures are cut to squares, but the model's images are {height} x {width}.")
    files = ImageFiles.in_folder(folder)
    names = [path.relative_to(folder).with_suffix("").as_posix().replace("/", "_") for path in files.paths]
    all_names = [*names, taken]
    if both := next((name for name in names if all_names.count(name) > 1), None):
        raise ConfigError(
            f"Pictures must have names of their own, but {both} in {folder} would be written twice; rename it."
        )
    cut = files.squared(slice(None), Transform(height, grey=channels == 1))
    return Pictures(names, torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).contiguous(), files)


def as_image(pixels: Tensor | NDArray[np.uint8]) -> Image.Image:
    """Uint8 (C, H, W) as a picture."""
    array = np.asarray(pixels)
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def stacked(rows: Sequence[Tensor], *, gap: int = 0) -> Image.Image:
    """Rows of images, uint8 (N, C, H, W) each, below each other, with a grey gap after each image."""
    if gap:
        rows = [torch.nn.functional.pad(row, (0, gap, 0, gap), value=_GREY) for row in rows]
    return as_image(np.concatenate([np.concatenate(list(row.numpy()), axis=2) for row in rows], axis=1))
