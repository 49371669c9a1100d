"""Searches as Optuna studies: trials on a storage that several workers share, that outlives any of them.

The only module that imports Optuna. What a trial decides and what it scores come from outside.
"""

import itertools
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from fewstep.checks import ConfigError, DataError
from fewstep.files import canonical_json
from fewstep.methods.s3.evolution import draw, propose
from fewstep.methods.s3.ranker import fit_ranker, propose_ranked
from fewstep.methods.s3.space import Choice, Decision, Decisions, Range, Real, Space, within
from fewstep.rng import generator
from fewstep.sampling.plan import Plan

SAMPLERS = ("s3", "s3-ranked", "tpe", "random")
RANKED_FROM = 40  # finished trials before a ranker is worth training
RANKED_EVERY = 10  # trials between trainings of the ranker
UNSIGNED = timedelta(minutes=1)  # after which a trial without a worker has lost it

Report = Callable[[float], bool]
"""Takes the error on the next part of the noises; True: give the trial up."""
Score = Callable[[Plan, Report], tuple[float, bool]]
"""From a plan to its mean error over the noises it saw, and whether it saw all of them."""


def open_study(storage: str, name: str, identity: Mapping[str, Any], *, parts: int) -> optuna.Study:
    """Make a study, or join the one that is there.

    Args: storage: a journal file, or the URL of a database that several machines reach.
        identity: all that the scores depend on; a study of another search is refused.
        parts: reports that a trial makes; one whose errors, part by part, are worse than those of the best trial
            beyond chance is given up.
    Raises: ConfigError: the storage cannot be used, or holds another search under this name.
    """
    with _experimental_parts():
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1, n_startup_steps=max(2, parts // 4))
    return _joined(storage, name, identity, directions=["minimize"], pruner=pruner)


def _joined(storage: str, name: str, identity: Mapping[str, Any], **options: Any) -> optuna.Study:
    """The study of that name, made with these options if it is not there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        place = _storage(storage)
        study = optuna.create_study(storage=place, study_name=name, load_if_exists=True, **options)
    except Exception as error:  # each database has errors of its own
        raise _unreachable(storage, error) from None
    wanted = canonical_json(dict(identity))
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", wanted)
    elif known != wanted:
        raise ConfigError(
            f"The study {name} in {storage} must be of this search, but it was made with other settings, model "
            "or seeds; name another storage, or remove that one."
        )
    _release_lost(study, place)
    return study


def require_storage(storage: str) -> None:
    """Fail before work starts where a storage cannot be reached.
    Raises: ConfigError: as in `open_study`.
    """
    try:
        _storage(storage).get_all_studies()
    except Exception as error:  # each database has errors of its own
        raise _unreachable(storage, error) from None


def _unreachable(storage: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"The storage {storage} must be a journal file or a database that can be reached, but: "
        f"{' '.join(str(error).split())[:200]}; name another one."
    )


@contextmanager
def _experimental_parts() -> Iterator[None]:
    """Use what Optuna may still change: its version is pinned, and tests run what is used here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _storage(place: str) -> BaseStorage:
    if "://" in place:
        return RDBStorage(place)
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(place))


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _release_lost(study: optuna.Study, place: BaseStorage) -> None:
    """Give up trials whose worker on this machine is dead; what was enqueued waits again, in its old place."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _is_lost(trial):
            continue
        if trial.system_attrs.get("fixed_params"):
            place.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        else:
            study.tell(trial.number, state=TrialState.FAIL)


def _is_lost(trial: FrozenTrial) -> bool:
    host, _, process = trial.user_attrs.get("worker", "").rpartition(":")
    if not process:  # a worker signs a trial as soon as it has it
        return trial.datetime_start is None or datetime.now() - trial.datetime_start > UNSIGNED
    return host == socket.gethostname() and not Path("/proc", process).exists()


def enqueue(study: optuna.Study, known: Sequence[tuple[str, Decisions]]) -> None:
    """Have named plans tried first, each once, however often the search is started."""
    for name, decisions in known:
        study.enqueue_trial(decisions, user_attrs={"seed": name}, skip_if_exists=True)


def run_trials(
    study: optuna.Study,
    space: Space,
    score: Score,
    *,
    trials: int,
    sampler: str,
    seed: int,
    network_calls: Callable[[], int],
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> None:
    """Run trials until the study holds `trials` finished ones, those of other workers among them.

    Trial k draws from (seed, k) and the trials before it, so that a search that was broken off ends as it would
    have; only workers side by side make a search depend on their timing.

    Args:
        study: from `open_study`.
        space: what plans there are.
        trials: how many.
        seed: of all draws.
        score: raises DataError for a plan whose state is not finite, which disqualifies it.
        sampler: one of `SAMPLERS`.
        network_calls: calls so far, to be kept beside each trial.
        progress: wraps the trials.
    """
    source = _Source(space, sampler, seed)
    bar = iter(progress(range(trials)))
    shown = 0
    while (done := len(_finished(study))) < trials:
        for _ in range(done - shown):
            next(bar, None)
        shown = max(done, shown)
        study.sampler = source.sampler(study)
        trial = study.ask()
        trial.set_user_attr("worker", _worker())
        before = network_calls()
        state, value = _run(trial, space, score)
        trial.set_user_attr("network_calls", network_calls() - before)
        study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
        best = min((t.value for t in completed(study) if t.value is not None), default=math.nan)
        report = getattr(bar, "set_postfix_str", None)
        if report is not None:
            report(f"best {best:.4g}", refresh=False)
    for _ in bar:
        pass


def _run(trial: optuna.Trial, space: Space, score: Score) -> tuple[TrialState, float | None]:
    steps = itertools.count()

    def report(value: float) -> bool:
        with warnings.catch_warnings():  # a trial whose first worker died has parts of its values already
            warnings.filterwarnings("ignore", "The reported value is ignored")
            trial.report(value, next(steps))
        return trial.should_prune()

    try:
        plan = space.build(lambda name, allowed: _suggest(trial, name, allowed))
        trial.set_user_attr("plan", plan.hash)
        value, complete = score(plan, report)
    except (ConfigError, DataError) as error:
        trial.set_user_attr("disqualified", str(error))
        return TrialState.FAIL, None
    return (TrialState.COMPLETE if complete else TrialState.PRUNED), value


def _suggest(trial: optuna.Trial, name: str, allowed: Range) -> Decision:
    if isinstance(allowed, Choice):
        chosen: Decision = trial.suggest_categorical(name, allowed.options)
        return chosen
    return trial.suggest_float(name, allowed.low, allowed.high, log=allowed.log)


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that saw all noises."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def best_decisions(study: optuna.Study, n: int) -> list[tuple[str, Decisions]]:
    """Name and decisions of the best completed trials; lost ones do not count in the names."""
    kept = [t for t in study.get_trials(deepcopy=False) if not _was_lost(t)]
    ended = [(k, t) for k, t in enumerate(kept) if t.state == TrialState.COMPLETE]
    ordered = sorted(ended, key=lambda kt: (math.inf if kt[1].value is None else kt[1].value, kt[0]))
    return [(f"trial-{k}", dict(t.params)) for k, t in ordered[:n]]


def _was_lost(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and "disqualified" not in trial.user_attrs


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that need not be run again: completed, given up as bad, or disqualified."""
    trials = study.get_trials(deepcopy=False)
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    return [t for t in trials if t.state in ended or "disqualified" in t.user_attrs]


