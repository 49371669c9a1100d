"""A solver search: trials, polish, finalists; each on random seeds of its own.

1. Trials: the distance to fine solutions of some noises, structure by an Optuna study.
2. Polish: gradients, on that distance or, where there is a reference, on the distance between sets of images.
3. Finalists: the best of each are compared on seeds that nothing saw before.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from fewstep.methods.s3.space import plan_of
from fewstep.methods.s3.stage.decisions import best_decisions, best_note, run_plan_trials
from fewstep.methods.s3.stage.known import Neighbour, best_known, first_decisions, look
from fewstep.methods.s3.stage.polish import polished
from fewstep.methods.s3.stage.race import race
from fewstep.methods.s3.stage.scoring import Candidate, Search
from fewstep.pipeline import trials as studies
from fewstep.pipeline.conditions import rows_used
from fewstep.progress import Track, noted
from fewstep.sampling.linear import linear_form
from fewstep.sampling.plan import Plan

SCHEMA = "fewstep.search/1"
HOPELESS = 10.0  # times the error of the best preset: given up at once


@dataclass(frozen=True)
class Found:
    """What a search has to say: the plan, the record for the report, its trials, and the best of them."""

    plan: Plan
    record: dict[str, Any]
    trials: pd.DataFrame
    neighbours: Sequence[Neighbour]


@dataclass(frozen=True)
class Tried:
    """The trials of a search, those of all its workers.

    Attributes:
        known: the best known samplers, best first.
        enqueued: how many decisions were tried first.
    """

    study: studies.Study
    known: Sequence[Candidate]
    enqueued: int


def run_search(
    search: Search, *, storage: str, work: Path, neighbours: Sequence[Neighbour] = (), track: Track
) -> Found:
    """Search, or resume a search that was interrupted.

    Args:
        search: what to do.
        storage: of the study, see `fewstep.pipeline.trials.open_study`.
        work: folder of what the polish leaves for a later start.
        neighbours: the best of other numbers of calls, whose shortened and lengthened forms are tried, too.
        track: makes progress bars.
    """
    settings, space = search.settings, search.space
    tried = run_trials(search, storage=storage, neighbours=neighbours, track=track)
    best_trials = best_decisions(tried.study, settings.finalists)
    with search.booked("trials"):
        best = look(search, [Candidate(name, plan_of(space, d)) for name, d in best_trials], track)
        best += look(search, search.given, track)
    initial = min((c for c in (*tried.known, *best) if _can_be_polished(c, search)), key=search.measured)
    with search.booked("polish"):
        refined, curves = polished(search, initial, work, track)
    presets = list(tried.known[: settings.finalists])
    finalists = [*presets, *best, *refined]
    with search.booked("finalists"):
        ranked = _judged(search, finalists, presets, track)
    known = {preset.name for preset in presets}
    winner, best_preset = ranked[0], next(c for c in ranked if c.name in known)
    by_name = {c.name: c for c in ranked}
    record = {
        **_facts(search),
        **_trials_facts(tried),
        "start": initial.name,
        "given": {candidate.name: candidate.parents[0] for candidate in search.given},
        "polish": curves,
        "finalists": [
            {
                "name": c.name,
                "hash": c.plan.hash,
                "error": c.error,
                "fd": None if math.isnan(c.fd) else c.fd,
                "images": c.images,
            }
            for c in (by_name[f.name] for f in finalists if f.name in by_name)
        ],
        "winner": winner.name,
        "best_preset": best_preset.name,
        "best_preset_plan": best_preset.plan.to_json(),
        "network_calls": {**search.calls, "trials": studies.network_calls(tried.study)},
        "seconds": {purpose: round(value, 1) for purpose, value in search.seconds.items()},
    }
    own = [Neighbour(f"nfe{space.nfe}.{name}", space.nfe, d) for name, d in best_trials[:1]]
    return Found(_signed(search, winner), record, studies.trials_frame(tried.study), own)


def run_trials(search: Search, *, storage: str, neighbours: Sequence[Neighbour] = (), track: Track) -> Tried:
    """Run the trials of a search until all workers together have finished them; all that a worker does.
    Args: as in `run_search`.
    """
    settings, space = search.settings, search.space
    study = studies.open_study(storage, f"nfe{space.nfe}", search.identity(), parts=len(search.parts))
    with search.booked("presets"):
        known = best_known(search, track)
    first = first_decisions(space, known, neighbours)
    studies.enqueue(study, first)
    with search.booked("trials"):
        run_plan_trials(
            study,
            space,
            search.score(HOPELESS * min(c.error for c in known)),
            trials=settings.trials,
            sampler=settings.sampler,
            seed=settings.seed,
            network_calls=lambda: search.task.calls,
            progress=noted(track(f"search nfe{space.nfe}", unit="trial"), lambda: best_note(study)),
        )
    return Tried(study, known, len(first))


def _can_be_polished(candidate: Candidate, search: Search) -> bool:
    """Not with an implicit corrector: it evaluates a node twice, which the linear form has no place for."""
    return len(candidate.plan.nodes) - 1 == len(linear_form(candidate.plan, search.space.schedule))


def _judged(
    search: Search, finalists: Sequence[Candidate], presets: Sequence[Candidate], track: Track
) -> list[Candidate]:
    """The finalists, best first; the first of the known samplers among them is measured on all images.

    Any other that is significantly behind the best gets no more images.
    """
    for finalist in finalists:
        finalist.error = search.error(finalist.plan)
    if search.reference is None:
        return sorted(finalists, key=lambda finalist: finalist.error)
    return race(
        search, finalists, search.seeds["finalists"], by="fd", places=1, rounds=3,
        protected=lambda candidate: candidate.name == presets[0].name,
        progress=track(f"finalists nfe{search.space.nfe}", unit="plan"),
    )  # fmt: skip


def _facts(search: Search) -> dict[str, Any]:
    """What a record says before anything is found."""
    model, teacher = search.task.model, search.teacher
    return {
        "schema": SCHEMA,
        "nfe": search.space.nfe,
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "guidance": search.task.guidance,
        "teacher": {"plan": teacher.plan.name, "nfe": teacher.plan.nfe},
        "settings": search.settings.result_settings(),
        "seeds": search.seeds.as_json(),
        "error_in": search.extractor.id if search.extractor else "latents" if model.decode else "pixels",
        "measure": search.measure,
    }


def _trials_facts(tried: Tried) -> dict[str, Any]:
    return {
        "trials": {**studies.counts(tried.study), "seeded": tried.enqueued},
        "history": studies.history(tried.study),
        "importance": studies.importance(tried.study),
    }


def _signed(search: Search, winner: Candidate) -> Plan:
    """The winner with its name, the model it is for, and where it came from."""
    model = search.task.model
    return replace(
        winner.plan,
        name=f"searched.nfe{search.space.nfe}",
        fingerprint=model.fingerprint,
        guidance=None if search.task.guidance == 1.0 else search.task.guidance,
        provenance={
            "sampler": "searched",
            "grid": "free",
            "found": winner.name,
            **({"parents": list(winner.parents)} if winner.parents else {}),
            "seeds": search.seeds.as_json(),
            **({} if model.call is None else {"call": dict(model.call)}),
            **rows_used(model, search.seeds.as_json(), {}),
            "objective": {
                "name": "trajectory" if search.reference is None else "frechet",
                "extractor": None if search.extractor is None else search.extractor.id,
                "value": search.measured(winner),
            },
        },
    )
