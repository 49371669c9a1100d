"""Images to be measured, wherever they come from: samples of this project, arrays or image files of any program."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.data.image_files import ImageFiles
from fewstep.data.packed import load_dataset
from fewstep.pipeline.samples import images_sha256, mapped_array, read_samples

LOSSY = {".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".jp2": "jpeg2000", ".avif": "avif"}
LOSSLESS = "lossless"
UNKNOWN_CODEC = "unknown"


@dataclass(frozen=True)
class ImageSet:
    """Images, in an array or decoded on demand, and what is known of them.

    Attributes: images: uint8 (N, H, W, C). name: for tables. codec: "lossless", or the lossy format they are stored
        in, which leaves traces that a distance sees; "unknown" of arrays that may have been such files
        before. seeds: as `samples.seeds_text`; "none" where it is not known.
        meta: the facts of `fewstep sample`, or None. path: where they were read.
    """

    images: NDArray[np.uint8] | ImageFiles
    name: str
    path: Path
    codec: str = LOSSLESS
    seeds: str = "none"
    meta: dict[str, Any] | None = None
    stated_sha256: str | None = None

    def part(self, rows: range) -> NDArray[np.uint8] | ImageFiles:
        """Images of rows that follow one another, still on disk."""
        wanted = slice(rows[0], rows[-1] + 1)
        if isinstance(self.images, ImageFiles):
            return self.images.part(wanted)
        return self.images[wanted]

    @cached_property
    def sha256(self) -> str:
        """Hash of the images: of pixels (and seeds), or of names and bytes of image files."""
        if self.stated_sha256 is not None:
            return self.stated_sha256
        if not isinstance(self.images, ImageFiles):
            return images_sha256(self.images)
        digest = hashlib.sha256()
        for path in self.images.paths:
            digest.update(f"{path.relative_to(self.path).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def open_images(path: Path) -> ImageSet:
    """Open a samples file, an .npz with `arr_0` (N, H, W, C), a packed dataset, or a folder of image files.
    Raises: DataError: it is none of these, or damaged.
    """
    if path.is_dir():
        if (path / "manifest.json").exists():
            dataset = load_dataset(path)
            return ImageSet(dataset.images, dataset.name, path, codec=UNKNOWN_CODEC)
        files = ImageFiles.in_folder(path)
        suffixes = {file.suffix.lower() for file in files.paths}
        codecs = sorted({LOSSY.get(suffix, LOSSLESS) for suffix in suffixes})
        return ImageSet(files, path.resolve().name, path, codec="+".join(codecs))
    if not _is_samples(path):
        return _foreign(path)
    samples = read_samples(path)
    if samples.sha256 != samples.meta["images_sha256"]:
        raise DataError(f"{path} must hold the images that its hash names, but they differ; make it again.")
    return ImageSet(
        samples.images,
        path.stem,
        path,
        seeds=samples.meta["seeds"],
        meta=samples.meta,
        stated_sha256=samples.sha256,
    )


def _is_samples(path: Path) -> bool:
    """Whether the file has facts beside its images; a damaged one is left to `read_samples` to tell."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return "arr_0" not in arrays or "meta" in arrays
    except Exception:  # numpy raises zipfile, zlib, OS and value errors
        return True


def _foreign(path: Path) -> ImageSet:
    try:
        images = mapped_array(path, "arr_0")
    except Exception as error:  # as above
        raise DataError(f"{path} must be an .npz of images, but it is damaged ({error}).") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(
            f"{path}: arr_0 must be uint8 images (N, H, W, C), got {images.dtype} {images.shape}; convert it."
        )
    return ImageSet(images, path.stem, path, codec=UNKNOWN_CODEC)