def population(study: optuna.Study) -> list[tuple[Decisions, float]]:
    """Decisions and scores of the completed trials."""
    return [(dict(trial.params), trial.value) for trial in completed(study) if trial.value is not None]


class _Source:
    """Makes the Optuna sampler of each trial; keeps the ranker between them."""

    def __init__(self, space: Space, name: str, seed: int) -> None:
        if name not in SAMPLERS:
            raise ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}; got {name!r}.")
        self.space, self.name, self.seed = space, name, seed
        self.ranker: Any = None
        self.trained_at = -RANKED_EVERY

    def sampler(self, study: optuna.Study) -> optuna.samplers.BaseSampler:
        """That of the next trial, whose number among those not lost is its seed."""
        trials = study.get_trials(deepcopy=False)
        number = sum(not _was_lost(t) and t.state != TrialState.WAITING for t in trials)
        rng = generator(self.seed, "trial", self.space.nfe, number)
        if self.name == "tpe":
            with _experimental_parts():
                return optuna.samplers.TPESampler(
                    multivariate=True, group=True, seed=int(rng.initial_seed() % (1 << 31))
                )
        if self.name == "random":
            return _Decided(lambda: propose(self.space, [], rng=rng), rng)
        return _Decided(lambda: self._evolved(study, number, rng), rng)

    def _evolved(self, study: optuna.Study, number: int, rng: Any) -> Decisions:
        known = population(study)
        if self.name == "s3-ranked" and len(known) >= RANKED_FROM:
            if number - self.trained_at >= RANKED_EVERY:
                self.ranker, self.trained_at = fit_ranker(self.space, known, seed=self.seed), number
            return propose_ranked(self.space, known, self.ranker, rng=rng)
        return propose(self.space, known, rng=rng)


