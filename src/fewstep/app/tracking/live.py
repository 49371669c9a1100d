"""The training curve in MLflow while it grows."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from fewstep.app.tracking.store import SECONDS_BETWEEN_BEATS, Shelf, beat, log_points, open_store
from fewstep.pipeline.record import curve_rows, row_points

log = logging.getLogger(__name__)

_LIVE_SECONDS = 10.0
_LONGEST_WAIT = 60  # times that, after several failures


@contextmanager
def live_curve(metrics: Path, *, run: str, key: str, uri: str) -> Iterator[None]:
    """While the block runs, send the rows that appear in a `metrics.jsonl` to MLflow, the last at its end.

    Rows up to the last step that a killed process had sent are skipped, so a resumed training continues its
    curve. `track_run` later finds the curve by `key` and adds nothing, or all of it if it did not arrive. A store that
    fails at the start or on the way is a warning: training goes on, and the file has the curve.

    Args:
        metrics: The file, which need not exist yet.
        run: Name of the run.
        key: Spec key of the training.
        uri: The MLflow store.
    """
    curve = _Curve(metrics, run=run, key=key, uri=uri)
    curve.send()
    ended = Event()

    def follow() -> None:
        while not ended.wait(_LIVE_SECONDS * min(2**curve.failures, _LONGEST_WAIT)):
            curve.send()

    follower = Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
    curve.send(end=True)


class _Curve:
    """The rows of a file and how far they are in MLflow."""

    def __init__(self, metrics: Path, *, run: str, key: str, uri: str) -> None:
        self._metrics, self._run, self._key, self._uri = metrics, run, key, uri
        self._run_id: str | None = None
        self._last = -1
        self._beat = -math.inf
        self.failures = 0

    def send(self, *, end: bool = False) -> None:
        """Add what is new, and at the end close the run; the first failure and that at the end are warnings."""
        try:
            self._send(end)
        except Exception as error:  # whatever it is: a view must not cost a training its model
            self.failures += 1
            self._run_id = None  # it may be gone: found or made anew by its key
            if self.failures == 1 or end:
                log.warning(
                    "training goes on without MLflow, and the curve waits in %s until the store can be used or fewstep "
                    "track shows it; %s",
                    self._metrics,
                    error,
                )
        else:
            if self.failures:
                log.info("the training curve is in MLflow again")
            self.failures = 0

    def _send(self, end: bool) -> None:
        is_due = time.monotonic() - self._beat >= SECONDS_BETWEEN_BEATS
        if self._run_id is not None and not end and not is_due and not self._new():
            return
        with open_store(self._uri, announce=not self.failures) as client:
            if self._run_id is None:
                shelf = Shelf(client, self._run, self._uri)
                self._run_id, self._last = shelf.resume(self._key, name=f"train {self._key[:8]}")
            elif is_due:
                beat(client, self._run_id)
            if is_due:
                self._beat = time.monotonic()
            rows = self._new()
            if rows:
                log_points(client, self._run_id, [point for row in rows for point in row_points(row)])
                self._last = int(rows[-1]["step"])
            if end:
                client.set_terminated(self._run_id)

    def _new(self) -> list[Mapping[str, Any]]:
        """The rows that are not in MLflow yet."""
        if not self._metrics.exists():
            return []
        return [row for row in curve_rows(self._metrics) if row["step"] > self._last]
