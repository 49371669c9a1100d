"""Image files as one array that is decoded piece by piece, when it is sliced."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.data.archives import SUFFIXES, folder_members, open_image
from fewstep.data.transforms import to_mode


class ImageFiles:
    """Files of equal size and mode, in the order given; `first` is one of those that all must be like."""

    def __init__(self, paths: Sequence[str | Path], first: str | Path | None = None) -> None:
        self.paths = [Path(path) for path in paths]
        self.first = Path(first) if first else self.paths[0] if self.paths else Path()
        if not self.paths:
            raise DataError("Image files must be at least one, got none; check the path.")

    @classmethod
    def in_folder(cls, folder: str | Path) -> "ImageFiles":
        """All images below a folder, sorted by name.
        Raises: DataError: there are none.
        """
        paths = [Path(folder) / name for name, _, _ in sorted(folder_members(Path(folder)))]
        if not paths:
            raise DataError(
                f"{folder} must hold images ({' '.join(sorted(SUFFIXES))}), but holds none; check the path."
            )
        return cls(paths)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) of every file."""
        return _decode(self.first).shape

    def part(self, rows: slice) -> "ImageFiles":
        """Some of the files, held to the size of all."""
        return ImageFiles(self.paths[rows], self.first)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        """Decode some files to (n, H, W, C), C = 1 for grey and 3 for all else.
        Raises: DataError: a file is missing, is no image, or has another size.
        """
        images = [_decode(path) for path in self.paths[rows]]
        for path, image in zip(self.paths[rows], images, strict=True):
            if image.shape != self.shape:
                raise DataError(
                    f"{path} must have the size of {self.first}, (H, W, C) = {self.shape}, but has "
                    f"{image.shape}; resize it or leave it out."
                )
        return np.stack(images)


def _decode(path: Path) -> NDArray[np.uint8]:
    try:
        image = open_image(path.read_bytes())
        pixels = np.asarray(to_mode(image, grey=image.mode == "L"))
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
        raise DataError(f"{path} must be an image, but cannot be read ({error}); replace it.") from None
    return pixels[..., None] if pixels.ndim == 2 else pixels
