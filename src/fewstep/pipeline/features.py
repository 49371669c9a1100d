"""Features of many images, kept in parts on disk, so that an interrupted measurement resumes."""

import re
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.files import atomic_file, canonical_json, sha256_text
from fewstep.pipeline.images import ImageSet
from fewstep.pipeline.parts import Shard, part_ranges, say_idle, tiled
from fewstep.pipeline.stage.code import code_hash
from fewstep.progress import Track

if TYPE_CHECKING:
    from fewstep.metrics.extractor import Extractor


_ROWS = re.compile(r"(\d{9})-(\d{9})")


class FeatureStore:
    """A folder of features; each set of images seen through one extractor has a folder of its own in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, images: ImageSet, extractor: "Extractor") -> Path:
        """Where the features of these very images through this very extractor are kept."""
        through = sha256_text(
            canonical_json([extractor.protocol, code_hash(("fewstep.metrics.extractor",))])
        )[:8]
        return self.folder / f"{images.name}.{images.sha256[:16]}.{through}"

    def make(
        self,
        images: ImageSet,
        extractor: "Extractor",
        shard: Shard,
        *,
        track: Track | None = None,
    ) -> None:
        """Extract the parts that are missing, or those of them that are the shard's; `track` shows each of them."""
        from fewstep.metrics.extractor import batch_size_of, extract

        place, n = self.place(images, extractor), len(images.images)
        ranges = list(part_ranges(n, batch_size=batch_size_of(extractor), shards=shard.count))
        say_idle(len(ranges), shard, images.name)
        mine = [rows for rows in ranges if shard.takes_next()]
        if self.holds(images, extractor):
            return
        files = [(place / f"{rows.start:09d}-{rows.stop:09d}.npz", rows) for rows in mine]
        missing = [(path, rows) for path, rows in files if not path.exists()]
        for done, (path, rows) in enumerate(missing, 1):
            name = f"{images.name}, part {done} of {len(missing)}"
            progress = iter if track is None else track(name, unit="batch")
            features = extract(images.part(rows), extractor, progress=progress)
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, features=features)

    def read(self, images: ImageSet, extractor: "Extractor") -> NDArray[np.float32]:
        """All features, (N, D).
        Raises: DataError: a part is missing or damaged.
        """
        parts = self._parts_of(images, extractor)
        if parts is None:
            place = self.place(images, extractor)
            raise DataError(
                f"{place} must hold the features of all {len(images.images)} images, but does not; evaluate again."
            )
        return np.concatenate([_read(part, len(rows)) for rows, part in parts])

    def holds(self, images: ImageSet, extractor: "Extractor") -> bool:
        """Whether every part is there."""
        return self._parts_of(images, extractor) is not None

    def _parts_of(self, images: ImageSet, extractor: "Extractor") -> list[tuple[range, Path]] | None:
        found = {}
        for part in self.place(images, extractor).glob("*.npz"):
            if match := _ROWS.fullmatch(part.stem):
                found[range(int(match[1]), int(match[2]))] = part
        return tiled(found, len(images.images))

    def drop(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path, n: int) -> NDArray[np.float32]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            features: NDArray[np.float32] = arrays["features"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} must hold features, but it is missing or damaged ({error}); delete it and evaluate again."
        ) from None
    if features.ndim != 2 or len(features) != n:
        raise DataError(f"{path} must hold the features of {n} images, got {features.shape}; delete it.")
    return features
