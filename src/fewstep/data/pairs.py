"""Pairs: which rows of the conditions an image of a dataset is trained with, as a table that people can read.

`pairs.csv` has the columns cond_id (row of the conditions), target_id (row of the images), weight and, where it is
known, similarity.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.files import atomic_file, sha256_text

FILE = "pairs.csv"
COLUMNS = ("cond_id", "target_id", "weight", "similarity")


@dataclass(frozen=True, eq=False)
class Pairs:
    """A table of pairs, sorted by image and then by condition.

    Attributes: cond_id, target_id: int64 (P,). weight: float64 (P,), above 0: among the pairs of an image, the chance
        of each in a step. similarity: float64 (P,), NaN where it is not known.
    Raises: DataError: no pair, one that is there twice, or a weight that cannot be.
    """

    cond_id: NDArray[np.int64]
    target_id: NDArray[np.int64]
    weight: NDArray[np.float64]
    similarity: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not len(self.cond_id):
            raise DataError("A table of pairs must have a pair or more; got none.")
        if min(self.cond_id.min(), self.target_id.min()) < 0:
            raise DataError("Ids of pairs must be rows, from 0; got a negative one.")
        if not (np.isfinite(self.weight).all() and (self.weight > 0).all()):
            raise DataError(
                "Weights of pairs must be finite and above 0; leave out pairs that are not to count."
            )
        order = np.lexsort((self.cond_id, self.target_id))
        for name in COLUMNS:
            object.__setattr__(self, name, getattr(self, name)[order])
        same = (np.diff(self.cond_id) == 0) & (np.diff(self.target_id) == 0)
        if same.any():
            k = int(np.flatnonzero(same)[0])
            raise DataError(f"A pair must stand once; {self.cond_id[k]}, {self.target_id[k]} stands twice.")

    def __len__(self) -> int:
        return len(self.cond_id)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """The images that have a pair, in order, (T,)."""
        return np.unique(self.target_id)

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        """Sums of the weights of the first 0, 1, ... pairs, (P + 1,)."""
        return np.concatenate([[0.0], np.cumsum(self.weight)])

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Where the pairs of each target begin, and where the last end, (T + 1,)."""
        return np.append(np.searchsorted(self.target_id, self.targets), len(self))

    def drawn(self, targets: NDArray[np.int64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """The condition of some targets, drawn by weight, int64 (B,).
        Args: targets: indices into `targets`. uniform: a number of [0, 1) for each.
        """
        first, end = self._ends[targets], self._ends[targets + 1]
        low, high = self._sums[first], self._sums[end]
        places = np.searchsorted(self._sums, low + uniform * (high - low), side="right") - 1
        return self.cond_id[np.clip(places, first, end - 1)]  # whatever the rounding of the sums

    @cached_property
    def sha256(self) -> str:
        """Hash of the table."""
        return sha256_text(self.to_csv())

    def to_csv(self) -> str:
        """The content of the file."""
        lines = [",".join(COLUMNS)]
        columns = (
            self.cond_id.tolist(),
            self.target_id.tolist(),
            self.weight.tolist(),
            self.similarity.tolist(),
        )
        lines += [
            f"{c},{t},{w:.9g},{'' if np.isnan(s) else f'{s:.6f}'}"
            for c, t, w, s in zip(*columns, strict=True)
        ]
        return "\n".join(lines) + "\n"

    def require_within(self, conditions: int, images: int) -> None:
        """Raise DataError where an id is no row of that many conditions, or images."""
        for name, ids, n in (("cond_id", self.cond_id, conditions), ("target_id", self.target_id, images)):
            if ids.max() >= n:
                raise DataError(
                    f"{name} of pairs must be below {n}, as there are {n} of them; got {ids.max()}."
                )


def pairs_of(
    cond_id: Sequence[int] | NDArray[np.int64],
    target_id: Sequence[int] | NDArray[np.int64],
    weight: Sequence[float] | NDArray[np.float64] | None = None,
    similarity: Sequence[float] | NDArray[np.float64] | None = None,
) -> Pairs:
    """A table of pairs of columns, with equal weights and without similarities where they are not given."""
    n = len(cond_id)
    return Pairs(
        np.asarray(cond_id, np.int64),
        np.asarray(target_id, np.int64),
        np.ones(n) if weight is None else np.asarray(weight, np.float64),
        np.full(n, np.nan) if similarity is None else np.asarray(similarity, np.float64),
    )


def save_pairs(path: str | Path, pairs: Pairs) -> None:
    """Write a table by rename."""
    with atomic_file(path) as temporary:
        temporary.write_text(pairs.to_csv(), encoding="utf-8")


def load_pairs(path: str | Path) -> Pairs:
    """Read a table: `pairs.csv`, or the folder that holds it. The columns weight and similarity may be missing.
    Raises: DataError: the file is missing, or a line is not as it must be.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} must be a readable table of pairs, but {error}; name another.") from None
    reader = csv.DictReader(io.StringIO(text))
    if lacks := [name for name in COLUMNS[:2] if name not in (reader.fieldnames or ())]:
        raise DataError(
            f"{path} must have the columns {', '.join(COLUMNS)}, the last two of which may be missing; "
            f"{lacks[0]} is."
        )
    columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for line in reader:
        try:
            columns["cond_id"].append(int(line["cond_id"]))
            columns["target_id"].append(int(line["target_id"]))
            columns["weight"].append(float(line.get("weight") or 1))
            columns["similarity"].append(float(line.get("similarity") or "nan"))
        except (TypeError, ValueError):
            raise DataError(
                f"{path}, line {reader.line_num}: cond_id and target_id must be whole numbers, weight and similarity "
                f"numbers; got {dict(line)!s:.100}."
            ) from None
    try:
        return pairs_of(*(np.asarray(columns[name]) for name in COLUMNS))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
