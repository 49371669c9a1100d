"""Certificates as one table, and what the table says: who wins, by how much, and whether that is certain."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fewstep.checks import ConfigError, DataError
from fewstep.files import canonical_json
from fewstep.metrics.certificate import protocol_difference, read_certificate
from fewstep.metrics.uncertainty import Difference, Interval, paired_difference
from fewstep.pipeline.samples import files_in

HEADLINE_NFE = 10
BASELINE_SAMPLER = "ddim"
SEARCHED = "searched"  # sampler of plans that fewstep search found
NARROWED = "+widths"  # in the name of those that fewstep stepaware made
FRECHET_NAMES = ("FD", "FID", "cleanFID")
METRIC_NAMES = {"KID": "kid", "precision": "precision", "recall": "recall"}

_VARIANT = re.compile(r"-(\d.*|eta)$")


@dataclass(frozen=True)
class Results:
    """All certificates of one protocol.

    Attributes:
        frame: One row per certificate, best first within each NFE. Columns: sampler, grid, family, nfe, rank,
            fd, fd_low, fd_high, baseline, mean_term, trace_term, kid, kid_low, kid_high, precision,
            precision_low, precision_high, recall, recall_low, recall_high, calls, ms, seconds, device, plan,
            plan_hash, certificate, of_preset (FD of a plan made for the model over that of the best preset of its NFE),
            certain (whether the interval of their difference excludes zero; None where there is no of_preset),
            resampling (seed, level and replicates of the distance, or None). A measurement that was not made
            is NaN.
        metric: Name of the Fréchet distance as the certificates spell it, for example `FD-classifier#1k`.
        level: Probability that the intervals of that distance state; None when there are none.
        protocol: What every certificate agrees on.
        model: `fingerprint` and `name` of the model that all samples come from.
        data: `fingerprint` and `name` of the dataset.
        environments: The distinct software environments, as key-value mappings.
    """

    frame: pd.DataFrame
    metric: str
    level: float | None
    protocol: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    environments: list[dict[str, Any]]

    @property
    def baseline(self) -> float:
        """Mean distance of real against real images at equal N; NaN when no certificate has it."""
        return float(self.frame["baseline"].mean())

    @property
    def steps(self) -> list[int]:
        """The numbers of evaluations that were measured, in rising order."""
        return sorted({int(nfe) for nfe in self.frame["nfe"]})

    @property
    def searched(self) -> list[int]:
        """The numbers of evaluations at which a searched plan was measured, in rising order."""
        return sorted({int(nfe) for nfe in self.frame["nfe"][self.frame["sampler"] == SEARCHED]})

    @property
    def own(self) -> bool:
        """Whether any plan was made for the model."""
        return bool(self.frame["sampler"].map(made_here).any())

    @property
    def headline_nfe(self) -> int:
        """The number of evaluations nearest to ten, of those with a searched plan if there are any."""
        return min(self.searched or self.steps, key=lambda nfe: (abs(nfe - HEADLINE_NFE), nfe))

    def at(self, nfe: int) -> pd.DataFrame:
        """Rows of one number of evaluations, best first."""
        return self.frame[self.frame["nfe"] == nfe]


def read_results(paths: Sequence[Path]) -> Results:
    """Read certificates that may be ranked together.

    Args:
        paths: Certificate files, or folders that hold them.

    Raises:
        DataError: There is no certificate, or a file is not one.
        ConfigError: Two certificates differ in protocol, model or data, or certify the same plan, or one
            lacks the distance of the first.
    """
    files = sorted(set(files_in(paths, ".json")))
    if not files:
        raise DataError(
            "There must be a certificate to report on, got none; make some with fewstep evaluate."
        )
    certificates = [read_certificate(file) for file in files]
    metric = _frechet_name(certificates[0], files[0])
    for file, certificate in zip(files, certificates, strict=True):
        _require_same_protocol(certificates[0], certificate, files[0], file)
    rows = [_row(certificate, metric, file) for file, certificate in zip(files, certificates, strict=True)]
    frame = pd.DataFrame(rows).sort_values(["nfe", "fd", "sampler", "grid", "plan_hash"], ignore_index=True)
    _require_unique(frame)
    frame.insert(4, "rank", frame.groupby("nfe").cumcount() + 1)
    _compare_with_presets(frame)
    first = certificates[0]
    distinct = {canonical_json(c["environment"]): c["environment"] for c in certificates}
    return Results(
        frame=frame,
        metric=metric,
        level=first["results"][metric].get("level"),
        protocol=first["protocol"],
        model=first["subject"]["model"],
        data=first["subject"]["data"],
        environments=[distinct[key] for key in sorted(distinct)],
    )


def family(sampler: str) -> str:
    """The name shared by the variants of a sampler: `dpmpp-3m-exact` and `dpmpp-2m` are both `dpmpp`."""
    return _VARIANT.sub("", sampler)


def made_here(sampler: str) -> bool:
    """Whether plans of that name were made for the model: searched, narrowed or aligned; all others are presets."""
    return sampler == SEARCHED or "+" in sampler


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference:
    """Distance of row `a` minus that of row `b`, with its interval.

    Rows that were resampled at the same indices are compared as pairs. Others are taken as independent, which
    errs towards a tie: samples from shared seeds move together.
    """
    one, other = a["resampling"], b["resampling"]
    if one is not None and other is not None and one[:2] == other[:2]:
        return paired_difference(a["fd"], b["fd"], one[2], other[2], one[1])
    value = a["fd"] - b["fd"]
    margin = math.hypot(a["fd_high"] - a["fd_low"], b["fd_high"] - b["fd_low"]) / 2
    return Difference(value, Interval(value - margin, value + margin))


def distinguishable(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether the interval of the difference of two rows excludes zero."""
    low, high = difference(a, b).interval
    return low > 0 or high < 0


