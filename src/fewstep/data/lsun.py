"""LSUN from its official LMDB databases, whose values are WebP images: scenes by split, objects in one each."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fewstep.checks import ConfigError, DataError
from fewstep.data.decoding import open_image
from fewstep.data.source import Item, Pixels, Read, Source
from fewstep.data.transforms import Transform

DEFAULT_SIZE = 256
_SPLITS = {"train": "train", "val": "valid", "test": "test"}


def lsun_source(
    category: str,
    source: Path | None,
    *,
    size: int | None = None,
    grey: bool = False,
    test_fraction: float = 0.0,
) -> Source:
    """One LSUN category [yu2015lsun], shorter side by Lanczos to `size`, then centre crop.

    Args: category: bedroom, church_outdoor, cat, ...; any. source: the folder `<category>_train_lmdb` (or
    _val_, _test_), or that of an object, `<category>` or `<category>_lmdb`, which has no splits and is for training
    as a whole; or a folder that holds one or more of them. size: 256 when None; 128 and 64 are usual.
    grey: one channel. test_fraction: has no say, the databases are the splits (val is called valid).
    Raises: DataError: no database of that category there, damaged, or empty. ConfigError: lmdb is not
    installed.
    """
    databases = _databases(category, source)
    items = []
    for database, split in databases:
        with _opened(database) as transaction:
            items += [
                Item(f"{database.name}/{key.decode('latin1')}", split, None, (database.name, key))
                for key in transaction.cursor().iternext(keys=True, values=False)
            ]
    stamps = [(path / "data.mdb").stat() for path, _ in databases]
    return Source(
        name=f"lsun-{category}",
        items=items,
        open_reader=partial(_reader, [path for path, _ in databases]),
        transform=Transform(size=DEFAULT_SIZE if size is None else size, fit="shorter-side", grey=grey),
        origin={
            "kind": "lsun",
            "databases": {
                path.name: stamp.st_size for (path, _), stamp in zip(databases, stamps, strict=True)
            },
            "images": len(items),
        },
        # Hashing 43 GB would take longer than packing; the time of the last change tells copies apart.
        stamp=" ".join(str(stamp.st_mtime_ns) for stamp in stamps),
    )


def _databases(category: str, source: Path | None) -> list[tuple[Path, str]]:
    """The folders of that category and their splits."""
    scenes = {f"{category}_{key}_lmdb": split for key, split in _SPLITS.items()}
    objects = {category: "train", f"{category}_lmdb": "train"}
    folder = source if source is not None else Path()
    own_split = {**scenes, **objects}.get(folder.name)
    if own_split is not None and _is_database(folder):
        return [(folder, own_split)]
    found = [
        (folder / name, split) for name, split in {**scenes, **objects}.items() if _is_database(folder / name)
    ]
    if not found:
        raise DataError(
            f"source must be {', '.join(scenes)}, {' or '.join(objects)} with its data.mdb, or a folder that holds "
            f"them, but {folder} is not; unzip the official archive, and let its folders keep their names."
        )
    if len(found) > 1 and any(path.name in objects for path, _ in found):
        names = " and ".join(path.name for path, _ in found)
        raise DataError(f"{folder} must hold {category} once, but holds {names}; name the one that is meant.")
    return found


def _is_database(folder: Path) -> bool:
    return (folder / "data.mdb").is_file()


@contextmanager
def _reader(databases: list[Path]) -> Iterator[Read]:
    with _all_opened(databases) as transactions:

        def read(item: Item, blob: bytes | None) -> Pixels:
            database, key = item.where
            return open_image(transactions[database].get(key, b""))

        yield read


@contextmanager
def _all_opened(databases: list[Path]) -> Iterator[dict[str, Any]]:
    if not databases:
        yield {}
        return
    with _opened(databases[0]) as first, _all_opened(databases[1:]) as others:
        yield {databases[0].name: first, **others}


@contextmanager
def _opened(database: Path) -> Iterator[Any]:
    """A read transaction of an LMDB folder.
    Raises: DataError: it is no database, or truncated, which would kill this process at a missing page.
    """
    try:
        import lmdb
    except ImportError:
        raise ConfigError(
            "LSUN must have the package lmdb, which is missing; install fewstep[data]."
        ) from None
    try:
        with lmdb.open(str(database), readonly=True, lock=False, readahead=False) as environment:
            expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            found = (database / "data.mdb").stat().st_size
            if found < expected:
                raise DataError(f"{database} must have {expected} bytes, but has {found}; unzip it again.")
            with environment.begin(write=False) as transaction:
                yield transaction
    except lmdb.Error as error:
        raise DataError(f"{database} must be an LMDB database, but {error}; unzip it again.") from error
