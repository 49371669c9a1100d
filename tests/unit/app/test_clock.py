"""How long a run will take: the forecast, and what is said of it."""

import logging
from pathlib import Path
from typing import Any

import pytest

from fewstep.app.clock import MEASURED, SEEN, Clock, Job, forecast, known_seconds, spelled
from fewstep.files import read_json, write_json

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59.4, "59 s"), (60, "1:00 min"), (200, "3:20 min"), (3600, "1:00 h"), (7500, "2:05 h")],
)
def test_durations_are_spelled_as_people_say_them(seconds: float, text: str) -> None:
    assert spelled(seconds) == text


def chain(*after: tuple[int, ...], cores: tuple[int, ...] = ()) -> dict[int, Job]:
    return {i: Job("r", f"rule{i}", cores[i] if cores else 1, frozenset(one)) for i, one in enumerate(after)}


@pytest.mark.parametrize(
    ("jobs", "cores", "expected"),
    [
        (chain((), (), ()), 1, 6),
        (chain((), (), ()), 2, 4),  # 1 and 2 side by side, then 3 after the first
        (chain((), (), ()), 3, 3),
        (chain((), (0,), (1,)), 8, 6),
        (chain((), (0,), (0,)), 2, 4),
        (chain((), (), (), cores=(2, 1, 1)), 2, 4),
        (chain((), (7,)), 1, 3),  # 7 is done
        (chain((), (), cores=(5, 5)), 2, 3),  # no job takes more than there is
        ({}, 2, 0),
    ],
)
def test_jobs_wait_for_what_they_need(jobs: dict[int, Job], cores: int, expected: float) -> None:
    assert forecast(jobs, {0: 1, 1: 2, 2: 3}, cores) == pytest.approx(expected)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_json(MEASURED, {"r": {"rule0": 10, "rule1": 20}, "other": {"rule2": 1}})
    return tmp_path


class Run:
    """A clock, what it said, and the time."""

    def __init__(self, jobs: dict[int, Job], cores: int = 1) -> None:
        self.said: list[str] = []
        self.time = 0.0
        self.clock = Clock(jobs, cores, self.said.append, now=lambda: self.time)

    def tell(self, event: str, **extra: Any) -> None:
        record = logging.makeLogRecord({"levelno": logging.INFO, "event": event, **extra})
        self.clock.handle(record)

    def do(self, job: int, seconds: float) -> None:
        self.tell("job_started", jobs=[job])
        self.time += seconds
        self.tell("job_finished", job_id=job)
        self.tell("progress", done=1, total=2)


def test_the_time_is_said_before_the_start_and_follows_the_speed_of_the_machine(folder: Path) -> None:
    run = Run(chain((), (0,)))
    assert run.said == ["r: 2 jobs, about 30 s on 1 core"]
    run.do(0, 30.0)  # three times as slow
    assert run.said[1:] == ["about 1:00 min left"]
    run.do(1, 60.0)
    assert len(run.said) == 2, "nothing is left to be said at the end"
    assert read_json(SEEN) == {"r": {"rule0": 30.0, "rule1": 60.0}}
    assert known_seconds()["r"] == {"rule0": 30.0, "rule1": 60.0}
    assert Run(chain((), (0,)), cores=2).said == ["r: 2 jobs, about 1:30 min on 2 cores"]


def test_a_running_job_counts_for_what_is_left_of_it(folder: Path) -> None:
    run = Run(chain((), ()), cores=2)
    run.tell("job_started", jobs=[0, 1])
    run.time = 10.0
    run.tell("job_finished", job_id=0)
    run.tell("progress", done=1, total=2)
    assert run.said[-1] == "about 10 s left"


def test_what_was_never_seen_is_not_guessed(folder: Path) -> None:
    run = Run({0: Job("r", "rule0"), 1: Job("new", "rule9"), 2: Job("new", "rule9")})
    assert run.said == []
    run.do(0, 10.0)
    assert run.said == []
    run.do(1, 5.0)
    assert run.said == ["about 5 s left"]


def test_nothing_to_do_says_nothing(folder: Path) -> None:
    assert Run({}).said == []
    (folder / SEEN).parent.mkdir()
    (folder / SEEN).write_text("damaged")
    assert known_seconds()["other"] == {"rule2": 1.0}
    write_json(folder / SEEN, {"r": 3, "other": {"rule2": "x", "rule3": 4}})
    assert known_seconds()["other"] == {"rule2": 1.0, "rule3": 4.0}
    Run(chain(())).do(0, 2.0)
    assert read_json(SEEN)["r"] == {"rule0": 2.0}


def test_a_forecast_that_cannot_be_kept_stops_nothing(folder: Path) -> None:
    (folder / "state").write_text("a file in the place of the folder")
    run = Run(chain((), (0,)))
    run.do(0, 10.0)
    assert run.said[-1] == "about 20 s left"


def test_what_comes_with_the_project_is_about_its_runs_and_stages() -> None:
    from fewstep.app.params import load_params
    from fewstep.app.stages import STAGES

    params = load_params(ROOT / "params.yaml")
    for run, rules in read_json(ROOT / MEASURED).items():
        made = {stage.name for stage in STAGES.in_run(params.runs[run])}
        assert made == set(rules), run
        assert all(seconds > 0 for seconds in rules.values())