def best_lines(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """The best (sampler, grid) of each group; groups measured at every NFE first, then best first.

    A line is scored by its mean log ratio to the best row at each NFE, over the lines of its group that cover
    the most NFEs: a line must not win by having been measured where winning is easy.

    Args:
        frame: Rows of `Results.frame`.
        by: Column that names the group: `family` or `sampler`.

    Returns:
        Columns: the group column, sampler, grid, score.
    """
    # A distance of zero has no logarithm; any positive floor far below real values keeps the order.
    fd = frame["fd"].clip(lower=1e-12)
    ratio = (fd / fd.groupby(frame["nfe"]).transform("min")).map(math.log)
    keys = list(dict.fromkeys([by, "sampler", "grid"]))
    lines = (
        frame.assign(ratio=ratio)
        .groupby(keys, as_index=False)
        .agg(score=("ratio", "mean"), covers=("nfe", "nunique"))
    )
    lines = lines[lines["covers"] == lines.groupby(by)["covers"].transform("max")]
    lines = lines.sort_values(["covers", "score", "sampler", "grid"], ascending=[False, True, True, True])
    lines = lines.drop_duplicates(by)
    return lines.drop(columns="covers").reset_index(drop=True)


def shown_lines(frame: pd.DataFrame, by: str, count: int) -> pd.DataFrame:
    """As `best_lines`, the first `count`, the searched plans before all others though they have few NFEs."""
    lines = best_lines(frame, by)
    ours = lines["sampler"] == SEARCHED
    return pd.concat([lines[ours], lines[~ours]]).head(count)


def winners(results: Results) -> list[dict[str, Any]]:
    """For every NFE the best row, the best row of another sampler, and how they compare.

    Returns:
        Dictionaries with keys nfe, best, runner_up (a row or None), lead (runner-up minus best, a Difference
        or None), ties (how many rows cannot be told from the best), candidates, searched (the best searched
        plan or None), own (the best plan made for the model or None), preset (the best of the others or None), ddim
        (the best DDIM row or None), ratio (FD of the best over FD of DDIM, or None).
    """
    table = []
    for nfe in results.steps:
        rows = results.at(nfe).to_dict("records")
        best, others = rows[0], rows[1:]
        runner_up = next((row for row in others if row["sampler"] != best["sampler"]), None)
        searched = next((row for row in rows if row["sampler"] == SEARCHED), None)
        own = next((row for row in rows if made_here(row["sampler"])), None)
        preset = next((row for row in rows if not made_here(row["sampler"])), None)
        ddim = next((row for row in rows if row["sampler"] == BASELINE_SAMPLER), None)
        table.append(
            {
                "nfe": nfe,
                "best": best,
                "runner_up": runner_up,
                "lead": None if runner_up is None else difference(runner_up, best),
                "ties": sum(not distinguishable(best, row) for row in others),
                "candidates": len(rows),
                "searched": searched,
                "own": own,
                "preset": preset,
                "ddim": ddim,
                "ratio": best["fd"] / ddim["fd"] if ddim and ddim["fd"] > 0 else None,
            }
        )
    return table


def reference_row(results: Results) -> dict[str, Any]:
    """The row that stands for "many steps": DDIM's best at its largest NFE; without DDIM, the best at any."""
    rows = results.frame[results.frame["sampler"] == BASELINE_SAMPLER]
    rows = results.frame if rows.empty else rows
    record: dict[str, Any] = rows[rows["nfe"] == rows["nfe"].max()].iloc[0].to_dict()
    return record


def calls_to_match(results: Results, row: Mapping[str, Any], reference: Mapping[str, Any]) -> int | None:
    """The fewest evaluations at which the sampler and grid of `row` are as good as `reference`.

    As good: at or below the upper end of the reference's interval. None if that was not seen.
    """
    frame = results.frame
    line = frame[(frame["sampler"] == row["sampler"]) & (frame["grid"] == row["grid"])]
    reached = line[line["fd"] <= reference["fd_high"]]["nfe"]
    return None if reached.empty else int(reached.min())


def flat_metrics(results: Results) -> dict[str, Any]:
    """Flat numbers and names for `dvc metrics`: per NFE the best sampler, its distance and DDIM's.

    Where there is a searched plan also its distance, and as `ratio` that over the distance of the best preset.
    """
    flat: dict[str, Any] = {"metric": results.metric, "certificates": len(results.frame)}
    if not math.isnan(results.baseline):
        flat["fd.real"] = results.baseline
    for entry in winners(results):
        best, key = entry["best"], f"nfe{entry['nfe']:03d}"
        flat[f"{key}.best"] = best["sampler"]
        flat[f"{key}.grid"] = best["grid"]
        flat[f"{key}.fd"] = best["fd"]
        if entry["ddim"] is not None:
            flat[f"{key}.fd_ddim"] = entry["ddim"]["fd"]
        if entry["searched"] is not None:
            flat[f"{key}.searched"] = entry["searched"]["fd"]
            if not math.isnan(entry["searched"]["of_preset"]):
                flat[f"{key}.ratio"] = entry["searched"]["of_preset"]
        if entry["own"] is not None:
            flat[f"{key}.own"] = entry["own"]["sampler"]
            flat[f"{key}.fd_own"] = entry["own"]["fd"]
    return flat


def number(value: float) -> str:
    """Three digits that matter, no powers of ten: 0.0312, 3.12, 31.2, 312, 3124; a dash for no value."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def _frechet_name(certificate: Mapping[str, Any], path: Path) -> str:
    for name in certificate["results"]:
        if _kind(name) in FRECHET_NAMES:
            return str(name)
    raise DataError(
        f"{path} must hold a Fréchet distance to be ranked by, got {', '.join(certificate['results'])}; "
        "evaluate with the metric fd."
    )


def _require_same_protocol(a: Mapping[str, Any], b: Mapping[str, Any], path_a: Path, path_b: Path) -> None:
    """Numbers are ranked only if they answer the same question about the same model."""
    difference = protocol_difference(a, b)
    for part in ("model", "data"):
        one, other = a["subject"][part], b["subject"][part]
        if one != other and difference is None:
            difference = f"{part} is {one} and {other}"
    if difference is not None:
        raise ConfigError(
            f"Certificates must share one protocol to be ranked, but {difference} in {path_a} and {path_b}; "
            "report on them separately."
        )


def _row(certificate: Mapping[str, Any], metric: str, path: Path) -> dict[str, Any]:
    plan, costs, results = certificate["subject"]["plan"], certificate["costs"], certificate["results"]
    if plan is None or costs is None:
        raise ConfigError(
            f"Certificates must name a sampling plan to be ranked, but {path} is of images that another program made; "
            "set it beside others with fewstep compare."
        )
    if metric not in results:
        raise ConfigError(
            f"Certificates must share a distance to be ranked by, but {path} has no {metric}; evaluate anew."
        )
    frechet = results[metric]
    row = {
        "sampler": plan["sampler"],
        "grid": plan["grid"] or "own",
        "family": family(plan["sampler"]),
        "nfe": plan["nfe"],
        **_measurement("fd", frechet),
        "baseline": _number(frechet.get("baseline")),
        "mean_term": _number(frechet.get("mean_term")),
        "trace_term": _number(frechet.get("trace_term")),
    }
    for prefix, column in METRIC_NAMES.items():
        row |= _measurement(column, next((results[name] for name in results if _kind(name) == prefix), {}))
    return row | {
        "calls": costs["network_calls"],
        "ms": float(costs["network_ms_per_image"]),
        "seconds": float(costs["wall_seconds"]),
        "device": costs["device"],
        "plan": plan["name"],
        "plan_hash": plan["hash"],
        "certificate": path.name,
        "resampling": _resampling(frechet),
    }


def _compare_with_presets(frame: pd.DataFrame) -> None:
    """Add the columns of_preset and certain."""
    presets = frame[~frame["sampler"].map(made_here)].drop_duplicates("nfe").to_dict("records")
    best = {row["nfe"]: row for row in presets if row["fd"] > 0}
    pairs = [
        (row, best.get(row["nfe"]) if made_here(row["sampler"]) else None) for row in frame.to_dict("records")
    ]
    frame["of_preset"] = [math.nan if preset is None else row["fd"] / preset["fd"] for row, preset in pairs]
    certain = [None if preset is None else distinguishable(row, preset) for row, preset in pairs]
    frame["certain"] = pd.Series(certain, dtype=object)


def _kind(metric: str) -> str:
    """`FD` of `FD-classifier#1k`, `cleanFID` of `cleanFID#50k`."""
    return metric.split("-", 1)[0].split("#", 1)[0]


def _measurement(column: str, record: Mapping[str, Any]) -> dict[str, float]:
    """Value and interval; a value without an interval has one of width zero."""
    value = _number(record.get("value"))
    low, high = record.get("interval", (value, value))
    return {column: value, f"{column}_low": float(low), f"{column}_high": float(high)}


def _resampling(record: Mapping[str, Any]) -> tuple[int, float, list[float]] | None:
    """Seed, level and replicates; two rows with equal seed and level are paired."""
    if not {"resample_seed", "level", "replicates"} <= record.keys():
        return None
    return record["resample_seed"], record["level"], record["replicates"]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _require_unique(frame: pd.DataFrame) -> None:
    repeated = frame[frame.duplicated("plan_hash", keep=False)]
    if not repeated.empty:
        names: Sequence[str] = repeated["certificate"].head(2).tolist()
        raise ConfigError(
            f"each plan must have one certificate, but plan {repeated['plan'].iloc[0]} has {len(repeated)} "
            f"({' and '.join(names)}); leave one out."
        )
