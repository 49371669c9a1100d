"""When a plan may be called as good as another one: where it is non-inferior within a margin that is stated.

That no difference was found says little, and the less so the fewer images there were. Non-inferiority turns the burden
of proof around: the interval of the difference must end below the margin. Plans that differ by nothing are hardly ever
shown to be as good at a margin far below the width of that interval, and one that is worse by the margin or more
passes with a probability of less than 1 - level, over all comparisons together (`comparisons` corrects the level by
Bonferroni's inequality, so that the best of many may be picked and then claimed).

The margin is a share of the target's distance, which is itself measured. That makes the comparison A - (1 + margin) B,
of which the interval of A - B leaves out what B varies by, margin times its standard deviation. An interval has two
ends and only one can err here, so half of what the level leaves is in hand: enough, as long as margin times the
deviation of B is less than 0.6 of the deviation of A - B.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from fewstep.metrics.uncertainty import Difference, paired_difference


class Measured(NamedTuple):
    """A distance and its half-sample replicates."""

    value: float
    replicates: NDArray[Any] | Sequence[float]


class NonInferiority(NamedTuple):
    """The difference A - B with its interval, the margin in the same unit, and whether the one ends below the other."""

    difference: Difference
    margin: float
    holds: bool


def non_inferior(
    a: Measured, b: Measured, margin: float, *, level: float = 0.95, comparisons: int = 1
) -> NonInferiority:
    """Whether A was shown to be no more than a margin worse than B, by replicates cut at the same indices.

    Args:
        a: what is judged.
        b: the target.
        margin: how much worse A may be, as a share of B's distance.
        level: probability with which the intervals of all comparisons hold together.
        comparisons: of how many A is one, all of which could have been claimed.

    Raises:
        DataError: the replicates are not paired.
    """
    corrected = 1 - (1 - level) / comparisons
    difference = paired_difference(a.value, b.value, a.replicates, b.replicates, corrected)
    allowed = margin * b.value
    return NonInferiority(difference, allowed, difference.interval.high < allowed)
