"""The statistics file: what samples are compared with, and everything that its numbers depend on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep._typing import AnyArray, Float
from fewstep.checks import ConfigError, DataError
from fewstep.data.cifar10 import load_arrays
from fewstep.data.packed import load_dataset
from fewstep.files import atomic_file, canonical_json, parse_json, require_space, sha256_file
from fewstep.metrics.extractor import Extractor, extract, feature_batches
from fewstep.metrics.statistics import CHUNK, Accumulator, Array, Statistics
from fewstep.progress import Progress

SCHEMA = "fewstep.statistics/1"
KEEP_BYTES = 256 * 2**20
"""Features up to this size stay in the file; without them only Fréchet distances can be computed."""

_META = {"schema", "provenance", "extractor", "dataset", "n", "n_heldout", "chunk_size", "sha256", "versions"}
_OPTIONAL = {"baselines", "source"}


class Baseline(NamedTuple):
    """Distance of n real images to the reference, and which images these were."""

    value: float
    source: str


@dataclass(frozen=True)
class Reference:
    """Reference statistics, held-out real features, and where both come from.

    Attributes: statistics: of the reference split. heldout: features (m, D) of real images outside it, or
        None. meta: the JSON part of the file.
    """

    statistics: Statistics
    heldout: NDArray[np.float32] | None
    meta: dict[str, Any]
    baselines: dict[int, Baseline | None] = field(default_factory=dict, repr=False, compare=False)
    """Distances of real images to the reference by number of images, kept for the next set of samples."""

    @property
    def protocol(self) -> dict[str, Any]:
        """What a certificate says about the reference."""
        dataset = self.meta["dataset"]
        return {
            "name": dataset["name"],
            "split": dataset["split"],
            "n": self.meta["n"],
            "sha256": self.meta["sha256"],
        }


def build_reference(
    data_dir: str | Path,
    extractor: Extractor,
    *,
    split: str = "train",
    heldout: str | None = "test",
    progress: Progress[int] = iter,
) -> Reference:
    """Extract the features of a packed dataset.

    Args: split: the reference. heldout: real images for the baseline, where valid serves for a test that is not there;
        left out where the dataset has no such split, or where it is the reference itself.
    Raises: DataError: the dataset is damaged, or its images do not fit the extractor.
    """
    dataset = load_dataset(data_dir, split)
    statistics = _measure(dataset.images, extractor, progress)
    if heldout == "test":
        heldout = dataset.heldout_split
    if heldout == split or heldout not in dataset.manifest["splits"]:
        heldout = None
    kept = None
    if heldout is not None:
        images = load_dataset(data_dir, heldout).images
        kept = extract(images[: _most_rows(extractor)], extractor, progress=progress)
    facts = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "split": split,
        "heldout_split": heldout,
    }
    return Reference(statistics, kept, _meta(statistics, extractor.protocol, facts, kept, "fewstep"))


def _most_rows(extractor: Extractor) -> int:
    return KEEP_BYTES // (extractor.dim * np.dtype(np.float32).itemsize)


def _measure(images: NDArray[np.uint8], extractor: Extractor, progress: Progress[int]) -> Statistics:
    if len(images) <= _most_rows(extractor):
        return Statistics.from_features(extract(images, extractor, progress=progress))
    accumulator = Accumulator()
    for rows in feature_batches(images, extractor, progress=progress):
        accumulator.update(rows)
    return Statistics.from_moments(accumulator.moments())


def from_features(
    features: Float[AnyArray, "n d"],
    extractor: dict[str, str],
    *,
    dataset: dict[str, Any],
    heldout: Float[AnyArray, "m d"] | None = None,
) -> Reference:
    """Reference statistics of features that are at hand.
    Args: extractor: `Extractor.protocol`. dataset: name, fingerprint, split, heldout_split.
    Raises: DataError: fewer than two rows, NaN or infinity.
    """
    statistics = Statistics.from_features(features)
    return Reference(statistics, heldout, _meta(statistics, extractor, dataset, heldout, "fewstep"))


def _meta(
    statistics: Statistics,
    extractor: dict[str, str],
    dataset: dict[str, Any],
    heldout: NDArray[np.float32] | None,
    provenance: str,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "provenance": provenance,
        "extractor": extractor,
        "dataset": dataset,
        "n": statistics.n,
        "n_heldout": 0 if heldout is None else len(heldout),
        "chunk_size": CHUNK,
        "sha256": _digest(statistics, extractor),
        "versions": {"fewstep": _version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def _version() -> str:
    try:
        return version("fewstep")
    except PackageNotFoundError:
        return "source tree"


def _digest(statistics: Statistics, extractor: dict[str, str]) -> str:
    """Hash of what a distance depends on; the same for equal statistics, whatever else the file holds."""
    digest = hashlib.sha256(canonical_json([statistics.n, extractor]).encode())
    for array in (statistics.mu, statistics.cov):
        digest.update(np.ascontiguousarray(array, "<f8").tobytes())
    return digest.hexdigest()


def save_reference(
    path: str | Path,
    reference: Reference,
    *,
    baselines: Mapping[int, Baseline] | None = None,
    compact: bool = False,
) -> None:
    """Write the .npz: mu, sigma, sqrt_factor, meta and, where kept, features and heldout.

    Args: baselines: by number of images, of `baseline.real_baseline`; None keeps those that meta holds. compact:
        write mu and sigma alone, in float32 and compressed. A hash of its own names the rounded numbers, so that
        distances to them and to the others are not taken for the same.
    Raises: DataError: the disk is too full.
    """
    meta = dict(reference.meta)
    if baselines is not None:
        meta["baselines"] = {str(n): found._asdict() for n, found in sorted(baselines.items())}
    arrays, meta = (_compact if compact else _whole)(reference, meta)
    arrays["meta"] = np.array(json.dumps(meta, sort_keys=True))
    require_space(path, sum(array.nbytes for array in arrays.values()))
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        (np.savez_compressed if compact else np.savez)(file, **arrays)


def _whole(reference: Reference, meta: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    statistics = reference.statistics
    kept = {"features": statistics.features, "heldout": reference.heldout}
    arrays = {"mu": statistics.mu, "sigma": statistics.cov, "sqrt_factor": statistics.factor}
    return arrays | {name: array for name, array in kept.items() if array is not None}, meta


def _compact(reference: Reference, meta: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    statistics = reference.statistics
    mu, sigma = statistics.mu.astype(np.float32), statistics.cov.astype(np.float32)
    rounded = Statistics(statistics.n, mu.astype(np.float64), sigma.astype(np.float64))
    changed = {"n_heldout": 0, "sha256": _digest(rounded, meta["extractor"])}
    return {"mu": mu, "sigma": sigma}, meta | changed


def load_reference(path: str | Path, *, extractor: Extractor | None = None) -> Reference:
    """Read what `save_reference` wrote.

    Args: extractor: the one that the samples will be seen through.
    Raises: DataError: the file is missing, damaged or foreign. ConfigError: it is of another extractor.
    """
    arrays = {} if _is_pickle(path) else _read(path)
    if "meta" not in arrays:
        raise DataError(
            f"{path} must be a statistics file of fewstep, but it has no meta; import statistics of another program "
            "with fewstep stats FILE --extractor NAME --out stats.npz."
        )
    meta = _parse_meta(str(arrays["meta"]), path)
    missing = [name for name in ("mu", "sigma") if name not in arrays]
    if missing:
        raise DataError(
            f"{path} must hold {', '.join(missing)}, but does not; make it again with fewstep stats."
        )
    _check_moments(arrays["mu"], arrays["sigma"], path)
    dim = len(arrays["mu"])
    for name, columns in (("features", True), ("heldout", True), ("sqrt_factor", False)):
        array = arrays.get(name)
        if array is not None and (array.dtype.kind != "f" or not np.isfinite(array).all()):
            raise DataError(
                f"{path}: {name} must hold finite numbers, got others, of {array.dtype}; make it again."
            )
        if array is not None and (array.ndim != 2 or array.shape[1 if columns else 0] != dim):
            raise DataError(
                f"{path}: {name} must belong to {dim} features, got {array.shape}; make it again."
            )
        if array is not None and not np.isfinite(array).all():
            raise DataError(f"{path}: {name} must be finite, but holds NaN or infinity; make it again.")
    for name, rows in (("features", meta["n"]), ("heldout", meta["n_heldout"])):
        if name in arrays and len(arrays[name]) != rows:
            raise DataError(
                f"{path}: {name} must be of {rows} images, as meta says, got {len(arrays[name])}; make it again."
            )
    statistics = Statistics(
        meta["n"],
        arrays["mu"].astype(np.float64, copy=False),
        arrays["sigma"].astype(np.float64, copy=False),
        features=arrays.get("features"),
        factor=arrays.get("sqrt_factor"),  # compact files have none: it is computed when asked for
    )
    if _digest(statistics, meta["extractor"]) != meta["sha256"]:
        raise DataError(f"{path} must hold the numbers that its hash names, but they differ; make it again.")
    if extractor is not None:
        require_extractor(meta, extractor, path)
    return Reference(statistics, arrays.get("heldout"), meta, _baselines(meta, path))


def require_extractor(meta: dict[str, Any], extractor: Extractor, path: str | Path = "the reference") -> None:
    """Refuse a reference that was seen through another extractor.
    Raises: ConfigError: naming both.
    """
    theirs, ours = meta["extractor"], extractor.protocol
    if theirs != ours:
        field = next(name for name in ours if theirs.get(name) != ours[name])
        difference = "" if field == "id" else f" ({field} {theirs.get(field)} against {ours[field]})"
        raise ConfigError(
            f"{path} was made with the extractor {theirs.get('id')}, the samples are to be seen through "
            f"{ours['id']}{difference}; make the statistics again or choose the same extractor."
        )


def import_reference(
    path: str | Path, extractor: Extractor, *, name: str, split: str = "train", n: int | None = None
) -> Reference:
    """Read statistics of another program, which have neither features nor held-out images.

    Taken are the .npz with `mu` and `sigma` of pytorch-fid, clean-fid, EDM and TTUR; those of ADM, of which the
    extractor inception2015-spatial takes `mu_s` and `sigma_s`; the .pkl of EDM2, of which it takes `fid`; and an .npz
    of images as `arr_0`, which are measured here and keep their features. Nothing in a file of statistics says which
    extractor it is of: the caller vouches for it, the certificate tells by the provenance "external", and
    `meta["source"]` names the file, its sha256, and the arrays that were taken.

    Args: name, split: of the dataset, for certificates. n: number of images behind the statistics, where known; only
        files of EDM2 and images tell it themselves. Images beside statistics may be other ones, and are not read.
    Raises: DataError: the file is damaged, has neither, is of another number of features, holds what no mean and
        covariance can be, or tells another n.
    """
    mu, sigma = ("mu_s", "sigma_s") if extractor.id.endswith("-spatial") else ("mu", "sigma")
    arrays, stated_n = _read_pickle(path) if _is_pickle(path) else (_read_foreign(path, mu, sigma), None)
    if mu in arrays and sigma in arrays:
        taken = [mu, sigma]
        _check_foreign(arrays[mu], arrays[sigma], (mu, sigma), path)
        if len(arrays[mu]) != extractor.dim:
            raise DataError(
                f"{path} holds statistics of {len(arrays[mu])} features, but {extractor.id} has "
                f"{extractor.dim}; choose the extractor it was made with."
            )
    elif "arr_0" in arrays:
        taken, images = ["arr_0"], arrays["arr_0"]
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(
                f"{path}: arr_0 must be uint8 images (N, H, W, C), got {images.dtype} {images.shape}; convert it."
            )
        stated_n = len(images)
    else:
        raise DataError(
            f"{path} must hold {mu} and {sigma}, or images arr_0; got {', '.join(arrays) or 'nothing'}."
        )
    if n is not None and (n < 2 or stated_n not in (None, n)):
        raise DataError(
            f"{path} must be of n = {n} images, 2 or more, but tells {stated_n or 'nothing'}; give no n."
        )
    n = stated_n if n is None else n
    if taken == ["arr_0"]:
        statistics = Statistics.from_features(extract(arrays["arr_0"], extractor))
    else:
        statistics = Statistics(n, arrays[mu].astype(np.float64), arrays[sigma].astype(np.float64))
    dataset = {"name": name, "fingerprint": None, "split": split, "heldout_split": None}
    meta = _meta(statistics, extractor.protocol, dataset, None, "external")
    meta["source"] = {"file": Path(path).name, "sha256": sha256_file(path), "arrays": taken}
    return Reference(statistics, None, meta)


def _read_foreign(path: str | Path, mu: str, sigma: str) -> dict[str, NDArray[Any]]:
    """Mean and covariance, or all arrays where they are not there."""
    arrays = _read(path, otherwise="get it again", only=(mu, sigma, "meta"))
    if SCHEMA in str(arrays.get("meta")):
        raise DataError(
            f"{path} must be statistics of another program, but fewstep has written it; use it as it is, as "
            "--reference."
        )
    return arrays if mu in arrays and sigma in arrays else _read(path, otherwise="get it again")


def _is_pickle(path: str | Path) -> bool:
    return Path(path).suffix.lower() in (".pkl", ".pickle")


def _read_pickle(path: str | Path) -> tuple[dict[str, NDArray[Any]], int | None]:
    """Mean and covariance in a file of EDM2, and the number of images; no code in it is run."""
    try:
        content = load_arrays(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise DataError(
            f"{path} must be a file of statistics, but cannot be read ({error.strerror})."
        ) from None
    found, n = content.get("fid"), content.get("num_images")
    if not isinstance(found, dict) or not {"mu", "sigma"} <= found.keys():
        raise DataError(f"{path} must hold fid with mu and sigma; got {', '.join(content) or 'nothing'}.")
    if n is not None and not (isinstance(n, int) and n >= 2):
        raise DataError(f"{path} must be of 2 images or more, but tells {n!r}; get it again.")
    return {"mu": found["mu"], "sigma": found["sigma"]}, n


def _check_foreign(mu: Any, sigma: Any, names: tuple[str, str], path: str | Path) -> None:
    """Raise where these are no mean and covariance."""
    for name, array in zip(names, (mu, sigma), strict=True):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise DataError(f"{path}: {name} must be an array of real numbers, got {kind}.")
    _check_moments(mu, sigma, path)
    scale = float(np.abs(sigma).max(initial=0))
    # programs that average in float32 are symmetric to some 1e-7 of the largest number
    if (np.diagonal(sigma) < -1e-5 * scale).any() or np.abs(sigma - sigma.T).max(initial=0) > 1e-5 * scale:
        raise DataError(
            f"{path}: {names[1]} must be a covariance, symmetric and without negative variances, but is not; get it "
            "again."
        )


def export_reference(path: str | Path, reference: Reference) -> None:
    """Write `mu` and `sigma` alone, as pytorch-fid and EDM read them."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, mu=reference.statistics.mu, sigma=reference.statistics.cov)


