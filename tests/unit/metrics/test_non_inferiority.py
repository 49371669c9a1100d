"""When a plan may be called as good: how often that is said of plans that are, that are not, and by chance."""

import numpy as np
import pytest

from fewstep.checks import DataError
from fewstep.metrics.non_inferiority import Measured, non_inferior

CUTS = 50
TARGET = 10.0
OWN, COMMON = 0.3, 1.0
"""What two distances vary by, each for itself and together, as those of the same seeds do."""


def pairs(excess, n, *, plans=1, seed=0):
    """n times `plans` distances that exceed a target's by `excess` in truth, and the target's.

    The halves of a cut err by h to either side, with h distributed as the error of the whole, as in `uncertainty`.
    """
    rng = np.random.default_rng(seed)

    def errors(size):
        cuts = rng.normal(size=(size, CUTS))
        return rng.normal(size=size), np.stack([cuts, -cuts], -1).reshape(size, -1)

    for _ in range(n):
        (common, moved), (own, apart) = errors(1), errors(plans + 1)
        values = TARGET + COMMON * common + OWN * own + np.array([0.0] + [excess] * plans)
        replicates = values[:, None] + COMMON * moved + OWN * apart
        target, *others = map(Measured, values, replicates)
        yield others, target


def rate(excess, margin, n=2000, *, plans=1, level=0.95):
    """How often any of the plans is called as good."""
    shown = [
        any(non_inferior(a, b, margin, level=level, comparisons=plans).holds for a in others)
        for others, b in pairs(excess, n, plans=plans)
    ]
    return np.mean(shown)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_a_plan_that_is_worse_by_the_margin_passes_no_more_often_than_the_level_allows(level):
    """One end of the interval errs, a half of what the level leaves; both margin and deviation are estimated,
    which adds to it.
    2,000 draws know a share of 0.04 to 0.0045, and one of 0.12 to 0.0075.
    """
    found = rate(0.1 * TARGET, 0.1, level=level)
    assert 0.25 * (1 - level) < found < 1 - level


def test_the_best_of_twenty_passes_no_more_often_either():
    assert rate(0.1 * TARGET, 0.1, 500, plans=20) < 0.05


def test_equal_plans_are_hardly_shown_to_be_as_good_at_a_tiny_margin():
    assert rate(0.0, 1e-3) < 0.05


def test_better_plans_and_equal_ones_at_a_wide_margin_are_shown_to_be_as_good():
    """2.5 is 5.9 standard deviations of the difference, 0.3 sqrt(2), of which the interval takes two."""
    assert rate(-2.5, 1e-3, 500) > 0.99
    assert rate(0.0, 0.25, 500) > 0.99


def test_the_verdict_states_difference_interval_and_margin():
    rest = np.tile([1.0, -1.0], CUTS)
    found = non_inferior(Measured(10.5, 10.5 + 0.1 * rest), Measured(10.0, 10.0 - 0.1 * rest), 0.1)
    # the halves differ by 0.4, so that the difference has the standard deviation 0.2
    assert found.difference.value == 0.5
    assert found.difference.interval == pytest.approx((0.5 - 1.959964 * 0.2, 0.5 + 1.959964 * 0.2))
    assert found.margin == 1.0 and found.holds
    assert not non_inferior(Measured(10.5, rest), Measured(10.0, -rest), 0.1).holds


def test_replicates_that_are_not_paired_are_refused():
    with pytest.raises(DataError, match="paired"):
        non_inferior(Measured(1.0, [1.0] * 4), Measured(1.0, [1.0] * 6), 0.1)
