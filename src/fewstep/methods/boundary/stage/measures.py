"""What claims may measure of edits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.checks import DataError
from fewstep.methods.boundary.choice import scores
from fewstep.methods.boundary.stage.run import LEVEL, read_record
from fewstep.metrics.uncertainty import normal_interval
from fewstep.pipeline.claims import Measurement
from fewstep.rng import generator

RESAMPLES = 300

Entry = dict[str, Any]


def success_gain(run: Path, *, of: str, to: str, zeta: float) -> list[Measurement]:
    """Share of edits at the mixing step that succeed less that of another way, over all attributes, paired by images.

    Args:
        run: folder of the run.
        of: where is edited, eps, h or both, or random.
        to: that of what it is compared with.
        zeta: distance from the plane.
    """
    entries = [entry for entry in _entries(run) if not entry["further"]]
    gains = np.concatenate([_hits(entry, of, zeta) - _hits(entry, to, zeta) for entry in entries])
    value, spread = float(gains.mean()), float(gains.std(ddof=1)) / len(gains) ** 0.5
    return [
        Measurement(
            f"{of} against {to}, distance {zeta:g}", value, *normal_interval(value, spread), len(gains)
        )
    ]


def gain_at_content(run: Path, *, method: str) -> list[Measurement]:
    """Share of edits that succeed at the mixing step less that at the latest further step, where both change content
    equally: mean over contents up to what both reach, and over attributes; intervals by resampling images.

    Args:
        run: folder of the run.
        method: where is edited, eps, h or both.
    """
    entries = _entries(run)
    further = [entry for entry in entries if entry["further"]]
    pairs = [
        (entry, max(later, key=lambda one: float(one["t"])))
        for entry in entries
        if not entry["further"]
        and (
            later := [
                one for one in further if one["attribute"] == entry["attribute"] and one["t"] > entry["t"]
            ]
        )
    ]
    if not pairs:
        raise DataError(
            f"{run / 'edit'} must have edits at a later step, too, for this claim; set boundary.further."
        )
    sizes = [entry["images"] for entry, _ in pairs]
    value = _gain(pairs, method, [np.arange(size) for size in sizes])
    rng = generator(0, "resample", *map(int, sizes))
    replicates = [
        _gain(pairs, method, [torch.randint(size, (size,), generator=rng).numpy() for size in sizes])
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    what = f"step {pairs[0][0]['t']:.2g} against {pairs[0][1]['t']:.2g}"
    return [Measurement(what, value, float(low), float(high), sum(sizes))]


def _gain(pairs: Sequence[tuple[Entry, Entry]], method: str, rows: Sequence[NDArray[np.int64]]) -> float:
    gains = []
    for pair, own in zip(pairs, rows, strict=True):
        curves = {}
        for k, entry in enumerate(pair):
            results = [row for row in entry["results"] if row["method"] == method]
            content = np.array([np.array(row["content"]["values"])[own].mean() for row in results])
            success = np.array([_bits(row)[own].mean() for row in results])
            curves[float(k)] = content, success
        found = scores(curves)
        gains.append(found[0.0] - found[1.0])
    return float(np.mean(gains))


def _entries(run: Path) -> list[Entry]:
    entries: list[Entry] = read_record(run / "edit")["boundaries"]
    return entries


def _hits(entry: Entry, method: str, zeta: float) -> NDArray[np.float64]:
    for row in entry["results"]:
        if row["method"] == method and row["zeta"] == zeta:
            return _bits(row)
    raise DataError(
        f"Edits must be of {method} at distance {zeta:g} for this claim; there are none in {entry['file']}."
    )


def _bits(row: Entry) -> NDArray[np.float64]:
    return np.array([hit == "1" for hit in row["success"]["hits"]], np.float64)
