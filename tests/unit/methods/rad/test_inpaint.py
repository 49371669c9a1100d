"""Fillings by plans and by the baselines, of networks that are known exactly."""

from dataclasses import replace

import pytest
import torch
from unit.sampling.test_region import RHO, TABLE, gaussian_pair, images, masks, network

from fewstep.checks import ConfigError
from fewstep.methods.rad.inpaint import calls_of, inpaint, repaint
from fewstep.rng import generator
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import Costs


def pair_images(n, left=0.7):
    pixels = torch.zeros(n, 1, 1, 2, dtype=torch.uint8)
    pixels[..., 0] = round(127.5 * left + 127.5)
    return pixels, torch.tensor([False, True]).expand(n, 1, 1, 2)


@pytest.mark.parametrize(
    "steps, resamples, jump, nfe", [(20, 5, 1, 96), (50, 10, 1, 491), (250, 10, 10, 2410), (5, 2, 10, 5)]
)
def test_calls_of_repaint(steps, resamples, jump, nfe):
    assert calls_of(steps, resamples, jump) == nfe


@pytest.mark.parametrize("steps, resamples, jump", [(6, 3, 1), (7, 2, 3), (4, 1, 1)])
def test_repaint_goes_back_and_keeps_what_is_known(steps, resamples, jump):
    model, costs, times = network(), Costs(), []
    plain = model.fn

    def fn(x, t, condition=None):
        times.append(round(float(t[0]), 5))
        return plain(x, t)

    seen = replace(model, fn=fn, pixel_times=False)
    how = {"steps": steps, "resamples": resamples, "jump": jump}
    made = repaint(seen, images(), masks(), **how, seeds=range(6), costs=costs)
    grid = [round(node.t, 5) for node in PRESETS["ddpm"](TABLE, steps, grid="uniform-t", to_zero=True).nodes]
    expected, at = grid[:jump], jump
    while at < steps:
        expected, at = expected + resamples * grid[at : min(at + jump, steps)], at + jump
    assert times == expected
    assert costs.nfe == len(times) and costs.images == 6
    assert torch.equal(made.where(~masks(), images()), images())


def test_an_image_does_not_depend_on_its_batch():
    model, plan = network(), PRESETS["ddpm"](TABLE, 4, grid="uniform-t", to_zero=True)
    for make in (
        lambda size: inpaint(model, plan, images(), masks(), seeds=range(6), batch_size=size),
        lambda size: inpaint(model, plan, images(), masks(), seeds=range(6), batch_size=size, noised=True),
        lambda size: repaint(model, images(), masks(), steps=3, resamples=2, seeds=range(6), batch_size=size),
    ):
        apart = (make(6).int() - make(4).int()).abs()
        assert int(apart.max()) <= 1, "convolutions of another batch round the last bit"


def test_resampling_brings_the_hole_nearer_to_what_is_known_and_times_per_pixel_hit_it():
    """Left pixel 0.7: the right one is N(0.7 rho, 1 - rho^2). Replacement knows the left one too late."""
    n = 1500
    pixels, hole = pair_images(n)

    def mean(filled):
        return float(filled[..., 1].double().mean() / 127.5 - 1)

    model, seeds = gaussian_pair(), range(n)
    plan = PRESETS["ddpm"](TABLE, 12, grid="uniform-lambda", to_zero=True)
    aware = mean(inpaint(model, plan, pixels, hole, seeds=seeds))
    # values beyond 1 saturate; so does what is expected, a little more often than draws of 12 steps
    right = 0.7 * RHO + (1 - RHO**2) ** 0.5 * torch.randn(200_000, generator=generator(0))
    expected = float(right.clamp(-1, 1).mean())
    assert abs(aware - expected) < 0.06
    plain = PRESETS["ddpm"](TABLE, 12, grid="uniform-t", to_zero=True)
    replaced = mean(inpaint(model, plain, pixels, hole, seeds=seeds, noised=True))
    resampled = mean(repaint(model, pixels, hole, steps=12, resamples=6, seeds=seeds))
    assert abs(replaced - expected) > 0.1 > abs(aware - expected)
    assert abs(resampled - expected) < 0.6 * abs(replaced - expected)


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"steps": 4, "resamples": 0}, "resamples and jumps of 1 or more; got 0 and 1"),
        ({"steps": 4, "resamples": 1, "jump": 0}, "got 1 and 0"),
        (
            {"steps": 1001, "resamples": 1},
            "at most 1000, the rows of the table that m was trained with; got 1001",
        ),
    ],
)
def test_mistakes_are_one_sentence(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        repaint(replace(network(), name="m"), images(), masks(), seeds=range(6), **values)


def test_a_plan_of_more_calls_than_rows_is_refused():
    plan = PRESETS["ddim"](TABLE, 1001, grid="uniform-lambda")
    with pytest.raises(ConfigError, match="at most 1000"):
        inpaint(network(), plan, images(), masks(), seeds=range(6))
