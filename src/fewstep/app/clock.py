"""How long the jobs of the workflow will take, said before they start and after each of them.

What a job takes is known from `workflow/seconds.json`, measured for the runs that come with the project, and from the
jobs that this folder has seen (`state/seconds.json`). How fast this machine is shows from the first job that ends on.
"""

import heapq
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.checks import UserError
from fewstep.files import object_or_empty, write_json

MEASURED = Path("workflow/seconds.json")
SEEN = Path("state/seconds.json")

Seconds = dict[str, dict[str, float]]
"""Run -> rule -> seconds of a job."""


@dataclass(frozen=True)
class Job:
    """A job that is to be done: its run and rule, the cores that it takes, and the jobs that it waits for."""

    run: str
    rule: str
    cores: int = 1
    after: frozenset[int] = frozenset()


def known_seconds() -> Seconds:
    """What jobs take, as measured, and as seen in this folder, which wins."""
    seconds: Seconds = {}
    for path in (MEASURED, SEEN):
        for run, rules in object_or_empty(path).items():
            if isinstance(rules, Mapping):  # a forecast is worth no refusal
                numbers = {rule: float(v) for rule, v in rules.items() if isinstance(v, int | float)}
                seconds[run] = seconds.get(run, {}) | numbers
    return seconds


def forecast(jobs: Mapping[int, Job], seconds: Mapping[int, float], cores: int) -> float:
    """Seconds until all jobs are done, each started as soon as what it waits for is done and cores are free.

    Args:
        jobs: by id; those that one waits for and that are not among them are done.
        seconds: what each takes.
        cores: how many there are.
    """
    waiting, running = dict(jobs), list[tuple[float, int]]()
    now, free = 0.0, cores
    while waiting or running:
        for name, job in list(waiting.items()):
            needs = min(job.cores, cores)
            if (
                needs <= free
                and not any(one in waiting for one in job.after)
                and not any(one in job.after for _, one in running)
            ):
                heapq.heappush(running, (now + seconds[name], name))
                free -= needs
                del waiting[name]
        if not running:  # what they wait for is not there: said elsewhere
            break
        now, name = heapq.heappop(running)
        free += min(jobs[name].cores, cores)
    return now


class Clock(logging.Handler):
    """Listens to Snakemake's events, and says how long the rest will take.

    Args:
        jobs: what is to be done, by job id.
        cores: of this machine that jobs may take.
        say: where sentences go.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        jobs: Mapping[int, Job],
        cores: int,
        say: Callable[[str], None],
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(logging.INFO)
        self._left = dict(jobs)
        self._cores, self._say, self._now = cores, say, now
        self._known = known_seconds()
        self._started: dict[int, float] = {}
        self._took, self._expected = 0.0, 0.0
        if jobs and (rest := self._rest()) is not None:
            runs = ", ".join(sorted({job.run for job in jobs.values()}))
            say(f"{runs}: {len(jobs)} jobs, about {spelled(rest)} on {cores} core{'s' if cores > 1 else ''}")

    def emit(self, record: logging.LogRecord) -> None:
        """Take notice of a job that starts or ends."""
        event = str(getattr(record, "event", ""))
        if event == "job_started":
            self._start(getattr(record, "jobs", ()))
        elif event == "job_finished":
            self._finish(int(getattr(record, "job_id", -1)))
        elif event == "progress" and self._left and (rest := self._rest()) is not None:
            self._say(f"about {spelled(rest)} left")

    def _start(self, jobs: Iterable[Any]) -> None:
        for job in jobs:
            self._started[int(job)] = self._now()

    def _finish(self, name: int) -> None:
        job, started = self._left.pop(name, None), self._started.pop(name, None)
        if job is None or started is None:
            return
        took = self._now() - started
        self._took += took
        self._expected += self._known.get(job.run, {}).get(job.rule, took)
        self._known.setdefault(job.run, {}).setdefault(job.rule, took)
        seen = object_or_empty(SEEN)
        rules = seen.get(job.run)
        seen[job.run] = {**(rules if isinstance(rules, Mapping) else {}), job.rule: round(took, 1)}
        with suppress(UserError, OSError):  # a full disk is for the jobs to say
            write_json(SEEN, seen)

    def _rest(self) -> float | None:
        """Seconds until all is done; None where a job is of a kind that was never seen."""
        speed = self._took / self._expected if self._expected > 0 else 1.0
        seconds = {}
        for name, job in self._left.items():
            known = self._known.get(job.run, {}).get(job.rule)
            if known is None:
                return None
            done = self._now() - self._started[name] if name in self._started else 0.0
            seconds[name] = max(speed * known - done, 1.0)
        first = sorted(
            self._left, key=lambda name: name not in self._started
        )  # running ones hold their cores
        return forecast({name: self._left[name] for name in first}, seconds, self._cores)


def spelled(seconds: float) -> str:
    """`40 s`, `3:20 min` or `2:05 h`."""
    whole = max(round(seconds), 1)
    if whole < 60:
        return f"{whole} s"
    small, unit = (whole, "min") if whole < 3600 else (whole // 60, "h")
    return f"{small // 60}:{small % 60:02d} {unit}"
