"""What counts as the same measurement: rounding is allowed, and nothing else."""

import pytest

from fewstep.pipeline.agreement import SAME_IMAGES, agreement

CERTIFIED = {
    "value": 4.0,
    "interval": [3.0, 5.0],
    "level": 0.95,
    "interval_method": "half-sampling",
    "replicates": [4.1, 3.9, 4.3],
    "resample_seed": 0,
    "mean_term": 1e-9,
    "trace_term": 4.0,
    "rank": 59,
    "baseline": 0.3,
    "baseline_source": "halves",
}


def outcome(found, tolerance=SAME_IMAGES, certified=CERTIFIED):
    return agreement("FD", certified, found, tolerance).outcome


def scaled(value, factor):
    if isinstance(value, list):
        return [one * factor for one in value]
    return value * factor if isinstance(value, float) else value


def test_rounding_of_another_machine_is_allowed():
    """A hundredth of the tolerance, as features of two processors have it, and a tiny part of a large value."""
    found = {name: scaled(value, 1 + SAME_IMAGES / 100) for name, value in CERTIFIED.items()}
    assert outcome(found | {"mean_term": 1.2e-9}) == "held"


@pytest.mark.parametrize("field", CERTIFIED)
def test_every_field_counts(field):
    """Of numbers a hundredth, ten times what is allowed at the most; of counts one; of lists the length, too."""
    value = CERTIFIED[field]
    other = {str: "other", int: lambda v: v + 1}.get(type(value), lambda v: scaled(v, 1.01))
    changed = 0.5 if field == "mean_term" else other if isinstance(other, str) else other(value)
    assert outcome(CERTIFIED | {field: changed}) == "failed"
    if field != "value":
        assert outcome({name: kept for name, kept in CERTIFIED.items() if name != field}) == "failed"
    if isinstance(value, list):
        assert outcome(CERTIFIED | {field: value[:-1]}) == "failed"
    if field == "replicates":
        assert outcome(CERTIFIED | {field: value[::-1]}) == "failed"


def test_other_images_lie_in_the_interval():
    other = CERTIFIED | {"value": 4.9, "interval": [4.0, 5.8], "replicates": [1.0], "trace_term": 4.9}
    assert outcome(other, None) == "held"
    assert outcome(other | {"value": 5.1}, None) == "failed"
    assert outcome(other | {"baseline": 0.2}, None) == "failed"
    assert outcome(CERTIFIED, None, {"value": 4.0}) == "failed", "no interval, nothing to lie in"


def test_metrics_of_one_side_only():
    assert outcome(None) == "failed"
    assert outcome(CERTIFIED, certified=None) == "failed"
