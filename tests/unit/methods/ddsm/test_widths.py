"""Searches over widths, on objectives whose answer is known."""

import itertools

import numpy as np
import pytest

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.ddsm.widths import additive_front, greedy_path, sensitivities, uniform, with_widths
from fewstep.pareto import hypervolume, pareto, spread
from fewstep.sampling.plan import widths_of
from fewstep.sampling.presets import PRESETS

VP = VPLinear()


class Counted:
    """An error that must not be asked for twice by a caller that remembers nothing."""

    def __init__(self, of):
        self.of, self.asked = of, []

    def __call__(self, widths):
        self.asked.append(widths)
        return self.of(widths)


def separable(seed, n, k):
    """Errors that grow as a step narrows, and costs that fall, both of sums over steps."""
    rng = np.random.default_rng(seed)
    S = np.concatenate([np.zeros((n, 1)), rng.uniform(0.1, 2, (n, k - 1)).cumsum(1)], axis=1)
    costs = np.outer(rng.integers(1, 3, n), np.sort(rng.uniform(1, 10, k))[::-1])
    return S, costs


def sums(table, widths):
    return sum(table[i, k] for i, k in enumerate(widths))


# Widths in plans


@pytest.mark.parametrize("preset", ["ddim", "unipc-2"])
def test_widths_go_into_a_plan_and_come_back(preset):
    plan = PRESETS[preset](VP, 5, to_zero=True)
    widths = (0, 3, 1, 0, 2)
    narrowed = with_widths(plan, widths)
    assert widths_of(narrowed) == widths
    assert narrowed.uses_sub_networks and narrowed.hash != plan.hash and narrowed.nfe == plan.nfe
    assert [node.t for node in narrowed.nodes] == [node.t for node in plan.nodes]


def test_the_full_plan_has_the_identity_of_its_parent():
    plan = PRESETS["dpmpp-2m"](VP, 4)
    assert with_widths(plan, (0,) * 4) == plan
    assert with_widths(with_widths(plan, (1, 2, 3, 0)), (0,) * 4).hash == plan.hash


def test_an_analytic_first_step_has_no_width():
    plan = PRESETS["ddim"](VP, 4).with_node(0, eval="afs_zero")
    narrowed = with_widths(plan, (2, 1, 3))
    assert [node.width for node in narrowed.nodes] == [None, 2, 1, 3, None]


@pytest.mark.parametrize("widths", [(1, 1), (1,) * 5, (1, 1, -1, 1), ()])
def test_there_is_one_width_per_evaluation(widths):
    with pytest.raises(ConfigError, match=r"must be 4 indices from 0"):
        with_widths(PRESETS["ddim"](VP, 4), widths)


# Fronts and areas


def test_the_front_is_what_nothing_betters():
    points = [(1.0, 0.0), (0.5, 2.0), (0.5, 1.0), (0.7, 1.0), (0.2, 5.0), (0.2, 5.0), (0.1, np.inf)]
    assert pareto(points) == [4, 2, 0]
    assert pareto([]) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_front_agrees_with_its_definition(seed):
    points = [tuple(p) for p in np.random.default_rng(seed).integers(0, 6, (30, 2)).astype(float)]
    front = {points[i] for i in pareto(points)}
    beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and q[1] <= p[1]}
    assert front == set(points) - beaten


def test_the_area_is_that_of_the_union_of_rectangles():
    points = [(0.25, 3.0), (0.5, 1.0), (0.75, 0.5), (0.6, 2.0), (2.0, 0.0), (0.1, 9.0)]
    # columns of the staircase below (1, 4): from .25 it is 4 - 3 high, from .5 4 - 1, from .75 4 - .5
    assert hypervolume(points, (1.0, 4.0)) == 0.25 * 1 + 0.25 * 3 + 0.25 * 3.5
    assert hypervolume([(1.5, 0.0)], (1.0, 4.0)) == 0


def test_a_spread_has_both_ends_and_even_costs():
    points = [(cost / 100, 0.0) for cost in range(101)]
    assert sorted(points[i][0] for i in spread(points, 5)) == [0, 0.25, 0.5, 0.75, 1]
    assert spread(points[:3], 5) == [0, 1, 2]
    assert len(set(spread([(0.5, 0.0)] * 9, 4))) == 4


