"""A run on a cluster of two nodes: to its end, through a killed head, a cancelled job, and jobs that nobody wants."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.engines import Slurm, wait_for
from cluster.small import configure, environment_of, small_project
from workflow.test_workflow import Project

from fewstep.files import read_json

pytestmark = pytest.mark.timeout(3600)
# a thread for each job: the nodes are one machine
THREADS = [f"{rule}=1" for rule in ("prepare", "train", "extractor")]
COMMAND = ("snakemake", "--workflow-profile", "profiles/slurm", "--set-threads", *THREADS)
LONG = {"train": {"steps": 100000, "checkpoint_seconds": 1.0}}


class Head:
    """Snakemake on the login node."""

    def __init__(self, project: Project, cluster: Slurm, *words: str) -> None:
        self._log = project.folder / f"head-{time.monotonic_ns()}.log"
        started.append(self)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                cluster.words(*COMMAND, *words),
                cwd=project.folder, env=environment_of(project), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        """As a machine that loses its power."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def finish(self, seconds: float) -> str:
        """All that it said, when it has ended well."""
        assert self._process.wait(seconds) == 0, self.output
        return self.output


started: list[Head] = []


@pytest.fixture(scope="module", autouse=True)
def no_head_is_left() -> Iterator[None]:
    yield
    for head in started:
        head.kill()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small_project(tmp_path_factory.mktemp("shared") / "project")


def running(cluster: Slurm, rule: str) -> list[str]:
    """The ids of the running jobs of a rule."""
    return [job for job, comment in cluster.jobs("RUNNING").items() if comment.startswith(f"rule_{rule}_")]


def test_jobs_that_nobody_wants_any_more_are_cancelled(project: Project, cluster: Slurm) -> None:
    configure(project, **LONG)
    head = Head(project, cluster, "--", "results/smoke/train/spec.json")
    wait_for(lambda: running(cluster, "train"), 600, "the training")
    (job,) = running(cluster, "train")
    head.kill()
    assert running(cluster, "train") == [job], "a job outlives its head"
    configure(project, train={"steps": 400, "checkpoint_seconds": 1.0})
    again = Head(project, cluster, "--", "results/smoke/train/spec.json")
    wait_for(lambda: running(cluster, "train") not in ([], [job]), 600, "the training with other settings")
    assert f"cancelled the jobs {job} of an earlier workflow, whose results are not wanted so" in again.output
    again.kill()


def test_a_job_of_a_killed_head_is_waited_for_and_a_cancelled_job_is_redone(
    project: Project, cluster: Slurm
) -> None:
    (job,) = running(cluster, "train")
    head = Head(project, cluster)
    wait_for(lambda: "waiting for the jobs" in head.output, 300, "the head that adopts")
    assert f"waiting for the jobs {job} of an earlier workflow, which make smoke/train" in head.output
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.5):
            most = max(most, len(cluster.jobs("RUNNING")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        wait_for(lambda: running(cluster, "search"), 1500, "the search")
        (cancelled,) = running(cluster, "search")
        cluster.run("scancel", cancelled)
        said = head.finish(1800)
    finally:
        ended.set()
        watcher.join()
    submitted = re.findall(r"Job (\S+) has been submitted with SLURM jobid (\d+)", said)
    jobs = [job for job, _ in submitted]
    assert len(set(jobs)) == 8, "teacher, extractor, stats, search, report, and three groups"
    (redone,) = {job for job in jobs if jobs.count(job) > 1}
    assert (redone, cancelled) in submitted and "SLURM status is: 'CANCELLED'" in said
    assert "train the diffusion model" not in said, (
        "what the job of the killed head has made is not made again"
    )
    assert most >= 2, "jobs of two nodes run side by side"
    report = read_json(project.folder / "results" / "smoke" / "report" / "metrics.json")
    assert report["certificates"] >= 5
    assert (project.folder / "state" / "smoke" / "track" / "tracked.json").exists()
    assert "rule_track" not in said, "which the login node does, as SQLite on a shared disk is unsafe"
    groups = re.findall(r"Group job (smoke-[\w-]+)", said)
    assert {"smoke-plans-nfe3", "smoke-plans-nfe4", "smoke-search-nfe3"} <= set(groups)
    assert Path(project.folder, "results/smoke/train/model.safetensors").exists()
