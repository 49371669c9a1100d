"""Processes that are killed at the k-th append to a journal, acted in one process."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from fewstep.pipeline import trials as studies
from fewstep.pipeline.journal import Journal
from fewstep.pipeline.lost_trials import this_worker

MOMENTS = ("before", "torn", "after")
"""Of an append: nothing, half of the line, or all of it was written."""


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def process(at=None, moment="before"):
    """A process that may be killed at its append number `at`; yields how many it has made.

    Its trials are those of a process that has ended, whether it is killed or not.
    """
    made, append = [0], Journal.append_logs

    def append_or_die(journal, logs):
        if made[0] == at and moment == "torn":
            line = json.dumps(logs[0]).encode()
            with Path(journal._path).open("ab") as file:
                file.write(line[: len(line) // 2])
        if made[0] == at and moment != "after":
            raise Killed
        append(journal, logs)
        made[0] += 1
        if made[0] - 1 == at:
            raise Killed

    host = this_worker().partition(":")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append_logs", append_or_die)
        patch.setattr(studies, "this_worker", lambda: f"{host}:1:999999999")
        patch.setattr(studies, "SIGNING", 0.0)
        yield made


def killed_and_resumed(start, at, moment="before"):
    """What `start()` returns after it was killed at its append number `at`, and started again."""
    with pytest.raises(Killed), process(at, moment):
        start()
    with process():
        return start()


def killed_again_and_again(start, every):
    """What `start()` returns in the end where each process is killed after some appends; and how many there were."""
    for processes in range(1, 1000):
        try:
            with process(every, MOMENTS[processes % 3]):
                return start(), processes
        except Killed:
            continue
    raise AssertionError("it does not get on")
