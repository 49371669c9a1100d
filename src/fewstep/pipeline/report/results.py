"""Certificates as one table, and what the table says: who wins, by how much, and whether that is significant."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fewstep.checks import ConfigError, DataError
from fewstep.files import canonical_json
from fewstep.metrics.certificate import protocol_difference
from fewstep.metrics.evaluate import name_in
from fewstep.metrics.non_inferiority import Measured, NonInferiority, non_inferior
from fewstep.metrics.uncertainty import Difference, Interval, paired_difference
from fewstep.pipeline.report.rows import Certified, kind, one_per_plan, read_certified, row
from fewstep.pipeline.samples import files_in
from fewstep.sampling.plan import Plan

HEADLINE_NFE = 10
BASELINE_SAMPLER = "ddim"
FRECHET_NAMES = ("FD", "FID", "cleanFID")


@dataclass(frozen=True)
class Results:
    """All certificates of one protocol.

    Attributes:
        frame: One row per plan, best first within each NFE. Columns: sampler, grid, family, nfe, rank,
            fd, fd_low, fd_high, baseline, mean_term, trace_term, kid, kid_low, kid_high, precision,
            precision_low, precision_high, recall, recall_low, recall_high, calls, ms, seconds, device, own (whether the
            plan was made for the model; other plans are presets), ancestors (how many plans it was made from, one after
            the other), reduced_width (whether it calls the network at reduced width), plan, plan_hash, certificate,
            of_preset (FD of an own plan over that of the best preset of its NFE), significant (whether the interval of
            their difference excludes zero; None where there is no of_preset), resampling (seed, level and replicates of
            the distance, or None). Where plans were fitted in other features than those that rank: fitted, fitted_low,
            fitted_high, fitted_resampling (the distance in these), fitted_of_preset (as of_preset, in these), and
            fitted_only (whether an own plan is significantly ahead of the best preset there alone). A measurement that
            was not made is NaN.
        plans: The plan of each row, by hash.
        metric: Name of the Fréchet distance as the certificates spell it, for example `FD-classifier#1k`.
        fitted_metric: The same in the features that plans were fitted in; None where these are the only ones.
        level: Probability that the intervals of that distance state; None when there are none.
        protocol: What every certificate agrees on.
        model: `fingerprint` and `name` of the model that all samples come from, but those of generators.
        generators: Their names by fingerprint: models of one network call, which stand beside the plans of the model.
        data: `fingerprint` and `name` of the dataset.
        environments: The distinct software environments, as key-value mappings.
    """

    frame: pd.DataFrame
    plans: Mapping[str, Plan]
    metric: str
    fitted_metric: str | None
    level: float | None
    protocol: dict[str, Any]
    model: dict[str, Any]
    generators: dict[str, str]
    data: dict[str, Any]
    environments: list[dict[str, Any]]

    @property
    def baseline(self) -> float:
        """Mean distance of real against real images at equal N; NaN when no certificate has it."""
        return float(self.frame["baseline"].mean())

    @property
    def models(self) -> set[str | None]:
        """Fingerprints of all models that samples may come from."""
        return {self.model.get("fingerprint"), *self.generators}

    @property
    def steps(self) -> list[int]:
        """The numbers of evaluations that were measured, in rising order."""
        return sorted({int(nfe) for nfe in self.frame["nfe"]})

    @property
    def own(self) -> bool:
        """Whether any plan was made for the model."""
        return bool(self.frame["own"].any())

    @property
    def headline_nfe(self) -> int:
        """The number of evaluations nearest to ten, of those with an original plan if there are any."""
        steps = {int(nfe) for nfe in self.frame["nfe"][originals(self.frame)]} or self.steps
        return min(steps, key=lambda nfe: (abs(nfe - HEADLINE_NFE), nfe))

    def row(self, plan_hash: str) -> dict[str, Any] | None:
        """The row of a plan; None for one without a certificate."""
        rows: list[dict[str, Any]] = self.frame[self.frame["plan_hash"] == plan_hash].to_dict("records")
        return rows[0] if rows else None

    def at(self, nfe: int) -> pd.DataFrame:
        """Rows of one number of evaluations, best first."""
        return self.frame[self.frame["nfe"] == nfe]


def read_results(paths: Sequence[Path]) -> Results:
    """Read certificates that may be ranked together.

    Args:
        paths: Certificate files, or folders that hold them.

    Raises:
        DataError: There is no certificate, or a file is not one.
        ConfigError: Two certificates differ in protocol, model or data, or in what they say of one plan, or one lacks
            the distance of the first.
    """
    files = sorted(set(files_in(paths, ".json")))
    if not files:
        raise DataError(
            "There must be a certificate to report on, got none; make some with fewstep evaluate."
        )
    certified = sorted((read_certified(file) for file in files), key=lambda one: one.is_generator)
    first = certified[0]
    metric, fitted = _frechet_name(first), _fitted_name(first)
    for other in certified[1:]:
        _require_same_protocol(first, other)
    standing = one_per_plan(certified)
    rows = [row(one, metric, fitted, ancestors) for one, ancestors in standing]
    frame = pd.DataFrame(rows).sort_values(["nfe", "fd", "sampler", "grid", "plan_hash"], ignore_index=True)
    frame.insert(4, "rank", frame.groupby("nfe").cumcount() + 1)
    _compare_with_presets(frame)
    environments = [one.content["environment"] for one in certified]
    distinct = {canonical_json(environment): environment for environment in environments}
    return Results(
        frame=frame,
        plans={one.hash: one.plan for one, _ in standing},
        metric=metric,
        fitted_metric=fitted,
        level=first.content["results"][metric].get("level"),
        protocol=first.content["protocol"],
        model=first.content["subject"]["model"],
        generators={model["fingerprint"]: model["name"] for model in _generators(certified)},
        data=first.content["subject"]["data"],
        environments=[distinct[key] for key in sorted(distinct)],
    )


def originals(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows are of plans that were made for the model and start from no other plan."""
    return frame["own"] & frame["ancestors"].eq(0)


