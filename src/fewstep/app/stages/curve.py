"""The training curve of a model in MLflow."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.files import read_json
from fewstep.nets import CARD, CURVE
from fewstep.pipeline.record import Record, curve_rows, row_points


def records(folder: Path, stamp: Mapping[str, Any]) -> Iterator[Record]:
    """One run, found by the key of the training, which may have been followed live."""
    curve = folder / CURVE
    trained = read_json(folder / CARD)["settings"]  # also of a model of the zoo, which was trained elsewhere
    yield Record(
        name=f"train {stamp['key'][:8]}",
        params={name: trained[name] for name in ("model", "train")},
        points=[point for row in curve_rows(curve) for point in row_points(row)],
        files=[curve],
        key=stamp["key"],
    )
