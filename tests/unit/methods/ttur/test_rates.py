"""The search of two learning rates: its arms, its bounds, and what it says of a small study."""

import math

import pandas as pd
import pytest

from fewstep.methods.ttur.arms import PUBLISHED, is_single, single_rates, steps_within
from fewstep.methods.ttur.stage.rates.run import chosen_arms, gan_settings, rates_of
from fewstep.methods.ttur.stage.rates.settings import TturSettings
from fewstep.pipeline.claims import Criterion
from fewstep.pipeline.gan.comparison import fd_ratio, summary
from fewstep.pipeline.trials import Completed

SETTINGS = TturSettings(network="dcgan", budget=6400, batch_size=64)


def test_a_budget_of_images_is_the_same_for_all_critic_steps():
    for rates in single_rates().values():
        settings = gan_settings(SETTINGS, rates, 0)
        assert settings.steps * settings.d_steps * settings.batch_size == 6400
    assert steps_within(10, 64, 5) == 1


@pytest.mark.parametrize("network", PUBLISHED)
def test_published_rates_make_valid_settings(network):
    settings = gan_settings(SETTINGS.model_copy(update={"network": network}), PUBLISHED[network], 3)
    assert (settings.lr_g, settings.lr_d, settings.seed) == (
        PUBLISHED[network]["lr_g"],
        PUBLISHED[network]["lr_d"],
        3,
    )
    assert settings.gp == (10.0 if network == "resnet" else 0.0)


def trial(number, score, lr_g, ratio, d_steps):
    return Completed(number, {"lr_g": lr_g, "ratio": ratio, "d_steps": d_steps}, (score,))


def test_arms_are_the_best_of_each_kind():
    trials = [
        trial(0, 9.0, 1e-4, 1.0, 1), trial(1, 7.0, 2e-4, 1.0, 1), trial(2, 8.0, 1e-4, 1.0, 5),
        trial(3, 6.0, 5e-4, 0.2, 1), trial(4, 5.0, 1e-3, 0.1, 5),
    ]  # fmt: skip
    arms = chosen_arms(trials, "dcgan")
    assert arms == {
        "two rates": {"lr_g": 1e-3, "lr_d": 1e-4, "d_steps": 5},
        "single rate, 5 critic steps": {"lr_g": 1e-4, "lr_d": 1e-4, "d_steps": 5},
        "single rate, 1 critic step": {"lr_g": 2e-4, "lr_d": 2e-4, "d_steps": 1},
        "two rates, published": PUBLISHED["dcgan"],
    }
    assert [is_single(rates) for rates in arms.values()] == [False, True, True, False]
    assert rates_of({"lr_g": 3e-4, "ratio": 1.0, "d_steps": 1})["lr_d"] == 3e-4


# outcomes


def trainings(**arms):
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "fd": fd,
            "minutes": 1.0,
            "d_updates": 10.0,
            "images": 640.0,
            "stopped": "",
        }
        for arm, fds in arms.items()
        for seed, fd in enumerate(fds)
    ]
    return pd.DataFrame(rows)


def test_a_ratio_pairs_trainings_of_one_seed():
    """Halved in each pair, though the seeds differ by a factor of ten."""
    found = fd_ratio(trainings(a=[1.0, 10.0, 3.0], b=[2.0, 20.0, 6.0]), "a", "b")
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.what == "a against b, 3 trainings each"


def test_the_interval_of_a_ratio_is_students():
    """Of logs -0.1, 0, 0.1: mean 0, standard error 0.1 / sqrt(3), and 4.303 for 2 degrees of freedom."""
    found = fd_ratio(trainings(a=[math.exp(x) for x in (-0.1, 0.0, 0.1)], b=[1.0, 1.0, 1.0]), "a", "b")
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert (found.low, found.value, found.high) == pytest.approx(
        (math.exp(-half), 1.0, math.exp(half)), rel=1e-4
    )


def test_stopped_trainings_are_counted_and_not_compared():
    frame = trainings(a=[2.0, 8.0, math.inf], b=[1.0, 1.0, 1.0])
    frame.loc[2, "stopped"] = "collapsed"
    (best, other) = summary(frame)
    assert (best["arm"], other["arm"], other["stopped"], other["fd"]) == ("b", "a", 1, pytest.approx(4.0))
    assert fd_ratio(frame, "a", "b").what.endswith("2 trainings each")
    missing = fd_ratio(frame, "a", "c")
    assert missing.what == "a against c: 0 trainings of both have ended, two are needed"
    assert math.isnan(missing.value) and Criterion(below=1).verdict(missing) == "undecided"
