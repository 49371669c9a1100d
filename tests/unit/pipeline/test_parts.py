"""Where long work is cut, so that a break loses little."""

import pytest

from fewstep.pipeline.parts import CALLS, IMAGES, part_ranges


@pytest.mark.parametrize(
    "n, batch_size, nfe", [(1, 1, 1), (10_000, 64, 4), (500, 50, 1000), (500, 64, 1000), (9, 250, 10**6)]
)
def test_parts_are_whole_batches_that_leave_nothing_out(n, batch_size, nfe):
    parts = list(part_ranges(n, batch_size=batch_size, nfe=nfe))
    assert [row for part in parts for row in part] == list(range(n))
    assert all(len(part) % batch_size == 0 for part in parts[:-1])
    assert all(len(part) <= max(IMAGES, batch_size) for part in parts)
    assert all(len(part) * nfe <= max(CALLS, batch_size * nfe) for part in parts)


def test_a_plan_of_many_calls_has_more_parts():
    assert len(list(part_ranges(500, batch_size=50, nfe=1000))) == 5
    assert len(list(part_ranges(500, batch_size=50, nfe=20))) == 1
