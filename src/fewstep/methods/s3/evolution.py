"""Steady-state evolution of decisions, with the operators and rates of the authors' code [liu2024usf, App.]."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fewstep.checks import ConfigError
from fewstep.methods.s3.space import Choice, Decision, Decisions, Range, Space

PARENTS = 15
CROSSOVER = 0.3
PER_STEP = 0.5
MUTATION = 0.3
ATTEMPTS = 100


def draw(allowed: Range, rng: torch.Generator) -> Decision:
    """A decision drawn without any knowledge."""
    if isinstance(allowed, Choice):
        chosen = torch.multinomial(torch.tensor(allowed.weights), 1, generator=rng)
        return allowed.options[int(chosen)]
    low, high = (np.log((allowed.low, allowed.high))) if allowed.log else (allowed.low, allowed.high)
    default = np.log(allowed.default) if allowed.log else allowed.default
    value = np.clip(default + 3 * allowed.spread * _normal(rng), low, high)
    # once more, as a bound's exponential of its logarithm may round past it
    return float(np.clip(np.exp(value), allowed.low, allowed.high)) if allowed.log else float(value)


def _normal(rng: torch.Generator) -> float:
    return float(torch.randn((), generator=rng, dtype=torch.float64))


def _chance(probability: float, rng: torch.Generator) -> bool:
    return float(torch.rand((), generator=rng)) < probability


@dataclass
class Child:
    """Answers as its parents did, with mutations; what they never decided is drawn."""

    one: Decisions
    other: Decisions | None
    rng: torch.Generator
    mutation: float = MUTATION
    decisions: Decisions = field(default_factory=dict)
    _from_other: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._per_step = _chance(PER_STEP, self.rng)

    def ask(self, name: str, allowed: Range) -> Decision:
        """An answer within the range."""
        inherited = self._parent_of(name).get(name)
        if inherited is None or (isinstance(allowed, Choice) and inherited not in allowed.options):
            value = draw(allowed, self.rng)
        elif _chance(self.mutation, self.rng):
            value = self._mutated(inherited, allowed)
        else:
            value = inherited
        self.decisions[name] = value
        return value

    def _parent_of(self, name: str) -> Decisions:
        """Each kind of decision comes from one parent as a whole, or is mixed step by step."""
        if self.other is None:
            return self.one
        kind = name if self._per_step else name.split("_")[0]
        if kind not in self._from_other:
            self._from_other[kind] = _chance(0.5, self.rng)
        return self.other if self._from_other[kind] else self.one

    def _mutated(self, value: Decision, allowed: Range) -> Decision:
        if isinstance(allowed, Choice):
            return draw(allowed, self.rng)
        step = allowed.spread * _normal(self.rng)
        moved = float(value) * float(np.exp(step)) if allowed.log else float(value) + step
        return float(np.clip(moved, allowed.low, allowed.high))


def propose(
    space: Space, population: Sequence[tuple[Decisions, float]], *, rng: torch.Generator
) -> Decisions:
    """Decisions for the next trial: a mutated copy of a good plan, or of a cross of two; drawn if there is none.

    Args: population: decisions and scores so far, lower is better.
    """
    best = [decisions for decisions, _ in sorted(population, key=lambda entry: entry[1])[:PARENTS]]
    for _ in range(ATTEMPTS):
        child = _child(best, rng)
        try:
            space.build(child.ask)
        except ConfigError:  # nodes too close: the next child
            continue
        return child.decisions
    raise ConfigError("No plan could be made of this space; widen the range of times or lower nfe.")


def _child(best: Sequence[Decisions], rng: torch.Generator) -> Child:
    if not best:
        return Child({}, None, rng)
    first, second = (int(torch.randint(len(best), (), generator=rng)) for _ in range(2))
    crossed = len(best) > 1 and _chance(CROSSOVER, rng)
    return Child(best[first], best[second] if crossed else None, rng)
