import itertools

import pytest
import torch
from toys import reference_mixture

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import EDM, VPLinear
from fewstep.methods.s3.evolution import Child, draw, propose
from fewstep.methods.s3.space import GAP, SCALE, Choice, Real, Space, plan_of, within
from fewstep.rng import generator
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task, distances

VP = VPLinear()


def asked(space, decisions):
    """The range of each decision that the plan of these decisions needs."""
    ranges = {}
    space.build(lambda name, allowed: ranges.setdefault(name, allowed) and decisions[name])
    return ranges


def some(space, n, seed=0):
    """Drawn decisions with scores that say nothing."""
    rng = generator(seed, "some")
    return [(propose(space, [], rng=rng), float(k % 7)) for k in range(n)]


@pytest.mark.parametrize(
    "allowed", [GAP, SCALE, Real(0.0, 0.1, 0.1, 0.1), Real(0.1, 10.0, 10.0, 5.0, log=True)]
)
def test_drawn_numbers_stay_in_range_and_are_spread(allowed):
    rng = generator(0)
    values = [draw(allowed, rng) for _ in range(300)]
    assert all(type(value) is float and within(value, allowed) for value in values)
    assert min(values) < allowed.default and len(set(values)) > 20


def test_drawn_choices_follow_their_weights():
    rng = generator(0)
    drawn = [draw(Choice((1, 2, 3), (0.2, 0.8, 0.0)), rng) for _ in range(400)]
    # 0.2 with a standard deviation of 0.02
    assert drawn.count(1) / 400 == pytest.approx(0.2, abs=0.08) and 3 not in drawn


@pytest.mark.parametrize("to_zero", [False, True])
def test_children_are_complete_and_in_range(to_zero):
    space = Space(VP, 5, to_zero=to_zero, max_order=4)
    population = some(space, 20)
    rng = generator(1)
    for _ in range(100):
        child = propose(space, population, rng=rng)
        ranges = asked(space, child)
        assert set(child) == set(ranges)
        assert all(within(child[name], allowed) for name, allowed in ranges.items())
        population.append((child, 0.0))


def test_children_follow_from_the_generator_alone():
    space = Space(VP, 5)
    population = some(space, 5)
    before = torch.get_rng_state()
    for known in ([], population):
        one, other, another = (
            [propose(space, known, rng=rng) for _ in range(5)] for rng in map(generator, (3, 3, 4))
        )
        assert one == other != another
        assert len({str(child) for child in one}) == 5
    assert torch.equal(before, torch.get_rng_state())


def answered(one, other, *, mutation=0.0, seeds=range(40)):
    space = Space(VP, 4, analytic=False)
    for seed in seeds:
        child = Child(one, other, generator(seed), mutation)
        space.build(child.ask)
        yield child.decisions


def two_parents():
    """They differ in every decision that both take."""
    space = Space(VP, 4, analytic=False)
    order = itertools.count()

    def ask(value):
        return lambda name, allowed: (
            allowed.options[value if name.startswith(("pred", "corr")) else 0]
            if isinstance(allowed, Choice)
            else 0.5 + value + 0.01 * next(order)
        )

    parents = []
    for value in (0, 1):
        child = {}
        answer = ask(value)

        def keep(name, allowed, child=child, answer=answer):
            child[name] = min(answer(name, allowed), 1.0) if name == "end" else answer(name, allowed)
            return child[name]

        space.build(keep)
        parents.append(child)
    return parents


def test_a_child_of_one_parent_without_mutation_is_its_copy():
    for parent in two_parents():
        assert all(child == parent for child in answered(parent, None))


def test_a_cross_takes_from_both_whole_kinds_or_step_by_step():
    one, other = two_parents()
    sources = []
    for child in answered(one, other):
        source = {name: {one.get(name): 1, other.get(name): 2}.get(value) for name, value in child.items()}
        inherited = {name for name in child if name in one and name in other}
        assert all(source[name] for name in inherited)
        kinds = {name.split("_")[0]: set() for name in inherited}
        for name in inherited:
            kinds[name.split("_")[0]].add(source[name])
        sources.append(kinds)
    assert sum(len(set().union(*kinds.values())) == 2 for kinds in sources) > 30
    # about half of the crosses never mix a kind
    whole = sum(all(len(found) == 1 for found in kinds.values()) for kinds in sources)
    assert 8 < whole < 32
    assert sum({1, 2} == kinds["gap"] for kinds in sources) > 5


def test_mutations_are_small_steps_of_numbers():
    parent = two_parents()[0]
    gaps = [child["gap_1"] / parent["gap_1"] for child in answered(parent, None, mutation=1.0)]
    # a log-normal step of GAP.spread: no draw of 40 beyond five of them
    assert all(abs(torch.tensor(gap).log()) < 5 * GAP.spread for gap in gaps) and len(set(gaps)) == 40


def test_inherited_choices_out_of_range_are_drawn_anew():
    parent = two_parents()[0] | {"order_1": 4}
    assert {child["order_1"] for child in answered(parent, None)} == {1, 2}


def test_a_space_without_plans_says_so():
    space = Space(EDM(1.0, 1.0005), 4, to_zero=False)
    with pytest.raises(ConfigError, match="No plan could be made of this space; widen the range"):
        propose(space, [], rng=generator(0))


def test_evolution_beats_drawing_at_random():
    """150 trials each on the mixture at 5 calls, none of them a known sampler."""
    task, seeds = Task(reference_mixture().model(VP)), range(32)
    solution = task.solve(PRESETS["unipc-3"](VP, 60), seeds)
    space = Space(VP, 5, to_zero=False)

    def best(evolve, seed):
        rng, population = generator(seed), []
        for _ in range(150):
            decisions = propose(space, population if evolve else [], rng=rng)
            try:
                error = float(distances(task.solve(plan_of(space, decisions), seeds), solution).mean())
            except DataError:
                continue
            population.append((decisions, error))
        return min(error for _, error in population)

    evolved, random = ([best(evolve, seed) for seed in (0, 2)] for evolve in (True, False))
    assert sum(evolved) < 0.8 * sum(random)
