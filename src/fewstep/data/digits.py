"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn: a dataset without a download."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import ConfigError
from fewstep.data.source import Item, Read, Source
from fewstep.data.transforms import Transform


def digits_source(
    source: Path | None = None, *, size: int | None = None, grey: bool = True, test_fraction: float = 0.2
) -> Source:
    """Digits as one grey channel; sixteenths v become floor(v * 255 / 16 + 1/2).

    Args: source: none is needed. size: Lanczos to this side; None keeps 8. grey: always one channel.
    test_fraction: share of each class held out; evenly spaced, so that it is the same everywhere.
    Raises: ConfigError: a source is given, or scikit-learn is not installed.
    """
    if source is not None:
        raise ConfigError(
            f"digits must come without a source, since scikit-learn holds them, but got {source}."
        )
    images, labels = _load()
    seen: dict[int, int] = dict.fromkeys(range(10), 0)
    items = []
    for row, label in enumerate(labels.tolist()):
        items.append(Item(f"digit-{row:04d}", _split(seen[label], test_fraction), label, row))
        seen[label] += 1
    return Source(
        name="digits",
        items=items,
        open_reader=partial(array_reader, images),
        transform=Transform(size=size, grey=True),
        origin={"kind": "sklearn.datasets.load_digits", "images": len(items), "test_fraction": test_fraction},
        classes=tuple(map(str, range(10))),
        decoding="floor(v * 255 / 16 + 1/2)",
        parallel=False,
    )


@contextmanager
def array_reader(images: NDArray[np.uint8]) -> Iterator[Read]:
    """Read items whose `where` is a row of an array in memory."""
    yield lambda item, blob: images[item.where]


def _load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("digits must have scikit-learn, which is missing; install fewstep[data].") from None
    raw: Any = load_digits()
    return np.floor(raw.images * 255 / 16 + 0.5).astype(np.uint8), raw.target.astype(np.int64)


def _split(nth: int, test_fraction: float) -> str:
    """The nth image of a class goes to the test split whenever the running share falls behind."""
    return "test" if int((nth + 1) * test_fraction) > int(nth * test_fraction) else "train"
