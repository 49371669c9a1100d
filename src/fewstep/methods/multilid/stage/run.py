"""Samples against real images through the detector."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.data.packed import Dataset, load_dataset
from fewstep.files import read_json
from fewstep.methods.multilid.detect import (
    Identification,
    Separation,
    Splits,
    identify,
    not_distinguishable,
    separate,
)
from fewstep.methods.multilid.features import COLUMNS, Array, duplicates
from fewstep.methods.multilid.protocol import (
    NULL,
    REAL,
    Sides,
    fair_distances,
    levels,
    make_sides,
    published_distances,
    real_rows,
)
from fewstep.methods.multilid.stage.record import FAIR, POOLED, PUBLISHED, SCHEMA, Detection
from fewstep.methods.multilid.taps import Taps, load_taps
from fewstep.metrics.extractor import extract
from fewstep.nets import CARD
from fewstep.pipeline.environment import environment
from fewstep.pipeline.samples import read_samples
from fewstep.progress import Track

if TYPE_CHECKING:
    from fewstep.methods.multilid.stage.settings import DetectSettings

UNTRAINED = "resnet18-random"

_KEYS = ("network", "features", "protocol", "classifier")
_INTERVALS = (
    "out-of-fold predictions, conditional on the bank; accuracy: Wilson over distinct images; sensitivity: the same, "
    "with the spread of its threshold; AUROC: DeLong; minus null: normal, differences paired over the real images that "
    "both share; all variances doubled for the training of the classifiers, which is too much where classes lie far "
    "apart"
)


def run_detection(
    files: Sequence[Path],
    data: Path,
    features: str,
    settings: "DetectSettings",
    *,
    device: str,
    track: Track,
    spec_key: str | None = None,
) -> Detection:
    """Detect generated images among real ones.

    Args: files: samples files; those whose plans do not match the settings are left out. data: packed dataset of real
        images. features: of `load_taps`.
    Raises: DataError: too few images, or of another shape. ConfigError: no such network, or no plan matches.
    """
    generators, images = _generated(files, settings)
    dataset = load_dataset(data)  # all splits: one draw decides who is bank, query and control
    sides, real = _sides(dataset, images, settings)
    networks = _networks(features, settings, device)
    for network in networks:
        network.require(tuple(sides.bank.shape[1:]))
    head = _headline(networks[0], settings)
    measured = _measure(sides, networks, settings, head, track)
    for one in generators:
        one["equal_to_bank"] = measured.equal[one["name"]]
    record = {
        "schema": SCHEMA,
        "protocol": {
            **settings.model_dump(mode="json", exclude={"nfe", "match"}),
            "headline": head,
            "intervals": _INTERVALS,
            "networks": [network.protocol for network in networks],
        },
        "data": {
            **real,
            "equal_to_bank": {name: measured.equal[name] for name in (REAL, NULL)},
            "trained_on": _share_trained_on(features, dataset),
        },
        "generators": generators,
        "results": measured.rows,
        "identification": _identified(measured.identification),
        "transfer": measured.transfer,
        "extremes": measured.extremes,
        "environment": environment(),
        "spec_key": spec_key,
    }
    return Detection(record, _table(measured.rows))


class _Measured(NamedTuple):
    """Rows of all results; of the headline, what follows; images equal to one of the bank."""

    rows: list[dict[str, Any]]
    transfer: dict[str, dict[str, float]]
    extremes: dict[str, dict[str, Any]]
    identification: Identification
    equal: dict[str, int]


def _measure(
    sides: Sides, networks: Sequence[Taps], settings: "DetectSettings", head: dict[str, str], track: Track
) -> _Measured:
    splits = Splits(settings.folds, settings.repeats, settings.seed)
    measured = None
    rows: list[dict[str, Any]] = []
    equal: dict[str, int] = {}
    for key, columns in _described(sides, networks, settings, equal, track):
        progress = track(" ".join(key.values()), unit="classifier")
        for classifier in progress(settings.classifiers):
            found, transfer = separate(columns, classifier, splits)
            one = {**key, "classifier": classifier}
            rows += [
                {**one, **_row(name, separation, found[NULL], settings.level)}
                for name, separation in found.items()
            ]
            if one == head:
                identification = identify(columns, classifier, splits, settings.level)
                measured = _Measured(rows, transfer, _extremes(found, settings.level), identification, equal)
    assert measured is not None  # the headline is among what is described
    return measured


def _extremes(found: Mapping[str, Separation], level: float) -> dict[str, dict[str, Any]]:
    """The generators of the highest and lowest accuracy, and those not distinguishable from these."""
    accuracy = {name: one.accuracy(level).value for name, one in found.items() if name != NULL}
    chosen = {
        "easiest": max(accuracy, key=accuracy.__getitem__),
        "hardest": min(accuracy, key=accuracy.__getitem__),
    }
    return {
        which: {"name": name, "not_distinguishable_from": not_distinguishable(found, name, level)}
        for which, name in chosen.items()
    }


def _share_trained_on(features: str, dataset: Dataset) -> float:
    """Share of the dataset whose images the network was trained on; 0 where it is of other images or untrained."""
    card = Path(features) / CARD
    known = read_json(card) if card.is_file() else {}
    data = known.get("data") if isinstance(known, dict) else None
    if not isinstance(data, dict) or data.get("fingerprint") != dataset.fingerprint:
        return 0.0
    return float(data["n"]) / len(dataset)


def _networks(features: str, settings: "DetectSettings", device: str) -> list[Taps]:
    """The network to look through, and the untrained one where it is wanted and another."""
    names = [features, *([UNTRAINED] if settings.untrained and features != UNTRAINED else [])]
    return [load_taps(name, seed=settings.seed, device=device) for name in names]


def _generated(
    files: Sequence[Path], settings: "DetectSettings"
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Facts and images of every generator that matches."""
    facts: list[dict[str, Any]] = []
    images: dict[str, Tensor] = {}
    seeds: dict[str, NDArray[np.int64]] = {}
    for path in files:
        samples = read_samples(path)
        meta = samples.meta
        name = meta["plan_name"]
        if settings.match and not any(fnmatch(name, pattern) for pattern in settings.match):
            continue
        if name in images:
            raise ConfigError(f"Plans must differ in name, but two are {name}; leave one out.")
        made_by = meta["plan"]["provenance"]
        facts.append(
            {
                "name": name,
                "plan_hash": meta["plan_hash"],
                "sampler": made_by.get("sampler") or made_by.get("preset") or name,
                "grid": made_by.get("grid", ""),
                "nfe": meta["nfe"],
                "model": meta["model"]["fingerprint"],
                "seeds": meta["seeds"],
                "images_sha256": samples.sha256,
            }
        )
        seeds[name] = samples.seeds[: settings.images]
        images[name] = torch.from_numpy(samples.images[: settings.images].transpose(0, 3, 1, 2).copy())
    if not images:
        raise ConfigError(f"--match must fit the name of a plan, but none fits {', '.join(settings.match)}.")
    _require_same(seeds)
    return facts, images


