"""Trials whose worker died: found by its process on this machine, by signs of life in a database from any other.

They have no score. What was enqueued waits again, what was proposed is proposed once more, from the same number, so
that a search that was interrupted ends as it would have.
"""

import os
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, TrialState

from fewstep.locks import started
from fewstep.pipeline.storage import BEAT

Study = optuna.Study

UNSIGNED = timedelta(minutes=1)
"""After which a trial that names no worker has lost it, whoever may still be alive."""
REPLACES = "replaces"
"""The fact of a trial that takes the place of a lost one: that one's number."""
REGISTERED = "worker "
"""Before the names of workers among the facts of a study: each is there before its first trial."""


def this_worker() -> str:
    """This process: host, when it started, and its number, which others may have had or will have."""
    return f"{socket.gethostname()}:{started(os.getpid())}:{os.getpid()}"


def has_ended(worker: str) -> bool:
    """Whether a worker was one of this machine, and has ended; of other machines nothing is known."""
    host, *start, process = worker.split(":")
    now = started(process)
    return host == socket.gethostname() and (now is None or [now] != (start or [now]))


def release_lost(study: Study) -> None:
    """Give up trials whose worker is dead; what was enqueued waits again, what was proposed is proposed once more."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    # read after the trials, so that the worker of each of them is among these
    workers = [name.removeprefix(REGISTERED) for name in study.user_attrs if name.startswith(REGISTERED)]
    _give_up(study, [trial for trial in running if _has_no_worker(trial, workers)])
    # also of those who gave trials up and died before they put others in their place
    if all(map(has_ended, workers)):
        again = {number_of(study, trial) for _, trial in kept(study)}
        lost = {number_of(study, t): t for t in study.get_trials(deepcopy=False) if was_lost(t)}
        for number in sorted(lost.keys() - again):
            _propose_again(study, number)


def release_stale(study: Study) -> None:
    """Give up the trials that have given no sign of life to the database, of workers on whatever machine."""
    heart = _heart(study)
    if heart is not None and (ids := set(heart._get_stale_trial_ids(study._study_id))):
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        _give_up(study, [trial for trial in running if trial._trial_id in ids])


def _give_up(study: Study, trials: Iterable[FrozenTrial]) -> None:
    place = study._storage
    for trial in trials:
        id_, number = trial._trial_id, number_of(study, trial)
        try:
            if trial.system_attrs.get("fixed_params"):
                place.set_trial_user_attr(id_, "worker", "")  # whoever has it next is not the dead one
                place.set_trial_state_values(id_, TrialState.WAITING)
            else:
                place.set_trial_user_attr(id_, "lost", True)
                place.set_trial_state_values(id_, TrialState.FAIL)
                _propose_again(study, number)
        except UpdateFinishedTrialError:  # another worker was faster
            continue


def _propose_again(study: Study, number: int) -> None:
    """Have the proposal of a lost trial made anew, from the same seed."""
    study.enqueue_trial({}, user_attrs={REPLACES: number})


def number_of(study: Study, trial: FrozenTrial) -> int:
    """The number from which a trial is proposed: that of the trial whose place it takes, or its own among the others.

    It is known as soon as there is a trial, so that workers who propose at the same time propose from other numbers.
    """
    if REPLACES in trial.user_attrs:
        return int(trial.user_attrs[REPLACES])
    before = study.get_trials(deepcopy=False)
    return sum(REPLACES not in other.user_attrs for other in before if other.number < trial.number)


def _heart(study: Study) -> BaseHeartbeat | None:
    """Where signs of life go, with the clock of the database; None for a journal, whose workers share a machine."""
    place = study._storage
    return place if isinstance(place, BaseHeartbeat) and place.get_heartbeat_interval() is not None else None


@contextmanager
def signs_of_life(study: Study, trial: int) -> Iterator[None]:
    """Tell the database that a trial is being run, where there is one."""
    heart = _heart(study)
    if heart is None:
        yield
        return
    ended = threading.Event()

    def beat() -> None:
        while True:
            with suppress(Exception):  # the trial itself says what is wrong with the database
                heart.record_heartbeat(trial)
            if ended.wait(BEAT):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _has_no_worker(trial: FrozenTrial, workers: Sequence[str]) -> bool:
    worker = trial.user_attrs.get("worker")
    if worker:
        return has_ended(worker)
    if all(map(has_ended, workers)):  # killed before it could sign the trial
        return True
    return trial.datetime_start is None or datetime.now() - trial.datetime_start > UNSIGNED


def was_disqualified(trial: FrozenTrial) -> bool:
    """Whether it ended as one that can have no score."""
    return trial.state == TrialState.FAIL and not was_lost(trial)


def was_lost(trial: FrozenTrial) -> bool:
    """Whether its worker was killed, even if that had said already why there is no score."""
    attrs = trial.user_attrs
    return trial.state == TrialState.FAIL and ("lost" in attrs or "disqualified" not in attrs)


def kept(study: Study) -> list[tuple[int, FrozenTrial]]:
    """The trials that were not lost, with the numbers that they have in a search that was never interrupted."""
    return list(enumerate(t for t in study.get_trials(deepcopy=False) if not was_lost(t)))


def finished(study: Study) -> list[tuple[int, FrozenTrial]]:
    """Of these those that need not be run again: completed, pruned, or disqualified."""
    return [(number, trial) for number, trial in kept(study) if trial.state.is_finished()]
