"""What every loader hands to the one engine: the items, and how to read one of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewstep.data.left_out import Record
from fewstep.data.transforms import Transform


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source, not yet read.

    name: unique, what errors and the manifest call it. split: "train", "valid" or "test". label: class index,
    None where there are no classes. where: what the reader needs to find it (a path, an offset, a row).
    stamp: changes when the raw bytes may have changed, e.g. size and modification time.
    """

    name: str
    split: str
    label: int | None
    where: Any
    stamp: str = ""
    attributes: tuple[int, ...] | None = None


Pixels = Image.Image | NDArray[np.uint8]
# Reads one item; the bytes are given when the source is streamed, else None.
Read = Callable[[Item, bytes | None], Pixels]


@dataclass(frozen=True)
class Source:
    """A dataset in its original form.

    name: the default name of the packed dataset. items: in the order of the packed array within each split.
    open_reader: picklable; makes a context in which items can be read, in any process. transform: from pixels
    to stored bytes. origin: for the manifest, free of local paths and times. stamp: identifies this very copy
    of the raw files. classes: names of the labels. attributes: names of the items' 0/1 attributes. decoding:
    what reading does beyond opening an image file. stream: for a source that can only be read front to back:
    the bytes of the given items, which come sorted by `stream_order`. parallel: False when reading is cheaper
    than sending the work away. left_out: what the source holds besides, a record of `left_out.LeftOut`.
    """

    name: str
    items: Sequence[Item]
    open_reader: Callable[[], AbstractContextManager[Read]]
    transform: Transform
    origin: dict[str, Any]
    stamp: str = ""
    classes: tuple[str, ...] | None = None
    attributes: tuple[str, ...] | None = None
    decoding: str = ""
    stream: Callable[[Sequence[Item]], Iterator[bytes]] | None = None
    stream_order: Callable[[Item], int] = lambda item: int(item.where)
    parallel: bool = True
    left_out: Record = field(default_factory=dict)
