"""Decode runs of images and write their rows: here or in a pool of processes, the same bytes either way."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewstep import process
from fewstep.checks import DataError
from fewstep.data.decoding import SEVERAL_FRAMES, UNREADABLE, pixel_limit, remedy, said
from fewstep.data.source import Item, Read, Source
from fewstep.data.transforms import Transform
from fewstep.files import read_json, write_json


class CorruptImageError(DataError):
    """One image cannot be read; the others may be fine."""


@dataclass(frozen=True)
class Shard:
    """Some items, where they go and, for a streamed source, their bytes."""

    number: int
    items: Sequence[Item]
    rows: Sequence[int]
    blobs: Sequence[bytes] | None = None


@dataclass(frozen=True)
class Packing:
    """What a worker must know to pack any shard."""

    images: Path
    records: Path
    offset: int  # of row 0 in the file, bytes
    shape: tuple[int, int, int]  # (H, W, C)
    transform: Transform
    skip_corrupt: bool
    max_pixels: int | None = None


def pack(
    source: Source,
    packing: Packing,
    shards: Sequence[Shard],
    *,
    workers: int,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> None:
    """Do the shards that have no record yet."""
    todo = [shard for shard in shards if not is_done(packing, shard)]
    if not todo:
        return
    filled = _with_blobs(source, todo)
    workers = min(workers, len(todo)) if source.parallel else 1
    done = (
        _pack_here(source, packing, filled)
        if workers == 1
        else _pack_in_pool(source, packing, filled, workers)
    )
    try:
        for _ in progress(_Ticks(done, sum(len(shard.items) for shard in todo))):
            pass
    except OSError as error:
        raise DataError(f"{packing.images} must be writable, but {error}; call again to resume.") from error


class _Ticks:
    """Yields once per image as whole shards come in; its length tells progress how much there is."""

    def __init__(self, done: Iterator[Shard], total: int) -> None:
        self._done, self._total = done, total

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[int]:
        for shard in self._done:
            yield from shard.rows


def _with_blobs(source: Source, shards: Sequence[Shard]) -> Iterator[Shard]:
    """The shards as they are, or with their bytes from one pass over a streamed source."""
    if source.stream is None:
        yield from shards
        return
    blobs = source.stream([item for shard in shards for item in shard.items])
    for shard in shards:
        data = [blob for _, blob in zip(shard.items, blobs, strict=False)]
        yield Shard(shard.number, shard.items, shard.rows, data)


def _pack_here(source: Source, packing: Packing, shards: Iterable[Shard]) -> Iterator[Shard]:
    with source.open_reader() as read:
        for shard in shards:
            pack_shard(read, packing, shard)
            yield shard


def _pack_in_pool(source: Source, packing: Packing, shards: Iterable[Shard], workers: int) -> Iterator[Shard]:
    """Spread the shards over processes; few are under way at once, so streamed bytes do not pile up."""
    context = multiprocessing.get_context("forkserver")
    # Import once in the server, not once in every worker.
    context.set_forkserver_preload(["__main__", __name__])
    pool = ProcessPoolExecutor(workers, context, _start_worker, (source.open_reader, packing))
    pending: dict[Future[None], Shard] = {}
    try:
        for shard in shards:
            pending[pool.submit(_pack_in_worker, shard)] = Shard(shard.number, shard.items, shard.rows)
            if len(pending) > workers:
                yield from _collect(pending)
        while pending:
            yield from _collect(pending)
    except BrokenProcessPool:
        raise DataError(
            "decoding processes must live to the end, but one died (killed, out of memory, or started by a "
            "script without `if __name__ == '__main__'`); use fewer workers and call again to resume."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(pending: dict[Future[None], Shard]) -> list[Shard]:
    """Wait for at least one shard; fail as it failed."""
    finished, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in finished:
        future.result()
    return [pending.pop(future) for future in finished]


@dataclass
class _Worker:
    """What one decoding process keeps between shards."""

    read: Read
    packing: Packing
    resources: ExitStack


_worker: _Worker | None = None


def _start_worker(open_reader: Callable[[], AbstractContextManager[Read]], packing: Packing) -> None:
    global _worker
    process.set_up()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    resources = ExitStack()
    _worker = _Worker(resources.enter_context(open_reader()), packing, resources)


def _exit_with_parent() -> None:
    """A killed parent must not leave workers behind that wait for shards for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _pack_in_worker(shard: Shard) -> None:
    assert _worker is not None
    pack_shard(_worker.read, _worker.packing, shard)


def pack_shard(read: Read, packing: Packing, shard: Shard) -> None:
    """Decode a shard, write its rows and then, by rename, its record: what was left out, by name."""
    skipped: list[str] = []
    several_frames: list[str] = []
    row_bytes = int(np.prod(packing.shape))
    blobs = shard.blobs if shard.blobs is not None else [None] * len(shard.items)
    with packing.images.open("r+b") as file, pixel_limit(packing.max_pixels):
        for item, row, blob in zip(shard.items, shard.rows, blobs, strict=True):
            try:
                array = decode(read, item, blob, packing.transform, several_frames)
            except CorruptImageError:
                if not packing.skip_corrupt:
                    raise
                skipped.append(item.name)
                continue
            if array.shape != packing.shape:
                height, width, _ = packing.shape
                raise DataError(
                    f"{item.name} must be {width}x{height} like the images before it, but is "
                    f"{array.shape[1]}x{array.shape[0]}; give a size to bring all images to it."
                )
            position = packing.offset + row * row_bytes
            if position != file.tell():  # a seek would flush the buffer
                file.seek(position)
            file.write(array.tobytes())
        file.flush()
        os.fsync(file.fileno())  # the record promises that the rows outlive a power cut
    write_json(_record_path(packing, shard), {"skipped": skipped, "several_frames": several_frames})


def is_done(packing: Packing, shard: Shard) -> bool:
    """Whether an earlier attempt wrote these rows, and left out only what this one may leave out."""
    return _record_path(packing, shard).exists() and (
        packing.skip_corrupt or not read_skipped(packing, shard)
    )


def read_skipped(packing: Packing, shard: Shard) -> list[str]:
    """Names that a finished shard left out."""
    return list(read_json(_record_path(packing, shard))["skipped"])


def read_several_frames(packing: Packing, shard: Shard) -> list[str]:
    """Names of the images of which a finished shard took the first frame alone."""
    return list(read_json(_record_path(packing, shard)).get("several_frames", ()))


def _record_path(packing: Packing, shard: Shard) -> Path:
    return packing.records / f"{shard.number:06d}.json"


def decode(
    read: Read,
    item: Item,
    blob: bytes | None,
    transform: Transform,
    several_frames: list[str] | None = None,
) -> NDArray[np.uint8]:
    """One image as uint8 (H, W, C); CorruptImageError names the file. several_frames: takes the name of such."""
    try:
        pixels = read(item, blob)
        array = transform(pixels)
    except UNREADABLE as error:
        raise CorruptImageError(
            f"{item.name} must be a readable image, but is not ({said(error)}); "
            f"{remedy(error, 'repair it, or skip corrupt images')}."
        ) from error
    if several_frames is not None and isinstance(pixels, Image.Image) and SEVERAL_FRAMES in pixels.info:
        several_frames.append(item.name)
    return array
