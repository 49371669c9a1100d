"""The training curve of a model in MLflow."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from fewstep.app.settings import TrackSettings
from fewstep.files import read_json
from fewstep.nets import CARD, CURVE
from fewstep.pipeline.record import Record, curve_rows, row_points
from fewstep.pipeline.stage.spec import Spec


def records(folder: Path, stamp: Mapping[str, Any]) -> Iterator[Record]:
    """One run, found by the key of the training, which may have been followed live."""
    curve = folder / CURVE
    trained = read_json(folder / CARD)["settings"]  # also of a model of the zoo, which was trained elsewhere
    yield Record(
        name=f"{'train' if stamp['stage'] == 'zoo' else stamp['stage']} {stamp['key'][:8]}",
        params=trained,
        points=[point for row in curve_rows(curve) for point in row_points(row)],
        files=[curve],
        key=stamp["key"],
    )


def live(
    metrics: Path, track: TrackSettings, spec: Spec | None, *, leads: bool
) -> AbstractContextManager[None]:
    """Send the curve to MLflow while it grows, where the settings ask for it."""
    if not (track.live and spec and leads):
        return nullcontext()
    from fewstep.app.tracking import live_curve, tracking_uri

    return live_curve(metrics, run=spec.run, key=spec.key, uri=tracking_uri(track.uri))