def difference(a: Mapping[str, Any], b: Mapping[str, Any], space: str = "fd") -> Difference:
    """Distance of row `a` minus that of row `b`, with its interval.

    Rows that were resampled at the same indices are compared as pairs. Others are taken as independent, which
    errs towards a tie: samples from shared seeds move together.

    Args: space: column of the distance, `fd` or `fitted`.
    """
    resampling = {"fd": "resampling", "fitted": "fitted_resampling"}[space]
    one, other = a[resampling], b[resampling]
    if one is not None and other is not None and one[:2] == other[:2]:
        return paired_difference(a[space], b[space], one[2], other[2], one[1])
    value = a[space] - b[space]
    low, high = f"{space}_low", f"{space}_high"
    margin = math.hypot(a[high] - a[low], b[high] - b[low]) / 2
    return Difference(value, Interval(value - margin, value + margin))


def distinguishable(a: Mapping[str, Any], b: Mapping[str, Any], space: str = "fd") -> bool:
    """Whether the interval of the difference of two rows excludes zero; `space` as in `difference`."""
    low, high = difference(a, b, space).interval
    return low > 0 or high < 0


def as_good(
    a: Mapping[str, Any], b: Mapping[str, Any], margin: float, *, comparisons: int = 1
) -> NonInferiority | None:
    """Whether row `a` was shown to be as good as row `b`, within a margin that is a share of the distance of `b`.

    None for rows without paired replicates: of those nothing is claimed.

    Args:
        a: what is judged.
        b: the target.
        margin: share of the distance of `b`.
        comparisons: from how many rows `a` was picked by these same numbers.
    """
    one, other = a["resampling"], b["resampling"]
    if one is None or other is None or one[:2] != other[:2]:
        return None
    pair = Measured(a["fd"], one[2]), Measured(b["fd"], other[2])
    return non_inferior(*pair, margin, level=one[1], comparisons=comparisons)


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
    """As `best_lines`, the first `count`, original plans before all others though they have few NFEs."""
    lines = best_lines(frame, by)
    first = lines["sampler"].isin(set(frame["sampler"][originals(frame)]))
    return pd.concat([lines[first], lines[~first]]).head(count)


