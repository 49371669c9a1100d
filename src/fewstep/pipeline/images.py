"""Images to be measured, wherever they come from: samples of this project, arrays or image files of any program."""

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.data.archives import list_folder
from fewstep.data.decoding import LOSSLESS
from fewstep.data.image_files import ImageFiles
from fewstep.data.packed import load_dataset
from fewstep.pipeline.samples import images_sha256, mapped_array, read_array_header, read_samples

UNKNOWN_CODEC = "unknown"
_BARE = b"\x93NUMPY"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class ImageSet:
    """Images, in an array or decoded on demand, and what is known of them.

    Attributes: images: uint8 (N, H, W, C). name: for tables. codec: "lossless", or the lossy format they are stored
        in, as their bytes tell, which leaves traces that a distance sees; "unknown" of arrays that may have been such
        files before. seeds: as `samples.seeds_text`; "none" where it is not known.
        meta: the facts of `fewstep sample`, or None. path: where they were read.
    """

    images: NDArray[np.uint8] | ImageFiles
    name: str
    path: Path
    codec: str = LOSSLESS
    seeds: str = "none"
    meta: dict[str, Any] | None = None
    stated_sha256: str | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        height, width, channels = self.images.shape[-3:]
        return height, width, channels

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
            name = path.relative_to(self.path).as_posix()
            digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))  # names need not be UTF-8
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def open_images(path: Path, *, max_pixels: int | None = None) -> ImageSet:
    """Open a samples file, an .npz with `arr_0` or an .npy (N, H, W, C), a packed dataset, or a folder of image files.

    Args: max_pixels: of an image file; None for Pillow's limit.
    Raises: DataError: it is none of these, damaged, without images, or with images of several sizes.
    """
    if path.is_dir():
        if (path / "manifest.json").exists():
            dataset = load_dataset(path)
            return ImageSet(dataset.images, dataset.name, path, codec=UNKNOWN_CODEC)
        files = ImageFiles.in_folder(path, max_pixels=max_pixels)
        _ = files.shape  # all have one size, which is said now and not after hours
        return ImageSet(files, path.resolve().name, path, codec="+".join(files.codecs))
    names = _array_names(path)
    if names is None:
        return _foreign(path, _bare_array(path), path.name)
    if "meta" in names:
        return _own(path)
    _require_images(path, names)
    try:
        array = mapped_array(path, "arr_0")
        _require_sound(path, "arr_0")
    except Exception as error:  # numpy raises zipfile, zlib, OS and value errors
        raise _damaged(path, error) from None
    return _foreign(path, array, "arr_0")


def arrays_in(folder: Path) -> list[Path]:
    """The .npz and .npy files of a folder, each a set of its own; the folder itself where it is the set.
    Raises: DataError: it holds arrays beside image files, of which either would be left out.
    """
    files = (path for path in folder.iterdir() if path.suffix in (".npz", ".npy") and path.is_file())
    arrays = sorted(path for path in files if not path.name.startswith("."))  # such as half-written ones
    if not arrays or (folder / "manifest.json").exists():
        return [folder]
    images = list_folder(folder).members
    if images:
        raise DataError(
            f"{folder} must hold arrays or image files, but holds {arrays[0].name} and {min(images)[0]}; name the "
            "arrays themselves, or move them."
        )
    return arrays


def _own(path: Path) -> ImageSet:
    samples = read_samples(path)
    if samples.sha256 != samples.meta.get("images_sha256"):
        raise DataError(f"{path} must hold the images that its hash names, but they differ; make it again.")
    return ImageSet(
        samples.images,
        path.stem,
        path,
        seeds=samples.meta["seeds"],
        meta=samples.meta,
        stated_sha256=samples.sha256,
    )


def _array_names(path: Path) -> list[str] | None:
    """Names of the arrays of an .npz, or None of a bare .npy.
    Raises: DataError: it is neither.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_BARE)) == _BARE:
                return None
            with zipfile.ZipFile(file) as archive:
                return [name.removesuffix(".npy") for name in archive.namelist()]
    except FileNotFoundError:
        raise DataError(f"{path} must exist, but there is no such file; check the path.") from None
    except Exception as error:  # zipfile raises many kinds for damaged archives
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} must be an .npz or .npy of images, but it is damaged or none ({error}); make it again."
    )


def _require_images(path: Path, names: Sequence[str]) -> None:
    """Raise where the images are not in `arr_0`, or not all of them."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            forms = {
                name: _header(arrays, name) for name in arrays.files if f"{name}.npy" in arrays.zip.namelist()
            }
    except Exception as error:  # as above
        raise _damaged(path, error) from None
    images = [name for name, (shape, dtype) in forms.items() if dtype == np.uint8 and len(shape) == 4]
    found = ", ".join(f"{name} {dtype} {shape}" for name, (shape, dtype) in list(forms.items())[:4])
    if "arr_0" not in forms:
        raise DataError(
            f"{path} must hold its images as arr_0, but holds {found or ', '.join(names[:4]) or 'nothing'}; write them "
            "with np.savez(path, images), without a name."
        )
    if len(images) > 1:
        raise DataError(
            f"{path} must hold all images in arr_0, but holds {' and '.join(images)}; join them with np.concatenate."
        )


def _header(arrays: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array of an open .npz."""
    with arrays.zip.open(f"{name}.npy") as member:
        shape, _, dtype = read_array_header(member)
    return shape, dtype


def _require_sound(path: Path, name: str) -> None:
    """Raise where the bytes of an array do not have the sum that the archive states."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        while member.read(_CHUNK):
            pass


def _bare_array(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises OS, value and other errors
        raise _damaged(path, error) from None
    return array


def _foreign(path: Path, images: NDArray[Any], name: str) -> ImageSet:
    is_set = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 3)
    if not is_set or 0 in images.shape:
        raise DataError(
            f"{path}: {name} must be at least one image, uint8 (N, H, W, C) with 1 or 3 channels, got {images.dtype} "
            f"{images.shape}; convert it."
        )
    return ImageSet(images, path.stem, path, codec=UNKNOWN_CODEC)
