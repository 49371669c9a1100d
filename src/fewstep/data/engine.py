"""The one engine: any source becomes a packed dataset, in parallel, restartable, always the same bytes.

Rows are decided before the first image is read, so workers write straight into the final array. A shard is a
run of items; once its rows are on disk, a small record appears by rename. After a kill only shards without a
record are done again, and only if source, settings and code format are the same.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.checks import ConfigError, DataError
from fewstep.data.decoding import pixel_limit
from fewstep.data.left_out import FRAMES, LeftOut, Record
from fewstep.data.manifest import ARRAYS, SCHEMA, SPLITS
from fewstep.data.shards import (
    CorruptImageError,
    Packing,
    Shard,
    decode,
    pack,
    read_several_frames,
    read_skipped,
)
from fewstep.data.source import Item, Source
from fewstep.files import (
    canonical_json,
    read_json,
    remove_abandoned,
    require_space,
    sha256_file,
    sha256_text,
    write_json,
)
from fewstep.locks import locked

SHARD_ITEMS = 1024
_FORMAT = 1  # raise when the same source and settings would pack to other bytes
_COPY_ROWS = 1024
_SPARE_BYTES = 1 << 20  # manifest, headers and records
_OWN_FILES = {*ARRAYS.values(), "manifest.json", "spec.json"}


def prepare_source(
    source: Source,
    out: str | Path,
    *,
    name: str | None = None,
    limit: int | None = None,
    workers: int = 2,
    skip_corrupt: bool = False,
    max_pixels: int | None = None,
    shard_items: int = SHARD_ITEMS,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Pack a source into the folder `out`, which appears when it is complete.

    Work in progress lives in `.<out>.work` beside it and is taken up again by the same call.
    Args: name: in reports, the source's own when None. limit: keep this many images, evenly spaced over the
    packed order. workers: decoding processes; 1 decodes here. skip_corrupt: leave out unreadable images and
    list them in the manifest. max_pixels: of an image, None for Pillow's limit. progress: wraps an iterable that
    has a length and yields once per image.
    Returns: The manifest.
    Raises: DataError: an image cannot be read (named), sizes differ, the disk is too small, `out` holds other
        files. ConfigError: a count below 1.
    """
    counts = {"workers": workers, "shard_items": shard_items, "limit": limit, "max_pixels": max_pixels}
    for field, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"{field} must be at least 1, got {value}.")
    out = Path(out).absolute()
    _refuse_foreign(out)
    items = _in_packed_order(source.items, limit)
    work = out.with_name(f".{out.name}.work")
    with locked(work / "lock", "prepares a dataset"):
        with pixel_limit(max_pixels):
            shape = _image_shape(source, items, skip_corrupt=skip_corrupt)
        require_space(out, _missing_bytes(work, items, shape))
        packing = Packing(
            images=work / "dataset" / ARRAYS["images"],
            records=work / "records",
            offset=len(_npy_header((len(items), *shape))),
            shape=shape,
            transform=source.transform,
            skip_corrupt=skip_corrupt,
            max_pixels=max_pixels,
        )
        _open_work(work, packing, len(items), key=_work_key(source, items, packing, shard_items))
        shards = _shards(source, items, shard_items)
        pack(source, packing, shards, workers=workers, progress=progress)
        manifest = _finish(source, packing, items, shards, name=name or source.name)
        _publish(work / "dataset", out)
    shutil.rmtree(work, ignore_errors=True)
    return manifest


def _refuse_foreign(out: Path) -> None:
    """A folder that is not a dataset of ours is never replaced."""
    if out.is_dir():
        remove_abandoned(out, r"spec\.json")
        foreign = sorted({entry.name for entry in out.iterdir()} - _OWN_FILES)
        if foreign:
            raise DataError(
                f"{out} must be empty or a packed dataset, but it holds {foreign[0]}; choose another folder."
            )
    elif out.exists():
        raise DataError(f"{out} must be a folder, but it is a file; choose another path.")


