"""Jobs of one machine take one GPU each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.checks import ConfigError
from fewstep.pipeline import devices
from fewstep.pipeline.processes import run_in

NVIDIA_SMI = """#!/bin/sh
echo "GPU 0: NVIDIA Made Up (UUID: GPU-0)"
echo "GPU 1: NVIDIA Made Up (UUID: GPU-1)"
"""

JOB = """
import os, sys
from fewstep.pipeline.devices import chosen_device
chosen_device("auto")
print(os.environ.get("CUDA_VISIBLE_DEVICES"), "FEWSTEP_SLOTS" in os.environ, flush=True)
sys.stdin.read()
"""


def put_nvidia_smi(folder: Path) -> None:
    """Two GPUs that are not there."""
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(NVIDIA_SMI)
    (folder / "nvidia-smi").chmod(0o755)


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    put_nvidia_smi(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_those_of_nvidia_smi_or_of_the_environment(two_gpus, monkeypatch):
    assert devices.present() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert devices.present() == ["GPU-1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.present() == []


def test_no_gpu_is_no_slot(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.present() == []
    assert devices.slots(4, tmp_path) == {}


def test_two_jobs_have_two_gpus_and_a_third_waits_for_one(two_gpus, tmp_path):
    environment = {**os.environ, **devices.slots(2, tmp_path / "slots")}
    assert environment["FEWSTEP_DEVICES"] == "0,1"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", JOB],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = {job.stdout.readline().strip() for job in jobs}
    assert said == {"0 False", "1 False"}, "and processes that they start share theirs"
    third = subprocess.Popen(
        [sys.executable, "-c", JOB], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    jobs[1].kill()
    jobs[1].communicate()
    assert third.stdout.readline().strip() in {"0 False", "1 False"}
    for job in (jobs[0], third):
        job.communicate()


def test_more_jobs_than_gpus_go_round(two_gpus, tmp_path):
    assert devices.slots(5, tmp_path)["FEWSTEP_DEVICES"] == "0,1,0,1,0"


def test_a_job_of_several_processes_has_a_gpu_for_each(two_gpus, tmp_path, monkeypatch):
    def handed_out(jobs):
        for name, value in devices.slots(jobs, tmp_path / "slots").items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(devices, "_kept", [])
    handed_out(4)  # two jobs on each GPU
    assert devices.take_slots(2) == ["0", "1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert len(devices._kept) == 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    handed_out(2)
    assert devices.take_slots(3) == ["0", "1"], "there are no more"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ConfigError, match="--processes must be at most 2"):
        run_in(3)