def winners(results: Results) -> list[dict[str, Any]]:
    """For every NFE the best row, the best row of another sampler, and how they compare.

    Returns:
        Dictionaries with keys nfe, best, runner_up (a row or None), lead (runner-up minus best, a Difference
        or None), ties (how many rows are not distinguishable from the best), candidates, original (the best plan that
        was made for the model from no other plan, or None), own (the best plan made for the model or None), preset (the
        best of the others or None), ddim (the best DDIM row or None), ratio (FD of the best over FD of DDIM, or None).
    """
    table = []
    for nfe in results.steps:
        rows = results.at(nfe).to_dict("records")
        best, others = rows[0], rows[1:]
        runner_up = next((row for row in others if row["sampler"] != best["sampler"]), None)
        original = next((row for row in rows if row["own"] and row["ancestors"] == 0), None)
        own = next((row for row in rows if row["own"]), None)
        preset = next((row for row in rows if not row["own"]), None)
        ddim = next((row for row in rows if row["sampler"] == BASELINE_SAMPLER), None)
        table.append(
            {
                "nfe": nfe,
                "best": best,
                "runner_up": runner_up,
                "lead": None if runner_up is None else difference(runner_up, best),
                "ties": sum(not distinguishable(best, row) for row in others),
                "candidates": len(rows),
                "original": original,
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


def calls_to_match(
    results: Results, row: Mapping[str, Any], reference: Mapping[str, Any], margin: float
) -> tuple[int, NonInferiority] | None:
    """The fewest evaluations at which the sampler and grid of `row` are shown to be as good as `reference`.

    By the interval of the paired difference, corrected for all plans of the report, as it is by these numbers that
    `row` was picked. None where nothing was shown.
    """
    frame = results.frame[results.frame["plan_hash"] != reference["plan_hash"]]
    line = frame[(frame["sampler"] == row["sampler"]) & (frame["grid"] == row["grid"])]
    for candidate in line.sort_values(["nfe", "rank"]).to_dict("records"):
        verdict = as_good(candidate, reference, margin, comparisons=len(frame))
        if verdict is not None and verdict.holds:
            return int(candidate["nfe"]), verdict
    return None


def flat_metrics(results: Results) -> dict[str, Any]:
    """Flat numbers and names for `dvc metrics`: per NFE the best sampler, its distance and DDIM's.

    Where there is an original plan also its distance, under the name of its sampler, and as `ratio` that over the
    distance of the best preset.
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
        if (original := entry["original"]) is not None:
            flat[f"{key}.{original['sampler']}"] = original["fd"]
            if not math.isnan(original["of_preset"]):
                flat[f"{key}.ratio"] = original["of_preset"]
            if not math.isnan(original["fitted_of_preset"]):
                flat[f"{key}.fitted_ratio"] = original["fitted_of_preset"]
        if entry["own"] is not None:
            flat[f"{key}.own"] = entry["own"]["sampler"]
            flat[f"{key}.fd_own"] = entry["own"]["fd"]
    return flat


def _fitted_name(certified: Certified) -> str | None:
    """The distance in the features that plans were fitted in."""
    protocol = certified.content["protocol"]
    space = protocol.get("fitted")
    return None if space is None else name_in("FD", space["extractor"], protocol["n"])


def _frechet_name(certified: Certified) -> str:
    names, fitted = certified.content["results"], _fitted_name(certified)
    for name in names:
        if kind(name) in FRECHET_NAMES and name != fitted:
            return str(name)
    raise DataError(
        f"{certified.path} must hold a Fréchet distance to be ranked by, got {', '.join(names)}; "
        "evaluate with the metric fd."
    )


def _generators(certified: Sequence[Certified]) -> list[Mapping[str, Any]]:
    """Models of generators, which several certificates may be of."""
    return [one.content["subject"]["model"] for one in certified if one.is_generator]


def _require_same_protocol(a: Certified, b: Certified) -> None:
    """Numbers are ranked only if they answer the same question about the same model, or about a generator beside it."""
    difference = protocol_difference(a.content, b.content)
    # a generator is a model of its own; it answers what one call can do on the same data
    for part in ("data",) if b.is_generator else ("model", "data"):
        one, other = a.content["subject"][part], b.content["subject"][part]
        if one != other and difference is None:
            difference = f"{part} is {one} and {other}"
    if difference is not None:
        raise ConfigError(
            f"Certificates must share one protocol to be ranked, but {difference} in {a.path} and {b.path}; "
            "report on them separately."
        )


def _compare_with_presets(frame: pd.DataFrame) -> None:
    """Add the columns of_preset, significant, fitted_of_preset and fitted_only."""
    rows = frame.to_dict("records")
    pairs = list(zip(rows, _best_presets(frame, "fd"), strict=True))
    frame["of_preset"] = [math.nan if preset is None else row["fd"] / preset["fd"] for row, preset in pairs]
    significant = [None if preset is None else distinguishable(row, preset) for row, preset in pairs]
    frame["significant"] = pd.Series(significant, dtype=object)
    fitted = list(zip(rows, _best_presets(frame, "fitted"), strict=True))
    frame["fitted_of_preset"] = [
        math.nan if preset is None else row["fitted"] / preset["fitted"] for row, preset in fitted
    ]
    ahead = [
        preset is not None and difference(row, preset, "fitted").interval.high < 0 for row, preset in fitted
    ]
    here = [preset is not None and difference(row, preset).interval.high < 0 for row, preset in pairs]
    frame["fitted_only"] = [there and not here for there, here in zip(ahead, here, strict=True)]


def _best_presets(frame: pd.DataFrame, space: str) -> list[Mapping[str, Any] | None]:
    """For each row of an own plan, the best preset of its number of calls by a distance; None for others."""
    presets = frame[~frame["own"] & frame[space].gt(0)].sort_values(space, kind="stable")
    records: list[dict[str, Any]] = presets.drop_duplicates("nfe").to_dict("records")
    best = {row["nfe"]: row for row in records}
    return [best.get(nfe) if own else None for nfe, own in zip(frame["nfe"], frame["own"], strict=True)]