class _Decided(optuna.samplers.BaseSampler):
    """Answers from decisions made as a whole; draws what they leave open."""

    def __init__(self, decide: Callable[[], Decisions], rng: Any) -> None:
        self.decide, self.rng = decide, rng
        self.decisions: Decisions | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing: the space is asked for one decision after another."""
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
        if self.decisions is None:
            self.decisions = self.decide()
        value = self.decisions.get(param_name)
        allowed = _range(param_distribution)
        return value if value is not None and within(value, allowed) else draw(allowed, self.rng)


def _range(distribution: BaseDistribution) -> Range:
    if isinstance(distribution, CategoricalDistribution):
        return Choice(tuple(distribution.choices), (1.0,) * len(distribution.choices))  # type: ignore[arg-type]
    assert isinstance(distribution, FloatDistribution)
    low, high, log = distribution.low, distribution.high, distribution.log
    usual = math.sqrt(low * high) if log else (low + high) / 2
    width = math.log(high / low) if log else high - low
    return Real(low, high, usual, width / 6, log)


def counts(study: optuna.Study) -> dict[str, int]:
    """How many trials ended in which way."""
    trials = study.get_trials(deepcopy=False)
    disqualified = sum("disqualified" in t.user_attrs for t in trials)
    return {
        "complete": sum(t.state == TrialState.COMPLETE for t in trials),
        "pruned": sum(t.state == TrialState.PRUNED for t in trials),
        "disqualified": disqualified,
        "lost": sum(t.state == TrialState.FAIL for t in trials) - disqualified,
    }


def network_calls(study: optuna.Study) -> int:
    """Of all trials, whichever process ran them."""
    return sum(t.user_attrs.get("network_calls", 0) for t in study.get_trials(deepcopy=False))


def history(study: optuna.Study) -> list[tuple[int, float]]:
    """Network calls spent and the best score by then, at each trial that improved it."""
    curve: list[tuple[int, float]] = []
    spent, best = 0, math.inf
    for trial in study.get_trials(deepcopy=False):
        spent += trial.user_attrs.get("network_calls", 0)
        if trial.state == TrialState.COMPLETE and trial.value is not None and trial.value < best:
            best = trial.value
            curve.append((spent, best))
    return curve


def importance(study: optuna.Study) -> dict[str, float]:
    """Share of the scores' spread that each decision explains, those that every trial has; largest first."""
    trials = completed(study)
    if len(trials) < 10:
        return {}
    shared = sorted(set.intersection(*(set(trial.params) for trial in trials)))
    found = optuna.importance.get_param_importances(
        study, params=shared, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
    )
    return {name: float(value) for name, value in found.items()}


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """One row per trial: number, state, value, network calls, where it came from, and its decisions."""
    rows = [
        {
            "number": t.number,
            "state": t.state.name.lower(),
            "value": t.value,
            "network_calls": t.user_attrs.get("network_calls"),
            "seed": t.user_attrs.get("seed", ""),
            "plan": t.user_attrs.get("plan", ""),
            "disqualified": t.user_attrs.get("disqualified", ""),
            "seconds": t.duration.total_seconds() if t.duration else math.nan,
            **t.params,
        }
        for t in study.get_trials(deepcopy=False)
        if t.state.is_finished()
    ]
    return pd.DataFrame(rows)


# Two objectives: a front of genomes


