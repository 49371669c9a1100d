"""Studies: trials on a storage that several workers share, and that outlives any of them.

With `lost_trials`, `storage` and `journal` the only module that imports Optuna. What a trial decides, who proposes its
decisions, and what it scores come from outside.
"""

import copy
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from fewstep.checks import ConfigError, UserError
from fewstep.files import canonical_json, sha256_text
from fewstep.pipeline.lost_trials import (
    REGISTERED,
    finished,
    has_ended,
    kept,
    number_of,
    release_lost,
    release_stale,
    signs_of_life,
    this_worker,
    was_disqualified,
    was_lost,
)
from fewstep.pipeline.storage import open_storage, unusable
from fewstep.rng import generator

CLOCKED = ("seconds",)
"""Columns of `trials_frame` that depend on the clock. All others are the same to the bit, however often a search of one
worker was interrupted; so are `network_calls`, `history` and, but for `lost`, `counts`."""

Study = optuna.Study
Sampler = optuna.samplers.BaseSampler
"""Proposes the decisions of one trial: `Answers`, `tpe` or `nsga2`."""

Value = float | int | str
Decisions = Mapping[str, Value]


@dataclass(frozen=True)
class Options:
    """A decision between some values."""

    values: tuple[Value, ...]

    def __contains__(self, value: Value) -> bool:
        return value in self.values


@dataclass(frozen=True)
class Interval:
    """A number between two bounds; `log`: what matters is its logarithm."""

    low: float
    high: float
    log: bool = False

    def __contains__(self, value: Value) -> bool:
        return self.low <= float(value) <= self.high


@dataclass(frozen=True)
class Integers:
    """An ordinal whole number between two bounds, both included."""

    low: int
    high: int

    def __contains__(self, value: Value) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high


Domain = Options | Interval | Integers


class Disqualified(Exception):
    """Raised by a trial that can have no score; the message says why."""


# Studies


def open_study(
    storage: str, name: str, identity: Mapping[str, Any], *, parts: int | None = None, objectives: int = 1
) -> Study:
    """Make a study of scores to be minimised, or join the one that is there.

    Args:
        storage: a journal file, or the URL of a database that several machines reach.
        name: of the study in the storage, where a hash of the identity follows it.
        identity: all that the scores depend on; each has a study of its own.
        parts: reports that a trial makes, of which the first are compared with those of the best trial: one that is
            worse beyond chance is pruned. None: trials report nothing.
        objectives: scores of a trial.

    Raises:
        ConfigError: the storage cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options: dict[str, Any] = {"directions": ["minimize"] * objectives}
    if parts is not None:
        with _experimental_parts():
            options["pruner"] = optuna.pruners.WilcoxonPruner(
                p_threshold=0.1, n_startup_steps=max(2, parts // 4)
            )
    place, known = open_storage(storage), canonical_json(dict(identity))
    name = f"{name}.{sha256_text(known)[:8]}"
    try:
        study = optuna.create_study(storage=place, study_name=name, load_if_exists=True, **options)
        study.set_user_attr("identity", known)
    except UserError:
        raise
    except Exception as error:  # each database has errors of its own
        raise unusable(storage, error) from None
    release_lost(study)
    study.set_user_attr(REGISTERED + this_worker(), True)
    return study


@contextmanager
def _experimental_parts() -> Iterator[None]:
    """Use what Optuna may still change: its version is pinned, and tests run what is used here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def enqueue(study: Study, known: Sequence[tuple[str, Decisions]]) -> None:
    """Have named decisions tried first, each once, however often and by however many workers the search is started.

    The worker that makes a study of this name first does it, as no two can; the others wait, or do it if that one died.
    """
    if ENQUEUED in study.user_attrs or not known:
        return
    place = study._storage
    claim = f"{study.study_name}.{ENQUEUED}"
    try:
        first = place.create_new_study(study.directions, claim)
        place.set_study_user_attr(first, "worker", this_worker())
    except DuplicatedStudyError:
        first = place.get_study_id_from_name(claim)
        began = time.monotonic()
        while time.monotonic() - began < ENQUEUING:
            if ENQUEUED in study.user_attrs:
                return
            worker = place.get_study_user_attrs(first).get("worker")
            if has_ended(worker) if worker else time.monotonic() - began > SIGNING:
                break
            time.sleep(0.1)
    for name, decisions in known:
        study.enqueue_trial(dict(decisions), user_attrs={"seed": name}, skip_if_exists=True)
    study.set_user_attr(ENQUEUED, True)