def _read(
    path: str | Path, *, otherwise: str = "make it with fewstep stats", only: tuple[str, ...] = ()
) -> dict[str, NDArray[Any]]:
    """All arrays of a file, or some of them."""
    try:
        with Path(path).open("rb") as opened:
            if opened.read(2) != b"PK":
                raise ValueError("it is no .npz")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files if not only or name in only}
        return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}
    except FileNotFoundError:
        raise DataError(f"{path} must exist, but there is no such file; {otherwise}.") from None
    except Exception as error:  # numpy raises zipfile, zlib, OS and value errors for damaged archives
        raise DataError(
            f"{path} must be an .npz of statistics, but it is damaged ({error}); {otherwise}."
        ) from None


def _parse_meta(text: str, path: str | Path) -> dict[str, Any]:
    meta = parse_json(text, f"{path}: meta")
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        found = meta.get("schema") if isinstance(meta, dict) else type(meta).__name__
        raise DataError(
            f"{path} must have the schema {SCHEMA}, got {found}; make it again with fewstep stats."
        )
    if set(meta) - _OPTIONAL != _META:
        wrong = ", ".join(sorted((set(meta) - _OPTIONAL) ^ _META))
        raise DataError(
            f"{path}: meta has missing or unknown fields ({wrong}); make it again with fewstep stats."
        )
    for name, holds in _HOLD.items():
        if not holds(meta[name]):
            raise DataError(
                f"{path}: meta has {meta[name]!r:.60} as {name}; make it again with fewstep stats."
            )
    return meta


