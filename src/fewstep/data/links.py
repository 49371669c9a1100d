"""Symbolic links within an archive, followed as a file system would."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fewstep.checks import DataError
from fewstep.data.left_out import DANGLING, HIDDEN, LOOP, LeftOut
from fewstep.data.names import has_image_suffix, is_hidden

NOWHERE = "a link to nothing"
"""In the place of where a member stands; reading it says so."""

MOST_PATHS = 100
"""To one folder: many links to each other would multiply without end."""
_MOST_HOPS = 40  # of links that lead to links, as in Linux


def followed(files: Mapping[str, Any], links: Mapping[str, str], left_out: LeftOut) -> dict[str, Any]:
    """Every file under each name that it is reached by; a folder with two links to it is there three times.

    Args: files: name -> where it stands. links: name -> what the link says, relative to its folder.
    Returns: name -> where; NOWHERE for an image whose link leads nowhere.
    Raises: DataError: a link to nothing may have been a folder, or links make too many paths.
    """
    if not links:
        return dict(files)
    tree = _Tree(files, links)
    found: dict[str, Any] = {}
    paths: Counter[str] = Counter()
    todo: list[tuple[str, str, tuple[str, ...]]] = [
        ("", "", ("",))
    ]  # folder, the name it is reached by, the folders above it
    while todo:
        folder, reached, above = todo.pop()
        paths[folder] += 1
        if paths[folder] > MOST_PATHS:
            raise too_many_paths(folder)
        for child in tree.children.get(folder, ()):
            name = f"{reached}/{child.rsplit('/', 1)[-1]}".removeprefix("/")
            if child in links and is_hidden(name):
                left_out.add(HIDDEN, name)
                continue
            target = tree.resolve(child) if child in links else child
            if target is None:
                if is_missing_image(name, links[child], left_out):
                    found[name] = NOWHERE
                continue
            if target in files:
                found[name] = files[target]
            if target in tree.children:
                if target in above:
                    left_out.add(LOOP, name)
                else:
                    todo.append((target, name, (*above, target)))
    return found


def is_missing_image(name: str, target: str, left_out: LeftOut) -> bool:
    """Whether a link to nothing is called like an image, which reading will then say; any other is counted.
    Raises: DataError: it has no suffix, so that a folder of images may be missing.
    """
    if has_image_suffix(name):
        return True
    if "." not in name.rsplit("/", 1)[-1]:
        raise DataError(
            f"{name} must not be a link to nothing, but {target} is not there, and a folder of images may be missing; "
            "mend the link or remove it."
        )
    left_out.add(DANGLING, name)
    return False


def too_many_paths(folder: str) -> DataError:
    """The error of links that lead round and round."""
    return DataError(
        f"links must lead to a folder by at most {MOST_PATHS} ways, but more lead to {folder or '.'}; remove some."
    )


class _Tree:
    """Folders, files and links by name."""

    def __init__(self, files: Mapping[str, Any], links: Mapping[str, str]) -> None:
        self.files, self.links = files, links
        self.children: dict[str, dict[str, None]] = {"": {}}
        for name in (*files, *links):
            for folder, child in _steps(name):
                self.children.setdefault(folder, {})[child] = None

    def resolve(self, name: str) -> str | None:
        """The file or folder that a name stands for once all links are followed; None where there is none."""
        parts, real, hops = name.split("/"), "", 0
        while parts:
            part = parts.pop(0)
            if part == "..":
                if not real:
                    return None
                real = real.rpartition("/")[0]
            elif part not in ("", "."):
                real = f"{real}/{part}".removeprefix("/")
                if real in self.links:
                    hops += 1
                    target = self.links[real]
                    if hops > _MOST_HOPS or target.startswith("/"):
                        return None
                    parts = [*target.split("/"), *parts]
                    real = real.rpartition("/")[0]
                elif real not in self.files and real not in self.children:
                    return None
        return real


def _steps(name: str) -> Iterator[tuple[str, str]]:
    """Each folder on the way to a name, and what lies in it."""
    folder = ""
    for part in name.split("/"):
        child = f"{folder}/{part}".removeprefix("/")
        yield folder, child
        folder = child