ENQUEUED = "enqueued"
SIGNING = 3.0  # seconds in which a worker has said that it does so
ENQUEUING = 120.0  # seconds in which a worker has put the known decisions into a study, or has died


# The loop


class Trial:
    """A trial that is being run."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self._parts = itertools.count()

    def decide(self, name: str, domain: Domain) -> Value:
        """The decision of that name, which the sampler of the trial proposes or which was enqueued."""
        chosen: Any
        match domain:
            case Options(values):
                chosen = self._trial.suggest_categorical(name, values)
            case Interval(low, high, log):
                chosen = self._trial.suggest_float(name, low, high, log=log)
            case Integers(low, high):
                chosen = self._trial.suggest_int(name, low, high)
        value: Value = chosen
        return value

    def report(self, error: float) -> bool:
        """Report the error on the next part; True: the trial is worse than the best one, and may end here."""
        part, study = next(self._parts), self._trial.study
        with warnings.catch_warnings():  # a trial whose first worker died has parts of its errors already
            warnings.filterwarnings("ignore", "The reported value is ignored")
            self._trial.report(error, part)
        seen = copy.copy(self._trial.storage.get_trial(self._trial._trial_id))
        # parts that the first worker reported beyond this one would end the trial earlier than it ended there
        seen.intermediate_values = {k: e for k, e in seen.intermediate_values.items() if k <= part}
        return study.pruner.prune(study, seen)

    def note(self, name: str, value: Any) -> None:
        """Leave a fact beside the trial."""
        self._trial.set_user_attr(name, value)


Evaluate = Callable[[Trial], float | tuple[float, ...] | None]
"""Runs a trial: its scores, or None where it ended early as hopeless; raises Disqualified."""


def run_trials(
    study: Study,
    evaluate: Evaluate,
    *,
    sampler: Callable[[int], Sampler],
    trials: int,
    network_calls: Callable[[], int],
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> None:
    """Run trials until the study holds `trials` finished ones, those of other workers among them.

    Trial k is proposed from its number and the trials before it, so that a search that was interrupted ends as it
    would have; only workers side by side make a search depend on their timing. No two propose from one number.

    Args:
        study: from `open_study`.
        evaluate: runs a trial.
        sampler: that of trial k, counted without those that were lost.
        trials: how many.
        network_calls: calls so far, of which each trial's are kept beside it.
        progress: wraps the trials.
    """
    bar = iter(progress(range(trials)))
    shown = 0
    while (done := len(finished(study))) < trials:
        for _ in range(done - shown):
            next(bar, None)
        shown = max(done, shown)
        release_stale(study)
        study.sampler = _OfNumber(study, sampler)
        with warnings.catch_warnings():  # which are given below
            warnings.filterwarnings("ignore", "Heartbeat of storage")
            trial = study.ask()
        with signs_of_life(study, trial._trial_id):
            trial.set_user_attr("worker", this_worker())
            # NSGA-II counts a trial into a generation when these are read, which they are not where all is enqueued
            _ = trial.relative_params
            before = network_calls()
            try:
                scores = evaluate(Trial(trial))
                state = TrialState.PRUNED if scores is None else TrialState.COMPLETE
            except Disqualified as reason:
                trial.set_user_attr("disqualified", str(reason))
                scores, state = None, TrialState.FAIL
            trial.set_user_attr("network_calls", network_calls() - before)
        with suppress(UpdateFinishedTrialError):  # another worker has taken this one for dead
            study.tell(trial, scores, state=state)
    for _ in bar:
        pass


# Samplers


class _OfNumber(optuna.samplers.BaseSampler):
    """The sampler of a trial, made from its number as soon as it has one."""

    def __init__(self, study: Study, make: Callable[[int], Sampler]) -> None:
        self._study, self._make = study, make
        self._own: Sampler = optuna.samplers.RandomSampler()  # never asked: `before_trial` comes first

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make it."""
        self._own = self._make(number_of(self._study, trial))
        self._own.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler."""
        return self._own.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler."""
        return self._own.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler."""
        return self._own.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler."""
        self._own.after_trial(study, trial, state, values)


