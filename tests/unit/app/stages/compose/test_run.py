"""The last comparison: which plan is chosen, if any, and what it says of the others."""

from dataclasses import replace
from itertools import permutations
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from unit.methods.ddsm.stage.slimming import VP, ddim, pixels, reference, silent, slimmable

from fewstep.app.settings import ComposeSettings
from fewstep.app.stages.compose.record import COLUMNS, Machine
from fewstep.app.stages.compose.run import choice, compose
from fewstep.app.stages.compose.timing import speeds
from fewstep.checks import ConfigError
from fewstep.methods.ddsm.widths import with_widths
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task

SETTINGS = ComposeSettings(images=128, target_nfe=6, rounds=2, seed=1000, batch_size=64)


def compared(plans, settings=SETTINGS, model=None):
    task = Task(model or slimmable(), batch_size=settings.batch_size)
    return compose(task, plans, reference(), pixels(), settings, track=silent)


def plans():
    """A good plan, one that a wrong network spoils, and one of too few steps."""
    good = replace(PRESETS["unipc-2"](VP, 12, to_zero=True), name="good")
    return [good, replace(with_widths(good, [1] * 12), name="spoilt"), replace(ddim(1), name="short")]


def chosen(table):
    return table.index[table["winner"]].tolist()


def test_a_plan_that_is_shown_to_be_as_good_as_the_target_is_chosen():
    made = compared(plans(), model=slimmable((0.0, 3.0)))
    table = made.table.set_index("plan")
    target = table["fd"].iloc[0]
    assert table["fd"]["good"] < target < min(table["fd"]["spoilt"], table["fd"]["short"])
    assert chosen(table) == ["good"]
    assert [plan.name for plan in made.plans] == ["good", "spoilt", "short"]
    said = made.plans[0].provenance["composed"]
    assert said["winner"] and said["non_inferior"] and said["difference"] < 0
    assert made.plans[0].hash == plans()[0].hash


def test_the_table_states_difference_interval_margin_and_verdict_of_every_plan():
    """The differences are those of the distances, and three plans widen their intervals by Bonferroni's quantile."""
    few, every = plans()[:1], plans()
    made = compared(every, model=slimmable((0.0, 3.0)))
    rows = made.table
    assert set(COLUMNS) <= set(rows)
    assert rows["difference"].tolist() == pytest.approx((rows["fd"] - rows["fd"].iloc[0]).tolist())
    assert rows["margin"].tolist() == pytest.approx([0.1 * rows["fd"].iloc[0]] * 4)
    assert (rows["non_inferior"] == (rows["difference_high"] < rows["margin"])).all()
    alone, corrected = (
        table.set_index("plan").loc["good"]
        for table in (compared(few, model=slimmable((0.0, 3.0))).table, rows)
    )
    widths = [row["difference_high"] - row["difference"] for row in (alone, corrected)]
    quantiles = [NormalDist().inv_cdf(1 - 0.025 / k) for k in (1, 3)]
    assert widths[1] / widths[0] == pytest.approx(quantiles[1] / quantiles[0])
    assert (made.protocol.margin, made.protocol.level, made.protocol.comparisons) == (0.1, 0.95, 3)
    assert made.protocol.seeds == (1000, 1127)


def test_a_smaller_margin_asks_for_more():
    """DDIM in 11 calls against 12: a little worse in truth, which a wide margin allows and a narrow one does not."""
    close = [replace(PRESETS["ddim"](VP, 11, grid="uniform-t", to_zero=True), name="close")]
    settings = {"target_nfe": 12}
    wide, narrow = (
        compared(close, SETTINGS.model_copy(update={**settings, "margin": margin})).table
        for margin in (1.0, 1e-6)
    )
    assert wide["non_inferior"].iloc[1] and not narrow["non_inferior"].iloc[1]
    assert chosen(wide) == [1] and chosen(narrow) == []


def test_among_good_plans_time_decides_where_it_distinguishes_them():
    """Eight times the calls take longer in every round; neither differs from the target by its many steps."""
    fast, slow = (replace(PRESETS["unipc-2"](VP, n, to_zero=True), name=f"n{n}") for n in (12, 96))
    table = compared([slow, fast]).table.set_index("plan")
    assert table["non_inferior"].all()
    assert table["ms"]["n96"] > table["ms"]["n12"]
    assert table["speed_low"]["n12"] <= table["speed"]["n12"] <= table["speed_high"]["n12"]
    assert chosen(table) == ["n12"]