def _is_dataset(value: Any) -> bool:
    """Whether it names a dataset, and a record of files where there is one."""
    if not isinstance(value, dict) or not value.keys() >= {"name", "fingerprint", "split", "heldout_split"}:
        return False
    files = value.get("files", {"path": "", "sha256": {}})
    return (
        all(isinstance(value[field], str) and value[field] for field in ("name", "split"))
        and all(
            value[field] is None or isinstance(value[field], str)
            for field in ("fingerprint", "heldout_split")
        )
        and isinstance(files, dict)
        and isinstance(files.get("path"), str)
        and isinstance(files.get("sha256"), dict)
    )


_HOLD: dict[str, Callable[[Any], bool]] = {
    "extractor": lambda value: (
        isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("id", "dtype"))
    ),
    "dataset": _is_dataset,
    "n": lambda value: (
        value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 2)
    ),
}


def _baselines(meta: dict[str, Any], path: str | Path) -> dict[int, Baseline | None]:
    try:
        return {
            int(n): Baseline(float(found["value"]), str(found["source"]))
            for n, found in meta.get("baselines", {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{path}: baselines must give a value and a source by number of images; make it again."
        ) from None


def _check_moments(mu: Array, sigma: Array, path: str | Path) -> None:
    if mu.dtype.kind not in "fiu" or sigma.dtype.kind not in "fiu":
        raise DataError(f"{path} must hold real numbers as mu and sigma, got {mu.dtype} and {sigma.dtype}.")
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise DataError(f"{path} must hold mu (D,) and sigma (D, D), got {mu.shape} and {sigma.shape}.")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise DataError(f"{path} must hold finite numbers, but has NaN or infinity; make it again.")