class Answers(optuna.samplers.BaseSampler):
    """Answers from decisions that are made as a whole, when the first one is wanted.

    Args:
        decide: makes them.
        draw: draws what they leave open, or where they have a value out of bounds.
    """

    def __init__(self, decide: Callable[[], Decisions], draw: Callable[[Domain], Value]) -> None:
        self._decide, self._draw = decide, draw
        self._decisions: Decisions | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing: which decisions there are depends on those before."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing, see above."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The decision of that name."""
        if self._decisions is None:
            self._decisions = self._decide()
        value, domain = self._decisions.get(param_name), _domain(param_distribution)
        return value if value is not None and value in domain else self._draw(domain)


def _domain(distribution: BaseDistribution) -> Domain:
    if isinstance(distribution, CategoricalDistribution):
        choices: Any = distribution.choices
        return Options(tuple(choices))
    if isinstance(distribution, IntDistribution):
        return Integers(distribution.low, distribution.high)
    assert isinstance(distribution, FloatDistribution)
    return Interval(distribution.low, distribution.high, distribution.log)


def tpe(rng: torch.Generator) -> Sampler:
    """Tree-structured Parzen estimators over all decisions together."""
    with _experimental_parts():
        return optuna.samplers.TPESampler(multivariate=True, group=True, seed=_seed(rng))


def nsga2(population: int, rng: torch.Generator) -> Sampler:
    """NSGA-II over ordinal integers [deb2002nsga2]; generations and parents are in the study itself."""
    with _experimental_parts():
        return _Genetic(
            population_size=population, crossover=_OnePoint(), mutation=_OneLevel(), seed=_seed(rng)
        )


def _seed(rng: torch.Generator) -> int:
    return int(rng.initial_seed() % (1 << 31))


class _Genetic(optuna.samplers.NSGAIISampler):
    """NSGA-II whose parents stand in one order, whether they have just been selected or are read from the study."""

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """Those that survive the generation before, by number."""
        return sorted(super().select_parent(study, generation), key=lambda t: t.number)


class _OnePoint(optuna.samplers.nsgaii.BaseCrossover):
    """The first genes of one parent, the rest of the other: neighbouring genes stay together."""

    n_parents = 2

    def crossover(self, parents_params: Any, rng: Any, study: optuna.Study, search_space_bounds: Any) -> Any:
        """A child (n,) of parents (2, n)."""
        first, second = parents_params
        cut = rng.randint(1, len(first)) if len(first) > 1 else 0
        return np.concatenate([first[:cut], second[cut:]])


class _OneLevel(optuna.samplers.nsgaii.BaseMutation):
    """One level up or down; at either end the other way."""

    def mutation(self, param: float, rng: Any, study: optuna.Study, search_space_bounds: Any) -> float:
        """The gene's new value, within its bounds."""
        low, high = search_space_bounds
        moved = param + (1.0 if rng.rand() < 0.5 else -1.0)
        return moved if low <= moved <= high else 2 * param - moved


# A Pareto front of genomes

Genome = tuple[int, ...]
"""Whole numbers from 0, one per gene."""


