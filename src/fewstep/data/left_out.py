"""What a source holds and a dataset does not: counted by reason, so that nothing is left out silently."""

from bisect import insort
from collections.abc import Mapping
from typing import Any

HIDDEN = "hidden, or of macOS alone"
NOT_IMAGES = "no image by its suffix"
REPLACED = "another member of the same name comes later"
LOOP = "a link to a folder that it lies in"
DANGLING = "a link to nothing"
SPECIAL = "neither a file nor a folder"
FRAMES = "frames after the first, in files with several"
VECTORS = "labels of dataset.json that are vectors and not classes"
UNKNOWN_LABELS = "labels of dataset.json whose images are not there"

_EXAMPLES = 5

Record = dict[str, dict[str, Any]]
"""Reason -> `count` and `examples`, the first names in alphabetical order."""


class LeftOut:
    """Counts names by reason; keeps the first few of each, whatever the order in which they come."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one more."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES or name < examples[-1]:
            insort(examples, name)
            del examples[_EXAMPLES:]

    def record(self) -> Record:
        """As it stands in a manifest; empty where nothing was left out."""
        return {
            reason: {"count": self._counts[reason], "examples": list(self._examples[reason])}
            for reason in sorted(self._counts)
        }


def sentence(left_out: Mapping[str, Mapping[str, Any]]) -> str:
    """Such a record in words, e.g. "2 hidden, or of macOS alone (.a.png, .b.png)"; "" of an empty one."""
    return "; ".join(
        f"{found['count']} {reason} ({', '.join(found['examples'])}"
        f"{', ...' if found['count'] > len(found['examples']) else ''})"
        for reason, found in left_out.items()
    )
