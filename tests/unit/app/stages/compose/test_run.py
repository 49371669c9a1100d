"""The last comparison: which plan wins, and what it says of the others."""

from dataclasses import replace

import pytest
from unit.methods.ddsm.stage.slimming import VP, ddim, pixels, reference, silent, slimmable

from fewstep.app.settings import ComposeSettings
from fewstep.app.stages.compose.run import compose
from fewstep.checks import ConfigError
from fewstep.methods.ddsm.widths import with_widths
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task

SETTINGS = ComposeSettings(images=128, target_nfe=6, rounds=1, seed=1000, batch_size=64)


def compared(plans, settings=SETTINGS, model=None):
    task = Task(model or slimmable(), batch_size=settings.batch_size)
    return compose(task, plans, reference(), pixels(), settings, track=silent)


def plans():
    """A good plan, one that a wrong network spoils, and one of too few steps."""
    good = replace(PRESETS["unipc-2"](VP, 12, to_zero=True), name="good")
    return [good, replace(with_widths(good, [1] * 12), name="spoilt"), replace(ddim(1), name="short")]


def test_the_fastest_plan_that_reaches_the_target_wins():
    made = compared(plans(), model=slimmable((0.0, 3.0)))
    table = made.table.set_index("plan")
    target = table["fd"].iloc[0]
    assert table["fd"]["good"] < target < min(table["fd"]["spoilt"], table["fd"]["short"])
    assert table.index[table["winner"]].tolist() == ["good"]
    assert [plan.name for plan in made.plans] == ["good", "spoilt", "short"]
    assert made.plans[0].provenance["composed"]["winner"]
    assert made.plans[0].hash == plans()[0].hash


def test_among_good_plans_time_decides():
    """Twice the calls take about twice the time; neither differs from the target by its many steps."""
    fast, slow = (replace(PRESETS["unipc-2"](VP, n, to_zero=True), name=f"n{n}") for n in (12, 48))
    table = compared([slow, fast]).table.set_index("plan")
    assert table["ms"]["n48"] > table["ms"]["n12"]
    assert table.index[table["winner"]].tolist() == ["n12"]


def test_where_none_reaches_the_target_the_best_wins():
    worse = [replace(ddim(n), name=f"ddim{n}") for n in (1, 2, 3)]
    table = compared(worse, SETTINGS.model_copy(update={"target_nfe": 50})).table.set_index("plan")
    assert (table["fd"].iloc[1:] > table["fd"].iloc[0]).all()
    assert table.index[table["winner"]].tolist() == [table["fd"].iloc[1:].idxmin()]


def test_the_table_says_what_was_done_to_a_plan():
    plan = with_widths(ddim(4), [0, 1, 1, 0]).with_node(2, t_cond=0.4).with_node(3, eps_scale=0.9)
    plan = replace(plan, name="made", provenance={"sampler": "searched+widths+aligned"})
    row = compared([plan]).table.iloc[1]
    assert (row["widths"], row["moved"], row["sampler"], row["nfe"]) == (
        "0110", 2, "searched+widths+aligned", 4,
    )  # fmt: skip


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