def evolve(
    study: Study,
    measure: Callable[[Genome], tuple[float, float]],
    *,
    genes: int,
    levels: int,
    known: Sequence[tuple[str, Genome]],
    population: int,
    generations: int,
    seed: int,
    network_calls: Callable[[], int],
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> None:
    """Evolve genomes by NSGA-II until a study of two objectives holds `generations` populations.

    Args:
        study: from `open_study` with two objectives.
        measure: the two objectives; raises Disqualified for a genome that cannot have them.
        genes: of a genome.
        levels: values of a gene, which are ordinal.
        known: named genomes of the first population.
        population: genomes of a generation.
        generations: populations, the first among them.
        seed: of all draws.
        network_calls: as in `run_trials`.
        progress: wraps the trials.

    Raises:
        ConfigError: fewer than two populations, or a first one that is too small for `known`.
    """
    if population < 2 or generations < 2 or len(known) > population:
        raise ConfigError(
            f"An evolution needs 2 generations or more of 2 genomes or more, {len(known)} known ones in the first; "
            f"got {generations} of {population}; raise generations or population."
        )
    names = [f"w{i:03d}" for i in range(genes)]  # the crossover cuts in the order of the names
    enqueue(study, [(name, dict(zip(names, genome, strict=True))) for name, genome in known])

    def evaluate(trial: Trial) -> tuple[float, float]:
        return measure(tuple(int(trial.decide(name, Integers(0, levels - 1))) for name in names))

    run_trials(
        study,
        evaluate,
        sampler=lambda number: nsga2(population, generator(seed, "front", number)),
        trials=population * generations,
        network_calls=network_calls,
        progress=progress,
    )


# What a study says


@dataclass(frozen=True)
class Completed:
    """A trial that was evaluated to the end.

    Attributes: number: counted without lost trials, so that it is that of a search that was never interrupted.
    """

    number: int
    decisions: dict[str, Value]
    scores: tuple[float, ...]


def completed(study: Study) -> list[Completed]:
    """The trials that were evaluated to the end, in order."""
    return [
        Completed(number, dict(t.params), tuple(t.values))
        for number, t in kept(study)
        if t.state == TrialState.COMPLETE
    ]


def counts(study: Study) -> dict[str, int]:
    """How many trials ended in which way; how many were lost depends on the clock, the others do not."""
    trials = study.get_trials(deepcopy=False)
    return {
        "complete": sum(t.state == TrialState.COMPLETE for t in trials),
        "pruned": sum(t.state == TrialState.PRUNED for t in trials),
        "disqualified": sum(map(was_disqualified, trials)),
        "lost": sum(map(was_lost, trials)),
    }


def network_calls(study: Study) -> int:
    """Of all finished trials, whichever process ran them; those of lost trials are not known."""
    return sum(t.user_attrs.get("network_calls", 0) for _, t in finished(study))


def history(study: Study) -> list[tuple[int, float]]:
    """Network calls spent and the best score by then, at each trial that improved it; for studies of one objective."""
    curve: list[tuple[int, float]] = []
    spent, best = 0, math.inf
    for _, trial in finished(study):
        spent += trial.user_attrs.get("network_calls", 0)
        if trial.state == TrialState.COMPLETE and trial.value is not None and trial.value < best:
            best = trial.value
            curve.append((spent, best))
    return curve


def importance(study: Study) -> dict[str, float]:
    """Share of the scores' spread that each decision explains, those that every trial has; largest first."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(trials) < 10:
        return {}
    shared = sorted(set.intersection(*(set(trial.params) for trial in trials)))
    found = optuna.importance.get_param_importances(
        study, params=shared, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
    )
    return {name: float(value) for name, value in found.items()}


def trials_frame(study: Study) -> pd.DataFrame:
    """One row per finished trial: number, state, value, network calls, where it came from, and its decisions.

    Lost trials have no row and no number, see `CLOCKED`. A study of several objectives has value_0, value_1, ... and
    the generation, where it evolves.
    """
    rows = [
        {
            "number": number,
            "state": t.state.name.lower(),
            **_scores(t, len(study.directions)),
            "network_calls": t.user_attrs.get("network_calls", 0),
            "seed": t.user_attrs.get("seed", ""),
            "plan": t.user_attrs.get("plan", ""),
            "disqualified": t.user_attrs.get("disqualified", ""),
            "seconds": t.duration.total_seconds() if t.duration else math.nan,
            **t.params,
        }
        for number, t in finished(study)
    ]
    return pd.DataFrame(rows)


def _scores(trial: FrozenTrial, objectives: int) -> dict[str, Any]:
    if objectives == 1:
        return {"value": trial.value}
    values = trial.values or [math.nan] * objectives
    generation = trial.system_attrs.get(_Genetic._get_generation_key())
    return {**{f"value_{i}": value for i, value in enumerate(values)}, "generation": generation}
