"""Further processes that run trials of a search; they end with the process that leads it, however that ends."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from fewstep.methods.s3.space import Space
from fewstep.methods.s3.stage.options import open_task
from fewstep.methods.s3.stage.run import run_trials
from fewstep.methods.s3.stage.scoring import Candidate, Search, distinct
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.methods.s3.stage.solutions import read_teacher
from fewstep.methods.s3.teacher import Teacher
from fewstep.methods.s3.transfer import transferred
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.reference import Reference
from fewstep.pipeline.measure import reference_and_extractor
from fewstep.sampling.plan import Plan
from fewstep.sampling.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchSetup:
    """What searches of a model are made of, by name, so that another process can open the same.

    Attributes:
        model: path or name.
        call: file of what a pipeline is called with.
        conditions: folder of stored ones, for a model that takes them.
        guidance: of its calls.
        device: that they run on.
        to_zero: whether plans end at clean data.
        settings: of the search.
        reference, data, extractor: as on the command line.
        given: plans of other models to start from.
    """

    model: Path
    call: Path | None
    conditions: Path | None
    guidance: float
    device: str
    to_zero: bool
    settings: SearchSettings
    reference: Path | None
    data: Path | None
    extractor: str
    given: tuple[Plan, ...] = ()

    def task(self) -> Task:
        """The model, and how it is called."""
        return open_task(
            self.model, self.call, self.conditions, self.guidance, self.settings.batch_size, self.device
        )

    def space(self, task: Task, nfe: int) -> Space:
        """The plans of a number of network calls.
        Raises: ConfigError: there are none.
        """
        settings = self.settings
        return Space(
            task.model.schedule,
            nfe,
            to_zero=self.to_zero,
            max_order=settings.max_order,
            analytic=settings.analytic,
        )

    def measures(self, task: Task) -> tuple[Reference | None, Extractor | None]:
        """The reference and the extractor."""
        return reference_and_extractor(self.reference, self.data, self.extractor, self.device, task)

    def search(
        self, nfe: int, task: Task, teacher: Teacher, reference: Reference | None, extractor: Extractor | None
    ) -> Search:
        """The search for a number of network calls."""
        schedule = task.model.schedule
        given = [
            Candidate(f"from.{plan.name or 'plan'}", transferred(plan, schedule), (plan.hash,))
            for plan in self.given
            if plan.nfe == nfe
        ]
        return Search(
            task, teacher, self.space(task, nfe), self.settings, reference, extractor, distinct(given)
        )


@contextmanager
def workers(count: int, setup: SearchSetup, nfe: int, *, teacher: Path, storage: str) -> Iterator[None]:
    """Processes that run trials for one number of network calls, as long as the body runs.

    Args:
        count: how many.
        setup: of the search.
        nfe: network calls of its plans.
        teacher: file of the fine solutions.
        storage: of the study.
    """
    context = multiprocessing.get_context("spawn")
    arguments = (setup, nfe, teacher, storage, torch.get_num_threads())
    processes = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            if process.pid is None:
                continue
            if process.exitcode is not None and process.exitcode < 0:
                log.warning(
                    "A worker of the search for %d calls was killed by signal %d.", nfe, -process.exitcode
                )
            process.terminate()
            process.join()


def _work(setup: SearchSetup, nfe: int, teacher: Path, storage: str, threads: int) -> None:
    """What a worker does; what goes wrong is one line on stderr, as the search continues without it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader, which gets it as well, ends its workers
    threading.Thread(target=_end_with_leader, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        task = setup.task()
        search = setup.search(nfe, task, read_teacher(teacher, task), *setup.measures(task))
        run_trials(search, storage=storage, track=_untracked)
    except Exception as error:
        sentence = " ".join(str(error).split()) or type(error).__name__
        log.error("A worker of the search for %d calls has failed, the others continue: %s", nfe, sentence)
        sys.exit(1)


def _end_with_leader() -> None:
    """End this process as soon as the leader has ended, even if it was killed."""
    leader = multiprocessing.parent_process()
    assert leader is not None
    wait([leader.sentinel])
    os._exit(1)


def _untracked(description: str, *, unit: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """Progress is shown by the leader alone."""
    return iter
