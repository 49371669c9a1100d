"""Classes from `dataset.json`, the file in which the `dataset_tool` of EDM and StyleGAN keeps labels."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fewstep.checks import DataError
from fewstep.data.left_out import NOT_IMAGES, UNKNOWN_LABELS, VECTORS, LeftOut
from fewstep.data.names import member_name

_MOST_CLASSES = 1_000_000  # a larger number is no class

_BLOCK, _NUMBERED = re.compile(r"\d{3,18}"), re.compile(r"(?:[A-Za-z]+[-_]?)?(\d{1,18})\.\w+")
_TOOL_BLOCK, _TOOL_NAME = re.compile(r"\d{5}"), re.compile(r"img(\d{5})\d{3}\.\w+")
_UNITS = tuple(10**power for power in range(2, 7))


def read_labels(
    files: Mapping[str, bytes], names: Sequence[str], left_out: LeftOut
) -> tuple[dict[str, int] | None, bool]:
    """The class of every image, of the `dataset.json` nearest above it.

    Numbers are classes, and so are vectors that are one-hot. Other vectors, such as StyleGAN's poses of a camera,
    are left out and counted. `"labels": null` says nothing, and a `dataset.json` without `labels` is of another tool.
    Args: files: name -> content. names: of all images.
    Returns: Name -> class, or None where there are none, and whether there is such a file at all.
    Raises: DataError: it is damaged, says two things of one image, or nothing of some.
    """
    stated: dict[str, Any] = {}
    is_there = False
    for file, content in sorted(files.items()):
        entries = _entries(file, content)
        if entries is None:
            left_out.add(NOT_IMAGES, file)
            continue
        is_there = True
        folder = file.rpartition("/")[0]
        for entry in entries:
            name, label = _entry(file, entry)
            name = member_name(f"{folder}/{name}")
            if stated.setdefault(name, label) != label:
                raise DataError(
                    f"{file} must give {name} one label, but gives {stated[name]!r} and {label!r}."
                )
    stated = {name: label for name, label in stated.items() if label is not None}
    if not stated:
        return None, is_there
    known = set(names)
    for name in stated.keys() - known:
        left_out.add(UNKNOWN_LABELS, name)
    for name in names:
        if name not in stated:
            raise DataError(
                f"dataset.json must give every image a label, but {name} has none; complete it, or remove it where "
                "the folders are the classes."
            )
    return _classes({name: stated[name] for name in names}, left_out), is_there


def _entries(file: str, content: bytes) -> list[Any] | None:
    """What `labels` holds; None in a file of another tool."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} must be JSON, but it is damaged ({error}); replace it.") from None
    if not isinstance(value, dict) or "labels" not in value:
        return None
    labels = value["labels"]
    if labels is not None and not isinstance(labels, list):
        raise DataError(f"{file} must hold a list of labels or null, but holds {type(labels).__name__}.")
    return labels or []


def _entry(file: str, entry: Any) -> tuple[str, Any]:
    """A name and its label: an int, a tuple of numbers, or None."""
    if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
        name, label = entry
        if label is None or _is_class(label):
            return name, label
        if isinstance(label, list) and label and all(map(_is_number, label)):
            return name, tuple(map(float, label))
    raise DataError(
        f"{file} must hold pairs of a name and a label, which is a number from 0 on or a list of numbers, but holds "
        f"{entry!r:.80}; mend it."
    )


def _is_class(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_CLASSES


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _classes(labels: Mapping[str, Any], left_out: LeftOut) -> dict[str, int] | None:
    lengths = {len(label) if isinstance(label, tuple) else 0 for label in labels.values()}
    if len(lengths) > 1:
        raise DataError(
            "dataset.json must give all images labels of one kind, but some are numbers and some lists, or lists of "
            "several lengths; mend it."
        )
    if lengths == {0}:
        return dict(labels)
    if all(sorted(set(label)) in ([0, 1], [1]) and sum(label) == 1 for label in labels.values()):
        return {name: label.index(1) for name, label in labels.items()}
    for name in labels:
        left_out.add(VECTORS, name)
    return None


def are_blocks(places: Iterable[tuple[str, str, str]]) -> bool:
    """Whether numbered folders only keep numbered images apart, some thousands in each, and are no classes.

    Args: places: of every image the split, the folder that would be its class, and its own name.
    So are `00000/img00000123.png` of `dataset_tool`; and blocks of 10^k, k > 1, called by their first number, as in
    FFHQ and what EDM generates, or by their own, where all but the last are full.
    """
    numbers: dict[tuple[str, int], list[int]] = {}
    of_tool = True
    for split, folder, name in places:
        match = _NUMBERED.fullmatch(name)
        if not match or not _BLOCK.fullmatch(folder):
            return False
        tool = _TOOL_NAME.fullmatch(name)
        of_tool = of_tool and bool(tool and _TOOL_BLOCK.fullmatch(folder) and tool[1] == folder)
        numbers.setdefault((split, int(folder)), []).append(int(match[1]))
    if of_tool or len(numbers) < 2:
        return of_tool
    for unit in _UNITS:
        if all(n - n % unit == block for (_, block), inside in numbers.items() for n in inside):
            return True
        if all(n // unit == block for (_, block), inside in numbers.items() for n in inside):
            return _are_full(numbers, unit)
    return False


def _are_full(numbers: Mapping[tuple[str, int], Sequence[int]], unit: int) -> bool:
    last: dict[str, int] = {}
    for split, block in numbers:
        last[split] = max(last.get(split, 0), block)
    return all(len(inside) == unit or block == last[split] for (split, block), inside in numbers.items())
