"""Attributes of images: one class against another, a column of a table, or what can be measured of pixels."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.data.packed import Dataset, load_dataset
from fewstep.data.prompts import split_column
from fewstep.metrics.extractor import Extractor, extract

NEITHER, WITHOUT, WITH = -1, 0, 1
_BATCH = 1000
_EXAMPLES = 1000  # a side, of the regression that judges
_TERCILES = (1 / 3, 1 / 2, 2 / 3)

Judge = Callable[[Tensor], NDArray[np.bool_]]
"""Whether images, uint8 (N, C, H, W), have the attribute, (N,)."""


def _share(channel: int) -> Callable[[Tensor], Tensor]:
    def measure(images_u8: Tensor) -> Tensor:
        sums = images_u8.double().sum((2, 3))
        return sums[:, channel] / sums.sum(1).clamp(min=1)

    return measure


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness": lambda images_u8: images_u8.double().mean((1, 2, 3)) / 255,
    "red": _share(0),
    "green": _share(1),
    "blue": _share(2),
}
"""Name -> function from images, uint8 (N, C, H, W), to a number of each: mean brightness, or a colour's share."""


@dataclass(frozen=True)
class Attribute:
    """What an image can have or lack.

    Attributes: name: `A/B`, which is had by class B and lacked by class A; a name in `MEASURES`, had by the upper third
        of the training images and lacked by the lower third; an attribute of the dataset; or FILE.csv:COLUMN, a table
        with a column `row`, rows of the whole dataset, and values 1, and 0 or -1.
    """

    name: str

    @property
    def file(self) -> str:
        """A name for files."""
        kept = split_column(Path(self.name))[1] or Path(self.name).stem if ".csv" in self.name else self.name
        return "".join(one if one.isalnum() or one in "_." else "-" for one in kept)

    @property
    def measured(self) -> bool:
        """Whether it is a number of the pixels."""
        return self.name in MEASURES

    def sides(self, data: Path, split: str) -> NDArray[np.int8]:
        """Of each image of a split: `WITH`, `WITHOUT` or `NEITHER`, (N,).

        Raises: ConfigError: there is no such attribute. DataError: the dataset or the table is not as it must be.
        """
        dataset = load_dataset(data, split)
        if self.measured:
            low, _, high = self._bounds(data)
            values = self._measure(dataset)
            return np.where(values > high, WITH, np.where(values < low, WITHOUT, NEITHER)).astype(np.int8)
        file, column = split_column(Path(self.name))
        if column is not None:
            first, end = dataset.manifest["splits"][split]
            return _of_table(file, column, dataset.manifest["n"])[first:end]
        names = list(dataset.manifest.get("attributes") or ())
        if self.name in names and dataset.attributes is not None:
            return np.array(dataset.attributes[:, names.index(self.name)], np.int8)
        pair = self._classes(dataset)
        if dataset.labels is None or pair is None:
            choices = [f"A/B of the classes {', '.join(dataset.classes or ())}"] * (
                dataset.labels is not None
            ) + names
            raise ConfigError(
                f"--attribute must be one of {', '.join([*choices, *MEASURES, 'FILE.csv:COLUMN']):.600}, as "
                f"{dataset.name} has them; got {self.name}."
            )
        sides = np.full(len(dataset), NEITHER, np.int8)
        sides[dataset.labels == pair[0]] = WITHOUT
        sides[dataset.labels == pair[1]] = WITH
        return sides

    def _classes(self, dataset: Dataset) -> tuple[int, int] | None:
        """Those of A/B, by number; None where it is another attribute."""
        without, _, having = self.name.partition("/")
        classes = dataset.classes or ()
        if without not in classes or having not in classes or without == having:
            return None
        return classes.index(without), classes.index(having)

    def judge(self, data: Path, extractor: Extractor | None) -> Judge | None:
        """What says whether made images have the attribute; None where nothing can.

        A measured one is measured: the median of the training images is the border. One class against another is judged
        by the classifier of the extractor, where it knows all classes: it must find the very class. Any other, by a
        logistic regression on the extractor's features of training images.
        """
        if self.measured:
            middle = self._bounds(data)[1]
            return lambda images_u8: np.asarray(MEASURES[self.name](images_u8) > middle)
        if extractor is None:
            return None
        dataset = load_dataset(data)
        pair, head = self._classes(dataset), extractor.head
        if pair is not None and head is not None and len(head.weight) == len(dataset.classes or ()):
            return lambda images_u8: head.logits(extract(images_u8, extractor)).argmax(1) == pair[1]
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        sides, train = self.sides(data, "train"), load_dataset(data, "train")
        rows = np.concatenate([some_of(np.flatnonzero(sides == side), _EXAMPLES) for side in (WITH, WITHOUT)])
        images, positive = train.batch(rows), sides[rows] == WITH
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.1))
        probe.fit(extract(images, extractor), positive)
        return lambda images_u8: np.asarray(probe.predict(extract(images_u8, extractor)), bool)

    def _bounds(self, data: Path) -> tuple[float, float, float]:
        low, middle, high = np.quantile(self._measure(load_dataset(data, "train")), _TERCILES)
        return float(low), float(middle), float(high)

    def _measure(self, dataset: Dataset) -> NDArray[np.float64]:
        channels = dataset.shape[0]
        if self.name != "brightness" and channels != 3:
            raise ConfigError(
                f"--attribute {self.name} needs images of 3 channels; {dataset.name} has {channels}."
            )
        measure = MEASURES[self.name]
        parts = [
            measure(dataset.batch(range(first, min(first + _BATCH, len(dataset)))))
            for first in range(0, len(dataset), _BATCH)
        ]
        return torch.cat(parts).numpy()


def some_of(rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """At most n rows, evenly spaced: datasets are often sorted by class."""
    return rows if len(rows) <= n else rows[np.linspace(0, len(rows) - 1, n).round().astype(int)]


def _of_table(file: Path, column: str, n: int) -> NDArray[np.int8]:
    """A column of a table by the rows of a dataset, (n,)."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            absent = [name for name in ("row", column) if name not in (reader.fieldnames or ())]
            if absent:
                raise DataError(
                    f"{file} must have the columns row and {column}; it has {', '.join(reader.fieldnames or ())}."
                )
            sides = np.full(n, NEITHER, np.int8)
            for line in reader:
                row, value = line["row"] or "", line[column] or ""
                if not row.isdecimal() or int(row) >= n or value not in ("-1", "0", "1", ""):
                    raise DataError(
                        f"{file}, line {reader.line_num}: row must be below {n}, the images of the dataset, and "
                        f"{column} 1, 0, -1 or empty; got {row!r:.20} and {value!r:.20}."
                    )
                sides[int(row)] = NEITHER if value == "" else WITH if value == "1" else WITHOUT
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} must be a readable table, but: {error}; name another.") from None
    return sides
