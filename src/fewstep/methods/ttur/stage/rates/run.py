"""The study over two rates, and the comparison of its best pair with single rates on fresh seeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fewstep.methods.ttur.arms import (
    CRITIC_STEPS,
    LARGEST_RATE,
    LARGEST_RATIO,
    LEAST_RATE,
    LEAST_RATIO,
    NETWORKS,
    PUBLISHED,
    is_single,
    single_rates,
    steps_within,
)
from fewstep.methods.ttur.stage.rates.settings import TturSettings
from fewstep.pipeline.gan.comparison import Comparison, curves, table
from fewstep.pipeline.gan.settings import GanSettings
from fewstep.pipeline.trials import (
    Completed,
    Disqualified,
    Interval,
    Options,
    Trial,
    completed,
    counts,
    enqueue,
    history,
    importance,
    open_study,
    run_trials,
    tpe,
    trials_frame,
)
from fewstep.progress import Track
from fewstep.rng import generator


class _Hopeless(Exception):
    """A trial that is worse than the best one beyond chance."""


@dataclass(frozen=True)
class Found:
    """The record of search and comparison, and their tables: trials, trainings, curves."""

    record: dict[str, Any]
    trials: pd.DataFrame
    trainings: pd.DataFrame
    curves: pd.DataFrame


def gan_settings(settings: TturSettings, rates: Mapping[str, Any], seed: int) -> GanSettings:
    """A training at some rates, within the budget of images."""
    assert settings.network is not None
    steps = steps_within(settings.budget, settings.batch_size, rates["d_steps"])
    every = max(1, steps // settings.probes)
    return GanSettings(
        network=settings.network,
        width=settings.width,
        steps=steps,
        batch_size=settings.batch_size,
        log_every=every,
        probe_every=every,
        probe_images=settings.images,
        seed=seed,
        **NETWORKS[settings.network],
        **rates,
    )


def run_ttur(
    comparison: Comparison, settings: TturSettings, *, storage: str, identity: Mapping[str, Any], track: Track
) -> Found:
    """Search, then compare the best pair of rates, the published pair and the best single rates from fresh seeds.

    Args:
        comparison: the data, and what distances are measured by.
        settings: of the stage.
        storage: of the study, from which an interrupted search resumes.
        identity: all else that the scores depend on.
        track: makes progress bars.
    """
    study = open_study(
        storage,
        "ttur",
        {**identity, **settings.model_dump(mode="json", exclude={"trials", "seeds"})},
        parts=settings.probes,
    )
    known = {**single_rates(), "published": PUBLISHED[str(settings.network)]}
    enqueue(study, [(name, _decisions(rates)) for name, rates in known.items()])
    updates = _Updates()

    def evaluate(trial: Trial) -> float | None:
        rates = _decided(trial)

        def watch(fd: float) -> None:
            hopeless = trial.report(fd)
            if hopeless and not is_single(rates):  # the best single rate of each kind must be known
                raise _Hopeless

        chosen = gan_settings(settings, rates, settings.seed)
        try:
            outcome = comparison.train("trial", chosen, watch=watch)
        except _Hopeless:
            return None
        finally:
            updates.made += settings.budget // settings.batch_size
        if outcome.stopped:
            raise Disqualified(outcome.stopped)
        return outcome.fd

    run_trials(
        study,
        evaluate,
        sampler=lambda number: tpe(generator(settings.seed, "ttur", number)),
        trials=max(settings.trials, len(known)),
        network_calls=lambda: updates.made,
        progress=track("ttur", unit="training"),
    )
    arms = chosen_arms(completed(study), str(settings.network))
    outcomes = [
        comparison.train(name, gan_settings(settings, rates, seed))
        for seed in range(settings.seed + 1, settings.seed + 1 + settings.seeds)
        for name, rates in arms.items()
    ]
    record = {
        "settings": settings.model_dump(mode="json"),
        "arms": arms,
        "counts": counts(study),
        "history": history(study),
        "importance": importance(study),
        "spaces": {"lr_g": [LEAST_RATE, LARGEST_RATE], "ratio": [LEAST_RATIO, LARGEST_RATIO]},
    }
    return Found(record, trials_frame(study), table(outcomes), curves(outcomes))


class _Updates:
    """Discriminator steps so far, of this process."""

    made = 0


def _decisions(rates: Mapping[str, Any]) -> dict[str, Any]:
    return {"lr_g": rates["lr_g"], "ratio": rates["lr_d"] / rates["lr_g"], "d_steps": rates["d_steps"]}


def _decided(trial: Trial) -> dict[str, Any]:
    lr_g = float(trial.decide("lr_g", Interval(LEAST_RATE, LARGEST_RATE, log=True)))
    ratio = float(trial.decide("ratio", Interval(LEAST_RATIO, LARGEST_RATIO, log=True)))
    return rates_of({"lr_g": lr_g, "ratio": ratio, "d_steps": trial.decide("d_steps", Options(CRITIC_STEPS))})


def rates_of(decisions: Mapping[str, Any]) -> dict[str, Any]:
    """The rates of a trial; of a ratio of 1 both are the same to the bit."""
    lr_g, ratio = float(decisions["lr_g"]), float(decisions["ratio"])
    return {"lr_g": lr_g, "lr_d": lr_g * ratio, "d_steps": int(decisions["d_steps"])}


def chosen_arms(trials: list[Completed], network: str) -> dict[str, dict[str, Any]]:
    """Arms of the comparison: the best pair, the published one, the best single rates with 1 and 5 critic steps."""
    best: dict[str, tuple[float, dict[str, Any]]] = {}
    for trial in trials:
        rates = rates_of(trial.decisions)
        name = f"single rate, {rates['d_steps']} critic step{'' if rates['d_steps'] == 1 else 's'}"
        name = name if is_single(rates) else "two rates"
        if trial.scores[0] < best.get(name, (math.inf, {}))[0]:
            best[name] = (trial.scores[0], rates)
    found = {name: rates for name, (_, rates) in best.items()}
    return {**dict(sorted(found.items(), reverse=True)), "two rates, published": PUBLISHED[network]}
