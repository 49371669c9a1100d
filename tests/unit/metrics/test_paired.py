"""Intervals over prompts hold what they say, and scores know their floor."""

import numpy as np
import pytest

from fewstep.checks import DataError
from fewstep.metrics.paired import mean_by_prompt, paired_distances, scored


def test_intervals_count_prompts_and_hold():
    """Images of a prompt share most of their value: intervals over images would hold in 40 % of cases."""
    rng, held, runs, prompts, images = np.random.default_rng(0), 0, 400, 12, 8
    groups = [i // images for i in range(prompts * images)]
    for _ in range(runs):
        values = rng.normal(0, 1, prompts).repeat(images) + rng.normal(0, 0.5, prompts * images)
        low, high = mean_by_prompt(values, groups).interval
        held += low <= 0 <= high
    assert abs(held / runs - 0.95) < 0.035  # three deviations of 400 draws


def test_the_mean_is_that_of_prompts():
    found = mean_by_prompt([1.0, 1.0, 1.0, 5.0], [0, 0, 0, 1])
    assert (found.value, found.n, found.prompts) == (3.0, 4, 2)


def test_paired_distances_are_in_levels():
    a, b = np.zeros((2, 2, 2, 3), np.uint8), np.full((2, 2, 2, 3), 10, np.uint8)
    b[1] = 0
    assert paired_distances(a, b).tolist() == [10.0, 0.0]
    with pytest.raises(DataError, match="must have one shape"):
        paired_distances(a, b[:1])


def test_the_floor_is_that_of_other_prompts():
    images = np.array([0, 1, 2, 0, 1, 2], np.uint8).reshape(6, 1, 1, 1)

    def scorer(images, prompts):
        return np.array(
            [100.0 if str(int(i.item())) == p else 20.0 for i, p in zip(images, prompts, strict=True)]
        )

    found = scored(images, ["0", "1", "2"] * 2, scorer)
    assert (found.mean.value, found.floor.value) == (100.0, 20.0)


@pytest.mark.parametrize(
    "values, groups, words",
    [
        ([1.0, 2.0], [0, 0], "needs two or more; got 1"),
        ([1.0, np.nan], [0, 1], "finite value for each of 2 images"),
    ],
)
def test_what_gives_no_interval(values, groups, words):
    with pytest.raises(DataError, match=words):
        mean_by_prompt(values, groups)