def _require_same(seeds: Mapping[str, NDArray[np.int64]]) -> None:
    first, *others = seeds
    for other in others:
        n = min(len(seeds[first]), len(seeds[other]))  # too few images are another mistake
        if (seeds[first][:n] != seeds[other][:n]).any():
            raise ConfigError(
                f"Generators must have the same seeds, so that no noise is both learnt from and judged, but those of "
                f"{first} begin with {seeds[first][0]}, of {other} with {seeds[other][0]}; draw one of them anew."
            )


def _sides(
    dataset: Dataset, generated: Mapping[str, Tensor], settings: "DetectSettings"
) -> tuple[Sides, dict[str, Any]]:
    rows = real_rows(len(dataset), images=settings.images, bank=settings.bank, seed=settings.seed)
    bank, real, null = (dataset.batch(part) for part in rows)
    facts = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "split": "all",
        "n_bank": len(bank),
        "n_real": len(real),
        "n_null": len(null),
        "levels": len(levels(bank, real, null)),
    }
    return make_sides(bank, real, null, generated, same_levels=settings.same_levels), facts


def _headline(taps: Taps, settings: "DetectSettings") -> dict[str, str]:
    features = "multilid+scale" if settings.scale else "multilid"
    values = (taps.id, features, FAIR, settings.classifiers[0])
    return dict(zip(_KEYS, values, strict=True))


def _described(
    sides: Sides, networks: Sequence[Taps], settings: "DetectSettings", equal: dict[str, int], track: Track
) -> Iterator[tuple[dict[str, str], dict[str, Array]]]:
    """What is used, and the columns of every class; counts queries that equal an image of the bank on the way."""
    names = [name for name in COLUMNS if settings.scale or name != "multilid+scale"]
    for i, taps in enumerate(networks):
        distances = fair_distances(
            sides, taps, settings.k, progress=track(f"distances, {taps.id}", unit="batch")
        )
        if i == 0:
            equal |= {name: duplicates(found) for name, found in distances.items()}
        for features in names if i == 0 else names[:1]:
            yield _key(taps.id, features, FAIR), _columns(features, distances)
        if settings.published:
            distances = published_distances(
                sides,
                taps,
                settings.k,
                min(settings.bank, settings.images),
                progress=track(f"published protocol, {taps.id}", unit="minibatch"),
            )
            yield _key(taps.id, "multilid", PUBLISHED), _columns("multilid", distances)
    pooled = networks[0].pooled
    progress = track(f"features, {pooled.id}", unit="class")
    yield (
        _key(pooled.id, POOLED, FAIR),
        {name: extract(sides.queries[name], pooled).astype(np.float64) for name in progress(sides.queries)},
    )


def _key(network: str, features: str, protocol: str) -> dict[str, str]:
    return {"network": network, "features": features, "protocol": protocol}


def _columns(features: str, distances: Mapping[str, Array]) -> dict[str, Array]:
    return {name: COLUMNS[features](found) for name, found in distances.items()}


def _row(name: str, found: Separation, null: Separation, level: float) -> dict[str, Any]:
    """All numbers of one class against the real images; of the null control itself, minus null is left out."""
    row: dict[str, Any] = {
        "generator": name,
        "accuracy": found.accuracy(level).as_json(),
        "auroc": found.auroc(level).as_json(),
        "tpr": found.sensitivity(level).as_json(),
    }
    if name != NULL:
        gains = found.minus(null, level)
        row |= {
            f"{what}_minus_null": gain.as_json()
            for what, gain in zip(("accuracy", "auroc"), gains, strict=True)
        }
        row |= {"null_accuracy": null.accuracy(level).value, "null_auroc": null.auroc(level).value}
    return row


def _identified(found: Identification) -> dict[str, Any]:
    return {
        "classes": list(found.classes),
        "confusion": found.confusion.tolist(),
        "accuracy": found.accuracy.as_json(),
        "chance": 1 / len(found.classes),
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows, flat: a number is followed by its bounds, `_low` and `_high`."""
    flat = []
    for row in rows:
        one: dict[str, Any] = {}
        for name, value in row.items():
            if isinstance(value, Mapping):
                one |= {name: value["value"]}
                one |= dict(zip((f"{name}_low", f"{name}_high"), value["interval"], strict=True))
            else:
                one[name] = value
        flat.append(one)
    return pd.DataFrame(flat)