Genome = tuple[int, ...]
"""Whole numbers from 0, one per gene."""


def open_front(storage: str, name: str, identity: Mapping[str, Any]) -> optuna.Study:
    """Make or join a study of two objectives, both to be small.
    Args, Raises: as in `open_study`.
    """
    return _joined(storage, name, identity, directions=["minimize", "minimize"])


def run_front(
    study: optuna.Study,
    measure: Callable[[Genome], tuple[float, float]],
    *,
    genes: int,
    levels: int,
    known: Sequence[tuple[str, Genome]],
    population: int,
    generations: int,
    seed: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> None:
    """Evolve genomes by NSGA-II [deb2002nsga2] until the study holds `generations` populations.

    As in `run_trials`, trial k draws from (seed, k) and the trials before it: a search that was broken off loses the
    trial it was at, and ends as it would have.

    Args:
        study: from `open_front`.
        measure: the two objectives; raises DataError for a genome that cannot have them, which disqualifies it.
        genes: of a genome.
        levels: values of a gene, which are ordinal.
        known: named genomes of the first population.
        population: genomes of a generation.
        generations: populations, the first among them.
        seed: of all draws.
        progress: wraps the trials.

    Raises:
        ConfigError: fewer than two populations, or a first one that is too small for `known`.
    """
    if population < 2 or generations < 2 or len(known) > population:
        raise ConfigError(
            f"An evolution needs 2 generations or more of 2 genomes or more, {len(known)} known ones in the first; "
            f"got {generations} of {population}; raise stepaware.generations or stepaware.population."
        )
    names = [f"w{i:03d}" for i in range(genes)]  # the crossover cuts in the order of the names
    for name, genome in known:
        study.enqueue_trial(
            dict(zip(names, genome, strict=True)), user_attrs={"seed": name}, skip_if_exists=True
        )
    trials = population * generations
    bar = iter(progress(range(trials)))
    shown = 0
    while (done := len(_finished(study))) < trials:
        for _ in range(done - shown):
            next(bar, None)
        shown = max(done, shown)
        study.sampler = _genetic(study, population, seed)
        trial = study.ask()
        trial.set_user_attr("worker", _worker())
        # Optuna counts a trial into a generation when it is asked for these, which it is not where all is fixed
        _ = trial.relative_params
        genome = tuple(trial.suggest_int(name, 0, levels - 1) for name in names)
        try:
            study.tell(trial, measure(genome))
        except DataError as error:
            trial.set_user_attr("disqualified", str(error))
            study.tell(trial, state=TrialState.FAIL)
    for _ in bar:
        pass


def front_frame(study: optuna.Study) -> pd.DataFrame:
    """One row per finished trial of `run_front`: generation, state, objectives, name of a known one, and genes.

    Trials that a killed worker lost are left out, so that it is the table of a search that was never broken off.
    """
    rows = [
        {
            "generation": t.system_attrs.get(_Genetic._get_generation_key()),
            "state": t.state.name.lower(),
            "first": t.values[0] if t.values else math.nan,
            "second": t.values[1] if t.values else math.nan,
            "seed": t.user_attrs.get("seed", ""),
            **t.params,
        }
        for t in study.get_trials(deepcopy=False)
        if t.state.is_finished() and not _was_lost(t)
    ]
    return pd.DataFrame(rows)


def _genetic(study: optuna.Study, population: int, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of the next trial; generations and parents are in the study itself."""
    trials = study.get_trials(deepcopy=False)
    number = sum(not _was_lost(t) and t.state != TrialState.WAITING for t in trials)
    rng = generator(seed, "front", number)
    with _experimental_parts():
        return _Genetic(
            population_size=population,
            crossover=_OnePoint(),
            mutation=_OneLevel(),
            seed=int(rng.initial_seed() % (1 << 31)),
        )


class _Genetic(optuna.samplers.NSGAIISampler):
    """NSGA-II whose parents stand in one order, whether they have just been selected or are read from the study."""

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """Those that survive the generation before, by number."""
        return sorted(super().select_parent(study, generation), key=lambda t: t.number)


class _OnePoint(optuna.samplers.nsgaii.BaseCrossover):
    """The first genes of one parent, the rest of the other: neighbouring steps keep their widths together."""

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
