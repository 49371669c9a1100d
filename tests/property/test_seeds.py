"""Seeds as text, and the blocks of seeds that searches keep apart."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.checks import ConfigError
from fewstep.methods.aligner.stage.run import alignment_seeds
from fewstep.methods.aligner.stage.settings import AlignSettings
from fewstep.methods.ddsm.stage.settings import StepAwareSettings
from fewstep.methods.ddsm.stage.width_search import width_seeds
from fewstep.methods.s3.stage.seeds import search_seeds
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.pipeline.samples import parse_seeds, seeds_text

LARGEST = (1 << 63) - 1
BLOCK = 1_000_000
counts = st.one_of(st.integers(16, BLOCK), st.integers(BLOCK - 1, 3 * BLOCK))


@given(st.integers(0, LARGEST), st.integers(0, 10**6))
def test_text_of_seeds_is_read_back(first, more):
    seeds = range(first, min(first + more, LARGEST) + 1)
    assert parse_seeds(seeds_text(seeds)) == seeds
    assert parse_seeds(f" {first}\n") == range(first, first + 1)


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_seeds_that_fall_are_refused(first, less):
    with pytest.raises(ConfigError, match="FIRST-LAST"):
        parse_seeds(f"{first + less}-{first}")


@given(st.text(st.characters(categories="LPS"), min_size=1))
def test_other_text_is_refused(text):
    with pytest.raises(ConfigError, match="FIRST-LAST"):
        parse_seeds(text)


SEARCHES = {
    "search": (
        search_seeds,
        SearchSettings,
        {"noises": 1, "finalist_images": 1, "frechet_iterations": 0, "frechet_images": 1},
        {"trial_noises": 16},
    ),
    "align": (
        alignment_seeds,
        AlignSettings,
        {"noises": 1, "gate_noises": 1, "choice_images": 1, "refine_iterations": 0, "refine_images": 1},
        {},
    ),
    "stepaware": (width_seeds, StepAwareSettings, {"noises": 1, "choice_images": 1}, {}),
}


@pytest.mark.parametrize("name", SEARCHES)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_seeds_of_different_purposes_never_meet(name, data):
    """Whatever the settings: what chooses never judges."""
    seeds, section, sizes, fixed = SEARCHES[name]
    drawn = {
        key: data.draw(counts if is_count else st.integers(0, 3000), label=key)
        for key, is_count in sizes.items()
    }
    first = data.draw(st.integers(0, 1 << 40), label="seed")
    try:
        blocks = seeds(section(seed=first, **drawn, **fixed))
    except ConfigError as error:
        iterations = max((drawn[key] for key, is_count in sizes.items() if not is_count), default=0)
        assert max(drawn.values()) * max(1, iterations) > BLOCK, error
        return
    for a, b in combinations(filter(len, blocks.values()), 2):
        assert a[-1] < b[0] or b[-1] < a[0]
    assert min(block[0] for block in filter(len, blocks.values())) == first
