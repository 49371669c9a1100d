"""Distances of disturbed images, with the half samples behind their intervals."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewstep.checks import DataError
from fewstep.data.packed import load_dataset
from fewstep.files import read_json, write_json
from fewstep.methods.ttur.disturb import DISTURBANCES, Images, disturbed
from fewstep.methods.ttur.stage.settings import DisturbSettings
from fewstep.metrics.evaluate import metric_name
from fewstep.metrics.extractor import Extractor, extract
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import half_samples, normal_interval, spread
from fewstep.progress import Track

SCHEMA = "fewstep.disturbed/1"
RECORD, PICTURE = "disturbed.json", "disturbed.png"
SHOWN = 8


@dataclass(frozen=True)
class Disturbed:
    """The content of `disturbed.json`, and a picture of the images: one row for each disturbance and level."""

    record: dict[str, Any]
    picture: Images


def measure(
    data: Path, reference: Reference, extractor: Extractor, settings: DisturbSettings, *, track: Track
) -> Disturbed:
    """Disturb the held-out images of a dataset, and measure how far they are from the reference.

    Raises:
        DataError: the dataset has no held-out images, or too few of them for an interval.
    """
    dataset = load_dataset(data)
    if dataset.heldout_split is None:
        raise DataError(f"{data} must have held-out images, a split test or valid, to disturb; got none")
    images = np.array(load_dataset(data, dataset.heldout_split).images[: settings.images or None])
    jobs = [("none", 0.0), *((kind, level) for kind, (_, levels) in DISTURBANCES.items() for level in levels)]
    results, rows = [], []
    for kind, level in track("disturb", unit="set")(jobs):
        seen = images if kind == "none" else disturbed(images, kind, level, seed=settings.seed)
        features = extract(seen, extractor)
        value = frechet(Statistics.from_features(features), reference.statistics).value
        replicates = half_samples(features, reference.statistics, resamples=settings.resamples)
        results.append(
            {
                "kind": kind,
                "level": level,
                "value": value,
                "interval": list(normal_interval(value, spread(replicates))),
                "replicates": replicates.tolist(),
            }
        )
        rows.append(np.concatenate(list(seen[:SHOWN]), axis=1))
    record = {
        "schema": SCHEMA,
        "metric": metric_name("FD", extractor, len(images)),
        "protocol": {
            "n": len(images),
            "data": dataset.name,
            "split": dataset.heldout_split,
            "reference": reference.protocol,
            "extractor": extractor.protocol,
            "level": 0.95,
            "seed": settings.seed,
        },
        "results": results,
    }
    return Disturbed(record, np.concatenate(rows, axis=0))


def save(found: Disturbed, folder: Path) -> None:
    """Write both files into a folder."""
    write_json(folder / RECORD, found.record)
    Image.fromarray(found.picture.squeeze()).save(folder / PICTURE)


def read_disturbed(folder: Path) -> dict[str, Any]:
    """The content of `disturbed.json`.
    Raises: DataError: it is missing, damaged or of another program.
    """
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise DataError(f"{folder / RECORD} must be distances of disturbed images ({SCHEMA}); make it again.")
    return record


def rising(record: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The results of one disturbance from no disturbance to the highest level."""
    return [one for one in record["results"] if one["kind"] in ("none", kind)]