def _in_packed_order(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Train, valid, test; within each the order of the source; `limit` of them evenly spaced."""
    if not items:
        raise DataError("the source must hold at least one image, but it holds none; check the path.")
    ordered = [item for split in SPLITS for item in items if item.split == split]
    assert len(ordered) == len(items), "a loader made a split that is not in SPLITS"
    if limit is None or limit >= len(ordered):
        return ordered
    return [ordered[i * len(ordered) // limit] for i in range(limit)]


def _image_shape(source: Source, items: Sequence[Item], *, skip_corrupt: bool) -> tuple[int, int, int]:
    """(H, W, C) of the packed images: from the transform, or from the first image that can be read."""
    transform = source.transform
    channels = 1 if transform.grey else 3
    if transform.size is not None:
        return transform.size, transform.size, channels
    order = _reading_order(source, items)
    blobs = source.stream(order) if source.stream is not None else None
    with source.open_reader() as read:
        for item in order:
            blob = next(blobs) if blobs is not None else None
            try:
                height, width, channels = decode(read, item, blob, transform).shape
            except CorruptImageError:
                if not skip_corrupt:
                    raise
            else:
                return height, width, channels
    raise DataError(
        f"the source must hold at least one readable image, but none of {len(items)} is; check the files."
    )


def _missing_bytes(work: Path, items: Sequence[Item], shape: tuple[int, int, int]) -> int:
    """Bytes still to be written; blocks that an earlier attempt has written are counted as free."""
    per_item = int(np.prod(shape)) + 8 + len(items[0].attributes or ())
    images = work / "dataset" / ARRAYS["images"]
    written = images.stat().st_blocks * 512 if images.exists() else 0
    return max(len(items) * per_item - written, 0) + _SPARE_BYTES


def _work_key(source: Source, items: Sequence[Item], packing: Packing, shard_items: int) -> str:
    """Hash of everything that the bytes of the shards depend on."""
    listing = "\n".join(f"{item.name}\t{item.split}\t{item.label}\t{item.stamp}" for item in items)
    return sha256_text(
        canonical_json(
            {
                "format": _FORMAT,
                "origin": source.origin,
                "stamp": source.stamp,
                "items": sha256_text(listing),
                "transform": [source.decoding, source.transform.name],
                "shape": packing.shape,
                "shard_items": shard_items,
            }
        )
    )


def _open_work(work: Path, packing: Packing, n: int, *, key: str) -> None:
    """Keep an earlier attempt of the very same work; clear away any other, and lay out the empty array."""
    state = work / "state.json"
    size = packing.offset + n * int(np.prod(packing.shape))
    if state.exists() and packing.images.exists() and packing.images.stat().st_size == size:
        with suppress(DataError):
            if read_json(state) == {"key": key}:
                return
    state.unlink(missing_ok=True)
    shutil.rmtree(packing.records, ignore_errors=True)
    shutil.rmtree(packing.images.parent, ignore_errors=True)
    packing.records.mkdir()
    packing.images.parent.mkdir()
    with packing.images.open("wb") as file:
        file.write(_npy_header((n, *packing.shape)))
        file.truncate(size)
    write_json(state, {"key": key})


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The bytes before the first row of a uint8 .npy file."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _reading_order(source: Source, items: Sequence[Item]) -> Sequence[Item]:
    return items if source.stream is None else sorted(items, key=source.stream_order)


def _shards(source: Source, items: Sequence[Item], shard_items: int) -> list[Shard]:
    """Runs of items in reading order."""
    row_of = {id(item): row for row, item in enumerate(items)}
    order = _reading_order(source, items)
    return [
        Shard(number, chunk, [row_of[id(item)] for item in chunk])
        for number, chunk in enumerate(
            order[first : first + shard_items] for first in range(0, len(order), shard_items)
        )
    ]


def _finish(
    source: Source, packing: Packing, items: Sequence[Item], shards: Sequence[Shard], *, name: str
) -> dict[str, Any]:
    """Leave out what was skipped, write labels and manifest."""
    skipped = {left_out for shard in shards for left_out in read_skipped(packing, shard)}
    kept = [item for item in items if item.name not in skipped]
    if not kept:
        raise DataError(
            f"at least one image must be readable, but all {len(items)} are corrupt; check the source."
        )
    folder = packing.images.parent
    images = packing.images
    if skipped:
        images = _without_gaps(
            packing, [row for row, item in enumerate(items) if item.name not in skipped], len(items)
        )
    digests: dict[str, str | None] = {"images": sha256_file(images), "labels": None}
    if kept[0].label is not None:
        np.save(folder / ARRAYS["labels"], np.array([item.label for item in kept], dtype=np.int64))
        digests["labels"] = sha256_file(folder / ARRAYS["labels"])
    if source.attributes is not None:
        np.save(folder / ARRAYS["attributes"], np.array([item.attributes for item in kept], dtype=np.int8))
        digests["attributes"] = sha256_file(folder / ARRAYS["attributes"])
    manifest = {
        "schema": SCHEMA,
        "name": name,
        "source": source.origin,
        "n": len(kept),
        "shape": list(packing.shape),
        "classes": None if source.classes is None else list(source.classes),
        "splits": _split_rows(kept),
        "transform": " + ".join(filter(None, (source.decoding, source.transform.name))),
        "skipped": sorted(skipped),
        "left_out": {**source.left_out, **_further_frames(packing, shards)},
        "sha256": digests,
    }
    if source.attributes is not None:
        manifest["attributes"] = list(source.attributes)
    images.replace(packing.images)
    write_json(folder / "manifest.json", manifest)
    return manifest


def _further_frames(packing: Packing, shards: Sequence[Shard]) -> Record:
    left_out = LeftOut()
    for shard in shards:
        for name in read_several_frames(packing, shard):
            left_out.add(FRAMES, name)
    return left_out.record()


def _without_gaps(packing: Packing, rows: Sequence[int], n: int) -> Path:
    """Copy the kept rows; the array with gaps stays until the manifest is ready, for a restart."""
    shape = (len(rows), *packing.shape)
    require_space(packing.images, int(np.prod(shape)) + _SPARE_BYTES)
    gappy = np.memmap(packing.images, np.uint8, "r", packing.offset, (n, *packing.shape))
    path = packing.images.parent.parent / "kept.npy"
    with path.open("wb") as file:
        file.write(_npy_header(shape))
        for first in range(0, len(rows), _COPY_ROWS):
            file.write(gappy[rows[first : first + _COPY_ROWS]].tobytes())
    return path


def _split_rows(items: Sequence[Item]) -> dict[str, list[int]]:
    """[first, end) of each split that has images."""
    splits: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        splits.setdefault(item.split, [row, row])[1] = row + 1
    return splits


def _publish(finished: Path, out: Path) -> None:
    """Rename into place; an earlier dataset there, or an empty folder, makes way."""
    if out.exists():
        aside = finished.with_name("replaced")
        shutil.rmtree(aside, ignore_errors=True)
        out.replace(aside)
    finished.replace(out)