# Searches


@pytest.mark.parametrize(("seed", "n", "k"), [(0, 5, 4), (1, 6, 3), (2, 4, 4), (3, 8, 2)])
def test_the_dynamic_program_finds_the_front_of_all_plans(seed, n, k):
    S, costs = separable(seed, n, k)
    every = list(itertools.product(range(k), repeat=n))
    points = [(sums(costs, w), sums(S, w)) for w in every]
    # sums in another order differ by 1e-15 of them, two different ones by far more
    expected = [np.round(points[i], 9) for i in pareto([tuple(np.round(p, 9)) for p in points])]
    found = [np.round((sums(costs, w), sums(S, w)), 9) for w in additive_front(S, costs)]
    assert np.array_equal(found, expected[::-1])


def test_the_dynamic_program_leaves_out_what_cannot_be():
    S, costs = separable(0, 3, 3)
    S[1, 1:] = np.inf
    front = additive_front(S, costs)
    assert {widths[1] for widths in front} == {0} and front[-1] == (2, 0, 2)


def test_equal_costs_in_another_order_are_one_point():
    S, _ = separable(4, 12, 4)
    costs = np.tile([0.1, 0.07, 0.03, 0.01], (12, 1))
    front = additive_front(S, costs)
    # a plan of 12 steps has as many costs as there are ways to count 4 widths: C(15, 3)
    assert len({round(sums(costs, w), 9) for w in front}) == len(front) <= 455


def test_sensitivities_narrow_one_step_alone():
    S, _ = separable(5, 4, 3)
    error = Counted(lambda widths: sums(S, widths))
    assert np.allclose(sensitivities(error, 4, 3), S, rtol=1e-15)
    assert len(error.asked) == len(set(error.asked)) == 4 * 2
    assert all(sum(w > 0 for w in widths) == 1 for widths in error.asked)


def test_the_greedy_path_is_nested_and_takes_the_best_move_each_time():
    S, costs = separable(6, 5, 4)
    coupled = lambda w: sums(S, w) + 0.3 * sum(a * b for a, b in itertools.pairwise(w))  # noqa: E731
    path = greedy_path(coupled, costs)
    assert path[0] == (0,) * 5 and path[-1] == (3,) * 5 and len(path) == 5 * 3 + 1
    price = [sums(costs, w) for w in path]
    assert price == sorted(price, reverse=True) and len(set(price)) == len(price)
    for now, chosen in itertools.pairwise(path):
        moves = {
            i: (coupled(wider) - coupled(now)) / (costs[i, now[i]] - costs[i, now[i] + 1])
            for i in range(5)
            if now[i] < 3
            for wider in [(*now[:i], now[i] + 1, *now[i + 1 :])]
        }
        step = next(i for i in range(5) if chosen[i] != now[i])
        assert chosen == (*now[:step], now[step] + 1, *now[step + 1 :])
        assert moves[step] == min(moves.values())


def test_with_two_widths_and_convex_gains_the_greedy_path_is_the_front():
    S, _ = separable(7, 7, 2)
    costs = np.tile([2.0, 1.0], (7, 1))
    path = greedy_path(lambda w: sums(S, w), costs)
    assert path == additive_front(S, costs)


def test_a_move_that_saves_nothing_comes_last():
    S, _ = separable(8, 3, 3)
    costs = np.tile([3.0, 2.0, 2.5], (3, 1))  # measured: the narrowest is no faster
    path = greedy_path(lambda w: sums(S, w), costs)
    assert path[3] == (1, 1, 1) and path[-1] == (2, 2, 2)


def test_the_path_goes_around_what_fails_and_ends_where_all_does():
    S, costs = separable(9, 3, 3)
    error = lambda w: np.inf if w[1] > 1 or sum(w) > 4 else sums(S, w)  # noqa: E731
    path = greedy_path(error, costs)
    assert all(np.isfinite(error(w)) for w in path) and sum(path[-1]) == 4


def test_uniform_plans_start_with_the_full_one():
    assert uniform(2, 3) == [(0, 0), (1, 1), (2, 2)]
