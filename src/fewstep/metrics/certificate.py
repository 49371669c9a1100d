"""The certificate: measurements with their intervals and everything that they depend on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fewstep.checks import ConfigError, DataError
from fewstep.files import canonical_json, read_json, sha256_text, write_json
from fewstep.metrics.uncertainty import SPREADS, Difference, paired_difference

SCHEMA = "fewstep.certificate/2"
QUANTISATION = "floor(127.5x+128)"
UNKNOWN_BYTES = "as found"  # images that another program wrote: whoever wrote them vouches for the rounding
UNKNOWN = {"seeds": "none", "codec": "unknown", "quantisation": UNKNOWN_BYTES, "ema": None, "dtype": None}
"""Field of the protocol -> how it says that nobody knows."""


def build_certificate(
    *,
    subject: Mapping[str, Any],
    protocol: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Any] | None,
    environment: Mapping[str, str | None],
    files: Mapping[str, Mapping[str, Any]],
    spec_key: str | None = None,
) -> dict[str, Any]:
    """Put a certificate together, with the hash of its content.

    Args: subject: model (fingerprint, name), plan (hash, name, sampler, grid, nfe, and the plan itself as `steps`),
        data (name and fingerprint of the reference's dataset), images_sha256, draw (guidance, batch_size). Model,
        plan and draw are None for images of another program. protocol: all that must agree before two certificates
        are compared. results: of `evaluate_samples`. costs: nfe, network_calls, network_ms_per_image,
        wall_seconds, device. environment: fewstep, git_commit, python, torch, numpy, platform. files: role ->
        path, relative to the certificate, and sha256, of every file that it was made from.
    Raises: DataError: a field is missing, unknown or of the wrong type.
    """
    certificate: dict[str, Any] = {
        "schema": SCHEMA,
        "subject": dict(subject),
        "protocol": dict(protocol),
        "results": {name: dict(record) for name, record in results.items()},
        "costs": None if costs is None else dict(costs),
        "environment": dict(environment),
        "files": {role: dict(record) for role, record in files.items()},
        "spec_key": spec_key,
    }
    # what is not valid, such as infinity, may have no hash
    _require_valid(certificate | {"sha256": "0" * 64}, "the certificate")
    certificate["sha256"] = content_sha256(certificate)
    return certificate


def require_parts(where: str, **parts: Any) -> None:
    """Raise DataError where a certificate of these parts would not be valid, before there are results.

    Args: where: what they are of. parts: of `build_certificate`, as many as are known.
    """
    found = (_check(value, _FORM[name], name) for name, value in parts.items())
    problem = next((problem for problem in found if problem is not None), None)
    if problem is not None:
        raise DataError(f"{where} must make a valid certificate, but {problem}; make it again.")


def content_sha256(certificate: Mapping[str, Any]) -> str:
    """Hash of all but the hash itself."""
    return sha256_text(canonical_json({key: value for key, value in certificate.items() if key != "sha256"}))


def write_certificate(path: str | Path, certificate: dict[str, Any]) -> None:
    """Write by rename.
    Raises: DataError: it is not a valid certificate.
    """
    _require_valid(certificate, str(path))
    write_json(path, certificate)


def read_certificate(path: str | Path) -> dict[str, Any]:
    """Read and validate.
    Raises: DataError: the file is missing, truncated, foreign, was changed, or has missing or unknown fields.
    """
    certificate = read_json(path)
    _require_valid(certificate, str(path))
    if content_sha256(certificate) != certificate["sha256"]:
        raise DataError(
            f"{path} must be as it was written, but its content does not have the sha256 that it states; "
            "get an unchanged copy, or evaluate again."
        )
    valid: dict[str, Any] = certificate
    return valid


def _require_valid(value: Any, where: str) -> None:
    problem = certificate_problem(value)
    if problem is not None:
        raise DataError(f"{where} must be a certificate ({SCHEMA}), but {problem}; evaluate again.")


def certificate_problem(value: Any) -> str | None:
    """What is wrong with a certificate's content; None when nothing is."""
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        return f"its schema is {schema!r:.80}"
    return _problem(value, _FORM, "")


def protocol_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first field in which two certificates' protocols differ, with both values; None when they agree."""
    return _difference(a["protocol"], b["protocol"], "protocol")


def not_known(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Fields of the protocol that one of two certificates leaves open, as those of another program's images do."""
    unknown = [
        name for name, nothing in UNKNOWN.items() if nothing in (a["protocol"][name], b["protocol"][name])
    ]
    # None says that there were none, but of images of another program, which have no seeds either, nobody knows
    return [*unknown, "conditions"] if "seeds" in unknown else unknown


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Difference]:
    """Differences A - B of two certificates' distances, with paired intervals.

    Raises: ConfigError: the protocols differ in what is known of both, or no distance is common.
    """
    known = (a["protocol"].keys() | b["protocol"].keys()) - set(not_known(a, b))
    difference = protocol_difference(
        *({"protocol": {name: c["protocol"].get(name) for name in known}} for c in (a, b))
    )
    if difference is not None:
        raise ConfigError(f"Certificates must share one protocol to be compared, but {difference}.")
    found = {}
    for name in sorted(a["results"].keys() & b["results"].keys()):
        one, other = a["results"][name], b["results"][name]
        if "replicates" in one and "replicates" in other:
            _require_paired(name, one, other)
            found[name] = paired_difference(
                one["value"],
                other["value"],
                one["replicates"],
                other["replicates"],
                one["level"],
                spread=SPREADS[one["interval_method"]],
            )
    if not found:
        raise ConfigError(
            "Certificates must share a distance to be compared; evaluate both with the metric fd or kid."
        )
    return found


def _require_paired(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise DataError where replicates of two certificates cannot be compared, as fewstep never writes them."""
    n, m = len(one["replicates"]), len(other["replicates"])
    methods = {one.get("interval_method"), other.get("interval_method")}
    if n != m or n < 2 or len(methods) > 1 or not methods <= SPREADS.keys() or "level" not in one:
        raise DataError(
            f"Replicates of {name} must be as many on both sides, with the level and the method of their interval; got "
            f"{n} and {m}, by {' and '.join(sorted(map(str, methods)))}; evaluate again."
        )


def _difference(a: Any, b: Any, name: str) -> str | None:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted(a.keys() | b.keys()):
            found = _difference(a.get(key), b.get(key), f"{name}.{key}")
            if found is not None:
                return found
        return None
    return None if a == b else f"{name} is {a!r} and {b!r}"


Check = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _is_interval(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]
    )


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_level(value: Any) -> bool:
    return _is_number(value) and 0 < value < 1


def _is_recorded(value: Any) -> bool:
    """Whether it says where files stand and what their hashes are."""
    return (
        isinstance(value, dict)
        and value.keys() - {"column"} == {"path", "sha256"}  # of prompts, the column of a table
        and ("column" not in value or _is_text(value["column"]))
        and _is_text(value["path"])
        and isinstance(value["sha256"], dict)
        and all(map(_is_sha256, value["sha256"].values()))
    )


class _Optional(dict[str, Any]):
    """Fields that may be absent."""


class _Nullable(dict[str, Any]):
    """The form of an object in whose place there may be null."""


def _is_conditions(value: Any) -> bool:
    """Whether it says which stored conditions images had."""
    return (
        isinstance(value, dict)
        and value.keys() == {"sha256", "rows"}
        and _is_sha256(value["sha256"])
        and _is_count(value["rows"])
    )


_RESULT = {
    "value": _is_number,
    "optional": _Optional(
        interval=_is_interval,
        level=_is_level,
        interval_method=_is_text,
        replicates=_is_numbers,
        resample_seed=_is_count,
        mean_term=_is_number,
        trace_term=_is_number,
        rank=_is_count,
        baseline=_or_null(_is_number),
        baseline_source=_or_null(_is_text),
        n=_is_count,
        split_sd=_is_number,
        slope=_is_number,
        r2=_is_number,
        median_ratio=_is_number,
        null_sd=_is_number,
    ),
}

_MODEL = {"fingerprint": _or_null(_is_sha256), "name": _is_text}
_PLAN = {
    "hash": _is_text,
    "name": _is_text,
    "sampler": _is_text,
    "grid": lambda value: value is None or isinstance(value, str),
    "nfe": _is_count,
    "steps": lambda value: isinstance(value, dict),
}
_COSTS = {
    "nfe": _is_count,
    "network_calls": _is_count,
    "network_ms_per_image": _is_number,
    "wall_seconds": _is_number,
    "device": _is_text,
}
_MEASURED_BY = {
    "reference": {"name": _is_text, "split": _is_text, "n": _or_null(_is_count), "sha256": _is_sha256},
    "extractor": {"id": _is_text, "weights_sha256": _is_sha256, "resize": _is_text, "dtype": _is_text},
}
_FORM: dict[str, Any] = {
    "schema": _is_text,
    "subject": {
        "model": _Nullable(_MODEL),
        "plan": _Nullable(_PLAN),
        "draw": _Nullable({"guidance": _is_number, "batch_size": _is_count}),
        "data": {"name": _is_text, "fingerprint": _or_null(_is_sha256)},
        "images_sha256": _is_sha256,
    },
    "protocol": {
        "preset": _or_null(_is_text),
        "n": _is_count,
        "seeds": _is_text,
        **_MEASURED_BY,
        "codec": _is_text,
        "quantisation": _is_text,
        "ema": _or_null(_is_flag),
        "dtype": _or_null(_is_text),
        "evaluation": {
            "metrics": lambda value: isinstance(value, list) and all(map(_is_text, value)),
            "level": _is_level,
            "resamples": _is_count,
            "seed": _is_count,
        },
        # the first certificates do not say: none
        "optional": _Optional(conditions=_or_null(_is_conditions), fitted=_Nullable(_MEASURED_BY)),
    },
    "results": _RESULT,
    "costs": _Nullable(_COSTS),
    "environment": {
        "fewstep": _is_text,
        "git_commit": _or_null(_is_text),
        "python": _is_text,
        "torch": _is_text,
        "numpy": _is_text,
        "platform": _is_text,
    },
    "files": lambda value: isinstance(value, dict) and all(map(_is_recorded, value.values())),
    "spec_key": _or_null(_is_text),
    "sha256": _is_sha256,
}
"""Field -> check of its value, or the form of the object it holds; `results` maps any name to its form."""


def _problem(value: Any, form: dict[str, Any], name: str) -> str | None:
    if not isinstance(value, dict):
        return f"{name.rstrip('.')} is {value!r:.80} instead of an object"
    optional = form.get("optional", _Optional())
    required = {key: check for key, check in form.items() if key != "optional"}
    missing, unknown = required.keys() - value.keys(), value.keys() - required.keys() - optional.keys()
    if missing or unknown:
        word, fields = ("lacks", missing) if missing else ("has unknown", unknown)
        return f"it {word} {', '.join(name + field for field in sorted(fields)):.200}"
    for key, check in {**required, **optional}.items():
        if key not in value:
            continue
        found = (
            _results_problem(value[key])
            if key == "results" and not name
            else _check(value[key], check, name + key)
        )
        if found is not None:
            return found
    return None


def _results_problem(results: Any) -> str | None:
    if not isinstance(results, dict) or not results:
        return "it has no results"
    problems = (_problem(record, _RESULT, f"results.{name}.") for name, record in results.items())
    return next((problem for problem in problems if problem is not None), None)


def _check(value: Any, check: Any, name: str) -> str | None:
    if isinstance(check, _Nullable) and value is None:
        return None
    if isinstance(check, dict):
        return _problem(value, check, f"{name}.")
    return None if check(value) else f"{name} is {value!r:.80}"
