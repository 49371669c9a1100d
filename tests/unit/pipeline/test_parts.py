"""Where long work is cut, so that a break loses little."""

import pytest

from fewstep.pipeline.parts import CALLS, IMAGES, part_ranges, tiled


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


@pytest.mark.parametrize("n, batch_size", [(1000, 250), (1000, 64), (2000, 250), (50_000, 128), (10, 250)])
@pytest.mark.parametrize("shards", [2, 3, 8])
def test_workers_have_equal_shares(n, batch_size, shards):
    parts = list(part_ranges(n, batch_size=batch_size, nfe=10, shards=shards))
    assert [row for part in parts for row in part] == list(range(n))
    assert all(len(part) % batch_size == 0 for part in parts[:-1])
    loads = [sum(map(len, parts[k::shards])) for k in range(shards)]
    batches = -(-n // batch_size)
    rounds = -(-len(parts) // shards)
    assert max(loads) <= (-(-batches // shards) + rounds - 1) * batch_size
    assert len(parts) >= min(shards, batches) or max(loads) == -(-batches // shards) * batch_size


def test_the_whole_is_put_together_however_it_was_cut(tmp_path):
    cut = {shards: list(part_ranges(1000, batch_size=50, shards=shards)) for shards in (2, 3)}
    found = {rows: tmp_path / f"{rows.start}" for shards in cut for rows in cut[shards][: shards - 1]}
    assert tiled(found, 1000) is None
    found |= dict.fromkeys(cut[3], tmp_path / "last")
    assert [rows for rows, _ in tiled(found, 1000)][-1].stop == 1000
    assert tiled({range(0, 1100): tmp_path}, 1000) is None
