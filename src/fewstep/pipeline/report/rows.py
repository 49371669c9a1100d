"""A certificate as a row of a table; of several certificates of one plan, the one that stands for them."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.checks import ConfigError
from fewstep.files import canonical_json
from fewstep.metrics.certificate import read_certificate
from fewstep.sampling.plan import Plan, plan_from_json

METRIC_NAMES = {"KID": "kid", "precision": "precision", "recall": "recall"}

_VARIANT = re.compile(r"-(\d.*|eta)$")


@dataclass(frozen=True)
class Certified:
    """A certificate, its file, and the plan that it is about."""

    path: Path
    content: Mapping[str, Any]
    plan: Plan

    @property
    def hash(self) -> str:
        """Identity of the plan."""
        return str(self.content["subject"]["plan"]["hash"])

    @property
    def parents(self) -> set[str]:
        """Hashes of the plans that this one was made from; a stage may have left a plan as it was."""
        stated = self.plan.provenance.get("parents")
        parents = stated if isinstance(stated, list) else []
        return {parent for parent in parents if isinstance(parent, str)} - {self.hash}

    @property
    def own(self) -> bool:
        """Whether the plan was made for the model, be it from a known sampler."""
        return "preset" not in self.plan.provenance or bool(self.parents)

    @property
    def is_generator(self) -> bool:
        """Whether the images are of a generator, a model of one network call with its own plan."""
        return "generator" in self.plan.provenance

    @property
    def measured(self) -> tuple[Any, Any]:
        """What two certificates of one plan agree on."""
        return self.content["subject"]["images_sha256"], self.content["results"]


def read_certified(path: Path) -> Certified:
    """Read a certificate of images that were drawn by a plan.

    Raises:
        DataError: The file is not a certificate.
        ConfigError: It is of images of another program, or its plan cannot be executed.
    """
    content = read_certificate(path)
    if content["subject"]["plan"] is None or content["costs"] is None:
        raise ConfigError(
            f"Certificates must name a sampling plan to be ranked, but {path} is of images that another program made; "
            "set it beside others with fewstep compare."
        )
    try:
        plan = plan_from_json(content["subject"]["plan"]["steps"])
    except ConfigError as error:
        raise ConfigError(f"{path}: subject.plan.steps: {error}") from None
    return Certified(path, content, plan)


def one_per_plan(certified: Sequence[Certified]) -> list[tuple[Certified, int]]:
    """The certificate that stands for each plan, and how many ancestors of the plan are known.

    A stage that leaves a plan as it was hands it on, so that one plan is sampled and certified more than once. The
    certificate whose plan has the fewest ancestors stands for all of a plan.

    Raises:
        ConfigError: Two certificates of one plan have other images or results.
    """
    known: dict[str, list[Certified]] = defaultdict(list)
    for one in certified:
        known[one.hash].append(one)
    standing = []
    for same in known.values():
        first, *others = sorted(same, key=lambda one: (_ancestors(one, known), *_order(one)))
        for other in others:
            if other.measured != first.measured:
                raise ConfigError(
                    f"Certificates of one plan must agree, but {first.path} and {other.path} have other images or "
                    f"results of {first.plan.name}; leave one out."
                )
        standing.append((first, _ancestors(first, known)))
    return standing


def _order(one: Certified) -> tuple[str, ...]:
    """What decides between certificates whose plans have equally many ancestors; not where they stand."""
    return one.plan.sampler, one.plan.name, canonical_json(one.content)


def _ancestors(
    one: Certified, known: Mapping[str, Sequence[Certified]], seen: frozenset[str] = frozenset()
) -> int:
    """Length of the chain of certified parents that were made for the model, too; known samplers do not count."""
    seen |= {one.hash}
    lengths = [
        1 + min(_ancestors(parent, known, seen) for parent in known[name])
        for name in one.parents - seen
        if any(parent.own for parent in known.get(name, ()))
    ]
    return max(lengths, default=0)


def row(certified: Certified, metric: str, fitted: str | None, ancestors: int) -> dict[str, Any]:
    """The columns of `Results.frame` that follow from one certificate.

    Args: fitted: name of the distance in the features that plans were fitted in, None where there are none.

    Raises:
        ConfigError: The certificate lacks the metric.
    """
    content = certified.content
    stated, costs, results = content["subject"]["plan"], content["costs"], content["results"]
    if metric not in results:
        raise ConfigError(
            f"Certificates must share a distance to be ranked by, but {certified.path} has no {metric}; evaluate anew."
        )
    frechet = results[metric]
    beside = results.get(fitted, {}) if fitted else {}
    columns = {
        "sampler": stated["sampler"],
        "grid": stated["grid"] or "own",
        "family": family(stated["sampler"]),
        "nfe": stated["nfe"],
        **_measurement("fd", frechet),
        **_measurement("fitted", beside),
        "baseline": _number(frechet.get("baseline")),
        "mean_term": _number(frechet.get("mean_term")),
        "trace_term": _number(frechet.get("trace_term")),
    }
    for prefix, column in METRIC_NAMES.items():
        columns |= _measurement(column, next((results[name] for name in results if kind(name) == prefix), {}))
    return columns | {
        "calls": costs["network_calls"],
        "ms": float(costs["network_ms_per_image"]),
        "seconds": float(costs["wall_seconds"]),
        "device": costs["device"],
        "own": certified.own,
        "ancestors": ancestors,
        "reduced_width": certified.plan.uses_sub_networks,
        "plan": stated["name"],
        "plan_hash": stated["hash"],
        "certificate": certified.path.name,
        "resampling": _resampling(frechet),
        "fitted_resampling": _resampling(beside),
    }


def family(sampler: str) -> str:
    """The name shared by the variants of a sampler: `dpmpp-3m-exact` and `dpmpp-2m` are both `dpmpp`."""
    return _VARIANT.sub("", sampler)


def kind(metric: str) -> str:
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
