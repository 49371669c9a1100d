"""The certificate: measurements with their intervals and everything that they depend on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fewstep.checks import ConfigError, DataError
from fewstep.files import read_json, write_json
from fewstep.metrics.uncertainty import Difference, paired_difference

SCHEMA = "fewstep.certificate/1"
QUANTISATION = "floor(127.5x+128)"


def build_certificate(
    *,
    model: Mapping[str, Any],
    plan: Mapping[str, Any],
    data: Mapping[str, Any],
    n: int,
    seeds: str,
    reference: Mapping[str, Any],
    extractor: Mapping[str, str],
    results: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Any],
    environment: Mapping[str, str | None],
    samples_sha256: str,
    dtype: str = "float32",
    ema: bool = True,
    spec_key: str | None = None,
) -> dict[str, Any]:
    """Put a certificate together.

    Args: model: fingerprint, name. plan: hash, name, sampler, grid, nfe. data: name, fingerprint (of the
        reference's dataset). reference: `Reference.protocol`. extractor: `Extractor.protocol`. results: of
        `evaluate_samples`. costs: nfe, network_calls, network_ms_per_image, wall_seconds, device.
        environment: fewstep, git_commit, python, torch, numpy, platform. dtype: of the network calls.
    Raises: DataError: a field is missing, unknown or of the wrong type.
    """
    certificate = {
        "schema": SCHEMA,
        "subject": {"model": dict(model), "plan": dict(plan), "data": dict(data)},
        "protocol": {
            "n": n,
            "seeds": seeds,
            "reference": dict(reference),
            "extractor": dict(extractor),
            "quantisation": QUANTISATION,
            "ema": ema,
            "dtype": dtype,
        },
        "results": {name: dict(record) for name, record in results.items()},
        "costs": dict(costs),
        "environment": dict(environment),
        "samples_sha256": samples_sha256,
        "spec_key": spec_key,
    }
    _require_valid(certificate, "the certificate")
    return certificate


def write_certificate(path: str | Path, certificate: dict[str, Any]) -> None:
    """Write by rename.
    Raises: DataError: it is not a valid certificate.
    """
    _require_valid(certificate, str(path))
    write_json(path, certificate)


def read_certificate(path: str | Path) -> dict[str, Any]:
    """Read and validate.
    Raises: DataError: the file is missing, truncated, foreign, or has missing or unknown fields.
    """
    certificate = read_json(path)
    _require_valid(certificate, str(path))
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
        return f"its schema is {schema!r}"
    return _problem(value, _FORM, "")


def protocol_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first field in which two certificates' protocols differ, with both values; None when they agree."""
    return _difference(a["protocol"], b["protocol"], "protocol")


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Difference]:
    """Differences A - B of the Fréchet distances of two certificates, with paired intervals.

    Raises: ConfigError: the protocols differ, no distance is common, or the halves were cut differently.
    """
    difference = protocol_difference(a, b)
    if difference is not None:
        raise ConfigError(f"Certificates must share one protocol to be compared, but {difference}.")
    found = {}
    for name in sorted(a["results"].keys() & b["results"].keys()):
        one, other = a["results"][name], b["results"][name]
        if "replicates" not in one or "replicates" not in other:
            continue
        if one["resample_seed"] != other["resample_seed"] or one["level"] != other["level"]:
            raise ConfigError(
                f"{name} was resampled with another seed or level; evaluate both with equal settings."
            )
        found[name] = paired_difference(
            one["value"], other["value"], one["replicates"], other["replicates"], one["level"]
        )
    if not found:
        raise ConfigError(
            "Certificates must share a Fréchet distance to be compared; evaluate with the metric fd."
        )
    return found


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


class _Optional(dict[str, Any]):
    """Fields that may be absent."""


_RESULT = {
    "value": _is_number,
    "optional": _Optional(
        interval=_is_interval,
        level=lambda value: _is_number(value) and 0 < value < 1,
        interval_method=_is_text,
        replicates=_is_numbers,
        resample_seed=_is_count,
        mean_term=_is_number,
        trace_term=_is_number,
        rank=_is_count,
        baseline=_or_null(_is_number),
        baseline_source=_or_null(_is_text),
        n=_is_count,
    ),
}

_FORM: dict[str, Any] = {
    "schema": _is_text,
    "subject": {
        "model": {"fingerprint": _or_null(_is_sha256), "name": _is_text},
        "plan": {
            "hash": _is_text,
            "name": _is_text,
            "sampler": _is_text,
            "grid": lambda value: value is None or isinstance(value, str),
            "nfe": _is_count,
        },
        "data": {"name": _is_text, "fingerprint": _or_null(_is_sha256)},
    },
    "protocol": {
        "n": _is_count,
        "seeds": _is_text,
        "reference": {"name": _is_text, "split": _is_text, "n": _or_null(_is_count), "sha256": _is_sha256},
        "extractor": {"id": _is_text, "weights_sha256": _is_sha256, "resize": _is_text, "dtype": _is_text},
        "quantisation": _is_text,
        "ema": _is_flag,
        "dtype": _is_text,
    },
    "results": _RESULT,
    "costs": {
        "nfe": _is_count,
        "network_calls": _is_count,
        "network_ms_per_image": _is_number,
        "wall_seconds": _is_number,
        "device": _is_text,
    },
    "environment": {
        "fewstep": _is_text,
        "git_commit": _or_null(_is_text),
        "python": _is_text,
        "torch": _is_text,
        "numpy": _is_text,
        "platform": _is_text,
    },
    "samples_sha256": _is_sha256,
    "spec_key": _or_null(_is_text),
}
"""Field -> check of its value, or the form of the object it holds; `results` maps any name to its form."""


def _problem(value: Any, form: dict[str, Any], name: str) -> str | None:
    if not isinstance(value, dict):
        return f"{name.rstrip('.')} is {value!r} instead of an object"
    optional = form.get("optional", _Optional())
    required = {key: check for key, check in form.items() if key != "optional"}
    missing, unknown = required.keys() - value.keys(), value.keys() - required.keys() - optional.keys()
    if missing or unknown:
        word, fields = ("lacks", missing) if missing else ("has unknown", unknown)
        return f"it {word} {', '.join(name + field for field in sorted(fields))}"
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
    if isinstance(check, dict):
        return _problem(value, check, f"{name}.")
    return None if check(value) else f"{name} is {value!r}"
