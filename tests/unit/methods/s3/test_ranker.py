import itertools
import math

import pytest
import torch

from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.s3.evolution import propose
from fewstep.methods.s3.ranker import Fitted, Ranker, fit_ranker, kendall_tau, propose_ranked
from fewstep.methods.s3.space import Space
from fewstep.rng import generator, initial_weights

VP = VPLinear()


def unevenness(space, decisions):
    """A score that the gaps and the predictions decide: steps should grow, and be on x0."""
    gaps = [value for name, value in decisions.items() if name.startswith("gap")]
    total = sum(gaps)
    n = len(gaps)
    uneven = sum((gap / total - 2 * (i + 1) / n / (n + 1)) ** 2 for i, gap in enumerate(gaps))
    return uneven + 0.02 * sum(decisions[f"pred_{i}"] == "eps" for i in range(space.nfe))


def population(space, n, seed=0):
    rng = generator(seed, "population")
    drawn = [propose(space, [], rng=rng) for _ in range(n)]
    return [(decisions, unevenness(space, decisions)) for decisions in drawn]


@pytest.fixture(scope="module")
def space():
    return Space(VP, 5)


@pytest.fixture(scope="module")
def fitted(space):
    return fit_ranker(space, population(space, 150), seed=0)


def test_it_learns_to_rank(space, fitted):
    assert fitted.tau > 0.5
    fresh = population(space, 60, seed=1)
    scores = fitted.score([decisions for decisions, _ in fresh])
    assert scores.shape == (60,) and not scores.requires_grad
    assert kendall_tau(scores, torch.tensor([score for _, score in fresh])) > 0.5


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("analytic", [False, True])
def test_it_learns_in_every_space(to_zero, analytic):
    space = Space(VP, 4, to_zero=to_zero, analytic=analytic, max_order=4)
    assert fit_ranker(space, population(space, 100), seed=0, epochs=60).tau > 0.3


def test_training_follows_from_its_seed_alone(space):
    known = population(space, 40)
    plans = [decisions for decisions, _ in known]
    before = torch.get_rng_state()
    one = fit_ranker(space, known, seed=2, epochs=5)
    torch.rand(3)
    torch.set_rng_state(before)
    other, another = (fit_ranker(space, known, seed=seed, epochs=5) for seed in (2, 3))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.score(plans), other.score(plans)) and one.tau == other.tau
    assert not torch.equal(one.score(plans), another.score(plans))


def test_what_is_held_out_is_never_learnt_from(space):
    """Scores of the held-out fifth change nothing but tau."""
    known = population(space, 40)
    held_out = torch.randperm(40, generator=generator(2, "ranker")).tolist()[:8]
    changed = [(d, -s if i in held_out else s) for i, (d, s) in enumerate(known)]
    one, other = (fit_ranker(space, seen, seed=2, epochs=5) for seen in (known, changed))
    plans = [decisions for decisions, _ in known]
    assert torch.equal(one.score(plans), other.score(plans))
    assert one.tau == pytest.approx(-other.tau)


def test_only_ranks_matter(space):
    known = population(space, 40)
    one, other = (
        fit_ranker(space, [(d, f(s)) for d, s in known], seed=0, epochs=5)
        for f in (lambda s: s, lambda s: 1e6 * math.exp(3 * s))
    )
    plans = [decisions for decisions, _ in known]
    assert torch.equal(one.score(plans), other.score(plans))


def test_failed_and_equal_scores_are_survived(space):
    known = population(space, 20)
    with_failures = [(d, math.inf if i % 3 == 0 else s) for i, (d, s) in enumerate(known)]
    equal = [(d, 1.0) for d, _ in known]
    for seen in (with_failures, equal):
        assert fit_ranker(space, seen, seed=0, epochs=5).score([d for d, _ in known]).isfinite().all()


def test_too_few_plans_are_refused(space):
    with pytest.raises(ValueError, match="A ranker needs 10 plans or more to learn from; got 9"):
        fit_ranker(space, population(space, 9), seed=0)


def test_a_score_is_that_of_the_plan(space):
    """It depends neither on the other plans, nor on the unit of the gaps, nor on decisions that are not taken."""
    with initial_weights(0):
        fitted = Fitted(Ranker(space), math.nan)
    plans = [decisions for decisions, _ in population(space, 12)]
    scores = fitted.score(plans)
    assert len(set(scores.tolist())) == 12
    torch.testing.assert_close(torch.cat([fitted.score([plan]) for plan in plans]), scores)
    stretched = [
        {name: 2 * v if name.startswith("gap") else v for name, v in plan.items()} | {"scale_7_1": 3.0}
        for plan in plans
    ]
    torch.testing.assert_close(fitted.score(stretched), scores)


def test_every_decision_moves_the_score(space):
    with initial_weights(0):
        fitted = Fitted(Ranker(space), math.nan)
    plan = next(d for d, _ in population(space, 50) if {"scale_3_2", "corr_scale_3"} <= set(d))
    score = fitted.score([plan])
    other = {"x0": "eps", "eps": "x0", "pseudo": "none", "none": "pseudo", 1: 2, 2: 3, 3: 1}
    for name, value in plan.items():
        if name != "first_step":  # which changes how many steps there are
            changed = plan | {name: value + 0.1 if isinstance(value, float) else other[value]}
            assert not torch.equal(fitted.score([changed]), score), name


def test_kendall_tau_counts_pairs():
    a, b = (torch.randn(30, generator=generator(k)) for k in (0, 1))
    b[3] = b[5]
    pairs = list(itertools.combinations(range(30), 2))
    signs = [float((a[i] - a[j]).sign() * (b[i] - b[j]).sign()) for i, j in pairs]
    # one of the 435 pairs is equal in b
    assert kendall_tau(a, b) == pytest.approx(sum(signs) / math.sqrt(435 * 434))
    assert kendall_tau(a, a.exp()) == pytest.approx(1) and kendall_tau(a, -a) == pytest.approx(-1)


def test_the_best_liked_child_is_proposed(space, fitted):
    known = population(space, 20)
    rng = generator(5)
    children = [propose(space, known, rng=rng) for _ in range(8)]
    chosen = propose_ranked(space, known, fitted, rng=generator(5), pool=8)
    assert chosen == children[int(fitted.score(children).argmin())]
    # what the ranker knows shows in what it chooses
    rng = generator(6)
    ranked = [unevenness(space, propose_ranked(space, known, fitted, rng=rng)) for _ in range(10)]
    plain = [unevenness(space, propose(space, known, rng=rng)) for _ in range(100)]
    assert sum(ranked) / 10 < sum(plain) / 100
