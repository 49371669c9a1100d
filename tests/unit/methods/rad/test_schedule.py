"""The schedule of regions against the products of its steps, as the paper states them."""

import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import EDM, Cosine, DDPMTable, Flow, VPLinear
from fewstep.methods.rad.schedule import (
    log_share,
    region_log_share,
    region_times,
    require_clean_time,
    time_of_log_share,
)
from fewstep.rng import generator

TABLE = DDPMTable.linear()
ROWS = len(TABLE.alpha_bar)
T = (torch.arange(ROWS, dtype=torch.float64) + 1)[:, None, None, None] / ROWS
SOFT = torch.tensor([0.0, 0.1, 0.5, 0.97, 1.0], dtype=torch.float64).reshape(1, 1, 1, 5)


def mask(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


def steps(m):
    """1 - b_t of both phases, (2 K, pixels), in powers of 1 - nu m and (1 - nu) / (1 - nu m)."""
    nu = 1 - TABLE.alpha_bar[-1]
    before = torch.cat([torch.ones(1, dtype=torch.float64), TABLE.alpha_bar[:-1]])
    power = ((TABLE.alpha_bar / before).log() / torch.log1p(-nu))[:, None]
    return torch.cat([(1 - nu * m) ** power, ((1 - nu) / (1 - nu * m)) ** power])


def test_shares_are_the_products_of_their_steps_for_soft_masks_too():
    expected = steps(SOFT.flatten()).cumprod(0).log()
    found = [region_log_share(TABLE, T, SOFT, second=second, soft=True) for second in (False, True)]
    assert torch.allclose(torch.cat(found).reshape(2 * ROWS, -1), expected, rtol=1e-9, atol=1e-12)


def test_the_hole_is_noised_first_and_the_rest_after_it():
    first = region_log_share(TABLE, T, mask(1, 0))
    assert torch.equal(first[..., 0], log_share(TABLE, T)[..., 0]), "in the hole it is the plain schedule"
    assert torch.equal(first[..., 1].exp(), torch.ones_like(first[..., 1])), "elsewhere nothing happens"
    second = region_log_share(TABLE, T, mask(1, 0), second=True)
    assert torch.allclose(second[..., 1], log_share(TABLE, T)[..., 0], rtol=1e-14)
    end = log_share(TABLE, T[-1])
    assert torch.allclose(second[..., 0], end.expand(ROWS, 1, 1), rtol=1e-14)
    last = region_log_share(TABLE, T[-1:], SOFT, second=True, soft=True)
    assert torch.allclose(last, end.expand_as(last), rtol=1e-14), "every pixel ends as noise"


@pytest.mark.parametrize("schedule", [TABLE, VPLinear(), Cosine(), Flow()], ids=repr)
def test_the_inverse_map_gives_the_time_of_a_share(schedule):
    t = torch.linspace(schedule.t_min, schedule.t_start, 50, dtype=torch.float64)
    found = time_of_log_share(schedule, log_share(schedule, t))
    assert torch.allclose(found, t, rtol=1e-9)
    assert torch.equal(time_of_log_share(schedule, torch.zeros(3).double()), torch.zeros(3).double())
    soft = region_times(schedule, t[:, None, None, None], SOFT, soft=True)
    assert bool((soft.diff(dim=3) > 0).all()), "the more of a pixel is in the hole, the later its time"
    assert bool((soft[..., 1:].diff(dim=0) > 0).all())


def test_a_network_is_told_the_rows_that_it_knows():
    """Row k of the table is the input k, as in plain training; clean data is one before the first row."""
    told = TABLE.time_input(region_times(TABLE, T, mask(1, 0)))
    assert torch.allclose(told[:, 0, 0, 0], torch.arange(ROWS).double(), atol=1e-9)
    assert bool((told[:, 0, 0, 1] == -1).all())


def test_each_image_may_be_in_another_phase():
    second = torch.tensor([True, False]).reshape(2, 1, 1, 1)
    t = torch.tensor([0.3, 0.6], dtype=torch.float64).reshape(2, 1, 1, 1)
    both = region_times(TABLE, t, mask(1, 0).expand(2, -1, -1, -1), second=second)
    assert torch.allclose(both.flatten(1), torch.tensor([[1, 0.3], [0.6, 0]]).double())


def test_masks_of_other_values_are_refused():
    with pytest.raises(DataError, match=r"0 or 1, unless it is called soft; got values from 0 to 0.5"):
        region_log_share(TABLE, T[:1], mask(0, 0.5))
    with pytest.raises(DataError, match=r"between 0 and 1; got values from 0 to 2"):
        region_log_share(TABLE, T[:1], mask(0, 2), soft=True)
    noisy = mask(0, 1) + torch.randn(1, 1, 1, 2, generator=generator(0))
    with pytest.raises(DataError, match="0 or 1"):
        region_log_share(TABLE, T[:1], noisy)
    with pytest.raises(ConfigError, match="can be told the time 0"):
        require_clean_time(EDM())
