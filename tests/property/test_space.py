"""Decisions of a search and the plans that they build."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewstep.diffusion.schedule import EDM, Flow, VPLinear
from fewstep.methods.s3.space import Choice, Real, Space, completed, plan_of, resized, within

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

spaces = st.builds(
    Space,
    st.sampled_from([VPLinear(), EDM(), Flow()]),
    st.integers(2, 6),
    to_zero=st.booleans(),
    max_order=st.integers(1, 4),
    analytic=st.booleans(),
)


@st.composite
def points(draw):
    """A space, the decisions of one of its plans, and the plan."""
    space = draw(spaces)
    decisions = {}

    def ask(name, allowed):
        if isinstance(allowed, Choice):
            value = draw(st.sampled_from(allowed.options))
        elif name.startswith("gap_"):
            # lengths are read back relative to their mean, which must not lead out of the range
            value = draw(st.floats(0.3, 3.0))
        else:
            assert isinstance(allowed, Real)
            value = draw(st.floats(max(allowed.low, -0.9), allowed.high))
        assert within(value, allowed)
        decisions[name] = value
        return value

    return space, decisions, space.build(ask)


@given(points())
@few
def test_decisions_are_read_back_from_their_plan(point):
    space, decisions, plan = point
    gaps = [value for name, value in decisions.items() if name.startswith("gap_")]
    found = space.decisions(plan)
    assert found is not None
    assert set(found) == set(decisions)
    for name, value in decisions.items():
        if name.startswith("gap_"):
            value /= sum(gaps) / len(gaps)
        # lengths and the end are shares of a range of log-SNRs, and rounded as those are
        assert found[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9, abs=1e-9))
    again = plan_of(space, found)
    assert again.steps == plan.steps
    assert [node.eval for node in again.nodes] == [node.eval for node in plan.nodes]
    assert [n.lambda_ for n in again.nodes] == pytest.approx([n.lambda_ for n in plan.nodes], abs=1e-9)


@given(points(), st.integers(1, 6))
@few
def test_a_plan_of_other_calls_is_none_of_this_space(point, more):
    space, _, plan = point
    assert replace(space, nfe=space.nfe + more, max_order=4).decisions(plan) is None


@given(points(), st.data())
@few
def test_a_step_made_twice_and_left_out_again_changes_its_length_alone(point, data):
    space, decisions, _ = point
    steps = sum(name.startswith("gap_") for name in decisions)
    step = data.draw(st.integers(0, steps - 1))
    twice = resized(decisions, step, 1)
    lengths = [sum(v for name, v in d.items() if name.startswith("gap_")) for d in (decisions, twice)]
    assert lengths[1] == pytest.approx(lengths[0], rel=1e-12), "the copies share what the step covered"
    assert resized(twice, step, -1) == {**decisions, f"gap_{step}": decisions[f"gap_{step}"] / 2}
    larger = replace(space, nfe=space.nfe + 1)
    whole = completed(larger, twice)
    assert whole is not None
    assert plan_of(larger, whole).nfe == space.nfe + 1
