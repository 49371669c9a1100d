"""Progress of long work, on stderr: a bar on a terminal, a line every 30 seconds elsewhere."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

T = TypeVar("T")
Progress = Callable[[Iterable[T]], Iterable[T]]


class Track(Protocol):
    """As `track`, for those who are handed it."""

    def __call__(self, description: str, *, unit: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
        """Make a progress bar of that name."""


def track(
    description: str, *, total: int | None = None, unit: str = "it"
) -> Callable[[Iterable[T]], "tqdm[T]"]:
    """Make a function that wraps an iterable and reports rate and time left while it is consumed."""
    on_terminal = sys.stderr.isatty()

    def wrap(iterable: Iterable[T]) -> "tqdm[T]":
        return tqdm(
            iterable,
            desc=description,
            total=total,
            unit=unit,
            file=sys.stderr,
            mininterval=0.2 if on_terminal else 30,
            maxinterval=0.5 if on_terminal else 60,
            dynamic_ncols=on_terminal,
            ncols=None if on_terminal else 100,
        )

    return wrap


def noted(
    wrap: Callable[[Iterable[T]], Iterable[T]], note: Callable[[], str]
) -> Callable[[Iterable[T]], Iterator[T]]:
    """A progress bar that shows a note, such as the best so far, which is made anew after each item."""

    def wrapped(items: Iterable[T]) -> Iterator[T]:
        bar = wrap(items)
        show = getattr(bar, "set_postfix_str", None)
        for item in bar:
            yield item
            if show is not None:
                show(note(), refresh=False)

    return wrapped