def test_where_nothing_was_shown_to_be_as_good_nothing_is_chosen():
    worse = [replace(ddim(n), name=f"ddim{n}") for n in (1, 2, 3)]
    made = compared(worse, SETTINGS.model_copy(update={"target_nfe": 50}))
    assert (made.table["fd"].iloc[1:] > made.table["fd"].iloc[0]).all()
    assert not made.table["winner"].any()
    assert not any(plan.provenance["composed"]["winner"] for plan in made.plans)


def row(name, calls, fd, *, good=True):
    return {"hash": name, "full_calls": calls, "fd": fd, "non_inferior": good}


ROWS = pd.DataFrame(
    [row("t", 50.0, 3.0), row("a", 5.0, 2.0), row("b", 4.0, 2.9), row("c", 4.0, 2.8), row("d", 6.0, 1.0)]
)


@pytest.mark.parametrize("order", list(permutations(range(1, 5))))
def test_times_that_distinguish_nothing_decide_nothing(order):
    """Each of the four plans is ahead once: the fewest multiply-adds decide, then the distance, whatever the median."""
    seconds = np.array([[9.0, *np.roll([1.0, 2.0, 3.0, 4.0], k)] for k in range(4)])
    columns = [0, *order]
    assert ROWS["hash"][choice(ROWS, seconds[:, columns])] == "c"


def test_a_plan_that_is_beaten_in_every_round_is_not_chosen():
    seconds = np.array([[9.0, 1.0, 3.0, 3.5, 2.0], [9.0, 1.1, 3.1, 3.4, 1.05]])
    assert ROWS["hash"][choice(ROWS, seconds)] == "a"  # c, b lose to a each time; d does once
    assert ROWS["hash"][choice(ROWS, seconds[:1])] == "c"  # one round distinguishes nothing
    only = ROWS.assign(non_inferior=ROWS["hash"].eq("d"))
    assert only["hash"][choice(only, seconds)] == "d"
    assert choice(ROWS.assign(non_inferior=ROWS["hash"].eq("t")), seconds) is None


def test_a_speed_is_the_median_of_ratios_within_rounds():
    """The machine is twice as slow in the second round, which changes no ratio."""
    seconds = np.array([[8.0, 2.0], [16.0, 4.0], [9.0, 3.0]])
    assert speeds(seconds) == [(1.0, (1.0, 1.0)), (4.0, (3.0, 4.0))]


@pytest.mark.parametrize(
    ("before", "after", "used", "busy"),
    [(1.9, 2.0, 1.8, False), (3.4, 1.9, 1.9, True), (1.0, 2.6, 1.9, True), (None, None, 1.0, False)],
)
def test_load_beyond_what_the_command_uses_is_said(before, after, used, busy):
    said = Machine(cores=2, load_before=before, load_after=after, used=used).warning
    assert (said is not None) == busy
    if busy:
        assert f"2 cores was {max(before, after):.1f}, of which the command itself used {used:.1f}" in said


def test_the_table_says_what_was_done_to_a_plan():
    plan = with_widths(ddim(4), [0, 1, 1, 0]).with_node(2, t_cond=0.4).with_node(3, eps_scale=0.9)
    plan = replace(plan, name="made", provenance={"sampler": "searched+widths+aligned"})
    row = compared([plan]).table.iloc[1]
    assert (row["widths"], row["moved"], row["sampler"], row["nfe"]) == (
        "0110", 2, "searched+widths+aligned", 4,
    )  # fmt: skip
    assert row["full_calls"] == 2 + 2 * 0.5**2


def test_a_plan_that_comes_twice_is_compared_once_under_its_first_name():
    made = compared([replace(ddim(3), name="first"), replace(ddim(3), name="second")])
    assert [plan.name for plan in made.plans] == ["first"]


def test_images_that_a_plan_was_found_with_are_refused_and_later_ones_remembered():
    seen = replace(ddim(3), provenance={"seeds": {"trials": [900, 1000]}})
    with pytest.raises(ConfigError, match="must not have been searched on, but 1000-1127 overlaps 900-1000"):
        compared([seen])
    fresh = replace(ddim(3), provenance={"seeds": {"trials": [0, 10]}})
    assert compared([fresh]).plans[0].provenance["seeds"] == {"trials": [0, 10], "compose": [1000, 1127]}


def test_nothing_to_compare_is_one_sentence():
    with pytest.raises(ConfigError, match="There must be a plan to compare, got none"):
        compared([])
