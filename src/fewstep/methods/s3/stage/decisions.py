"""Trials of plans: decisions of a space that are proposed by evolution, a learnt ranker, TPE or chance, and scored."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from fewstep.checks import ConfigError, DataError
from fewstep.methods.s3.evolution import draw, propose
from fewstep.methods.s3.ranker import Fitted, fit_ranker, propose_ranked
from fewstep.methods.s3.space import Choice, Decisions, Range, Real, Space
from fewstep.pipeline import trials as studies
from fewstep.rng import generator
from fewstep.sampling.plan import Plan

SAMPLERS = ("s3", "s3-ranked", "tpe", "random")
RANKED_FROM = 40  # completed trials before a ranker is worth training
RANKED_EVERY = 10  # trials between trainings of the ranker

Report = Callable[[float], bool]
"""Takes the error on the next part of the noises; True: the trial may end here."""
Score = Callable[[Plan, Report], tuple[float, bool]]
"""From a plan to its mean error over the noises it saw, and whether it saw all of them."""


def run_plan_trials(
    study: studies.Study,
    space: Space,
    score: Score,
    *,
    trials: int,
    sampler: str,
    seed: int,
    network_calls: Callable[[], int],
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> None:
    """Try plans until the study holds `trials` finished trials; trial k draws from (seed, k) and those before it.

    Args:
        study: of one objective.
        space: what plans there are.
        score: raises DataError for a plan whose state is not finite, which disqualifies it.
        trials: how many.
        sampler: one of `SAMPLERS`.
        seed: of all draws.
        network_calls: calls so far.
        progress: wraps the trials.

    Raises:
        ConfigError: there is no such sampler.
    """

    def evaluate(trial: studies.Trial) -> float | None:
        try:
            plan = space.build(lambda name, allowed: trial.decide(name, _domain(allowed)))
            trial.note("plan", plan.hash)
            value, complete = score(plan, trial.report)
        except (ConfigError, DataError) as error:
            raise studies.Disqualified(str(error)) from None
        return value if complete else None

    studies.run_trials(
        study,
        evaluate,
        sampler=Proposals(study, space, sampler, seed),
        trials=trials,
        network_calls=network_calls,
        progress=progress,
    )


@dataclass
class Proposals:
    """Makes the sampler of each trial of a study; keeps the ranker between them."""

    study: studies.Study
    space: Space
    name: str
    seed: int
    _ranker: Fitted | None = field(default=None, init=False)
    _trained_at: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}; got {self.name!r}.")

    def __call__(self, number: int) -> studies.Sampler:
        """That of trial `number`."""
        rng = generator(self.seed, "trial", self.space.nfe, number)
        if self.name == "tpe":
            return studies.tpe(rng)
        return studies.Answers(lambda: self._proposed(number, rng), lambda domain: draw(_range(domain), rng))

    def _proposed(self, number: int, rng: torch.Generator) -> Decisions:
        if self.name == "random":
            return propose(self.space, [], rng=rng)
        population = scored(self.study)
        if self.name == "s3-ranked" and len(population) >= RANKED_FROM:
            return propose_ranked(self.space, population, self._ranker_of(number), rng=rng)
        return propose(self.space, population, rng=rng)

    def _ranker_of(self, number: int) -> Fitted:
        """The ranker for a trial: which trials it was trained on depends on the numbers alone, not on interruptions."""
        completed = studies.completed(self.study)
        first = completed[RANKED_FROM - 1].number + 1
        at = max(first, number - (number - first) % RANKED_EVERY)
        if self._ranker is None or self._trained_at != at:
            known = [(trial.decisions, trial.scores[0]) for trial in completed if trial.number < at]
            self._ranker, self._trained_at = fit_ranker(self.space, known, seed=self.seed), at
        return self._ranker


def _domain(allowed: Range) -> studies.Domain:
    if isinstance(allowed, Choice):
        return studies.Options(allowed.options)
    return studies.Interval(allowed.low, allowed.high, allowed.log)


def _range(domain: studies.Domain) -> Range:
    """A range of the same bounds without preferences."""
    if isinstance(domain, studies.Options):
        return Choice(domain.values, (1.0,) * len(domain.values))  # type: ignore[arg-type]
    low, high, log = (
        float(domain.low),
        float(domain.high),
        isinstance(domain, studies.Interval) and domain.log,
    )
    middle = math.sqrt(low * high) if log else (low + high) / 2
    width = math.log(high / low) if log else high - low
    return Real(low, high, middle, width / 6, log)


def scored(study: studies.Study) -> list[tuple[Decisions, float]]:
    """Decisions and scores of the completed trials."""
    return [(trial.decisions, trial.scores[0]) for trial in studies.completed(study)]


def best_decisions(study: studies.Study, n: int) -> list[tuple[str, Decisions]]:
    """Name and decisions of the best completed trials."""
    trials = sorted(studies.completed(study), key=lambda trial: (trial.scores[0], trial.number))
    return [(f"trial-{trial.number}", trial.decisions) for trial in trials[:n]]


def best_note(study: studies.Study) -> str:
    """The best score so far, for a progress bar."""
    best = min((trial.scores[0] for trial in studies.completed(study)), default=math.nan)
    return f"best {best:.4g}"
