"""Blocks of seeds: that they never meet, what plans say of them, and that what was seen is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import VPLinear
from fewstep.pipeline.seeds import BLOCK, SeedBlocks, require_unseen
from fewstep.sampling.presets import PRESETS

BLOCKS = SeedBlocks(5, {"fit": 3, "gate": 0, "choice": 2}, prefix="align-")


def plan(**seeds):
    return replace(PRESETS["ddim"](VPLinear(), 3), name="seen", provenance={"seeds": seeds})


def test_blocks_are_ranges_by_purpose_a_million_apart():
    assert dict(BLOCKS) == {
        "fit": range(5, 8),
        "gate": range(1_000_005, 1_000_005),
        "choice": range(2_000_005, 2_000_007),
    }
    assert list(BLOCKS) == ["fit", "gate", "choice"] and len(BLOCKS) == 3
    with pytest.raises(KeyError):
        BLOCKS["refine"]


def test_provenance_names_first_and_last_of_what_is_not_empty():
    assert BLOCKS.as_json() == {"align-fit": [5, 7], "align-choice": [2_000_005, 2_000_006]}
    assert SeedBlocks(0, {"trials": 1}).as_json() == {"trials": [0, 0]}


@given(
    st.integers(0, 2_000_000_000),
    st.dictionaries(st.text(min_size=1), st.integers(0, BLOCK), min_size=1, max_size=6),
)
def test_no_two_blocks_share_a_seed(first, sizes):
    blocks = [block for block in SeedBlocks(first, sizes).values() if len(block)]
    assert [len(block) for block in blocks] == [size for size in sizes.values() if size]
    assert all(a[-1] < b[0] for a, b in zip(blocks[:-1], blocks[1:], strict=True))
    assert not blocks or blocks[0][0] >= first


def test_a_block_of_more_than_a_million_is_refused():
    SeedBlocks(0, {"polish": BLOCK})
    with pytest.raises(ConfigError, match="at most 1,000,000, .* got 1,000,001 for s-polish"):
        SeedBlocks(0, {"trials": 3, "polish": BLOCK + 1}, prefix="s-")


@pytest.mark.parametrize("seeds", [range(7, 9), range(4, 6), [6], BLOCKS])
def test_seeds_that_found_a_plan_are_refused(seeds):
    with pytest.raises(ConfigError, match=r"5-7 \(align-fit of seen\); choose other seeds"):
        require_unseen(plan(**BLOCKS.as_json()), seeds)


def test_each_block_is_looked_at():
    with pytest.raises(ConfigError, match=r"2000005-2000006 overlaps 2000006-2000010 \(trials of seen\)"):
        require_unseen(plan(trials=[2_000_006, 2_000_010]), BLOCKS)


def test_other_seeds_pass_and_so_do_empty_blocks():
    require_unseen(plan(**BLOCKS.as_json()), range(8, 1000))
    require_unseen(plan(trials=[1_000_005, 1_000_005]), BLOCKS)  # where the empty block would begin
    require_unseen(replace(plan(), provenance={}), BLOCKS)
