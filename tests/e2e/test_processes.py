"""Trainings that several processes of one machine share."""

import os
import signal
import subprocess
import time

import pytest
import torch
from e2e.shell import COMMAND, made
from safetensors.torch import load_file

SMALL = ("--channels", "8", "--batch-size", "32", "--warmup", "5", "--threads", "1")


def words(folder, *more):
    return [
        "train",
        "--data",
        "data",
        "--out",
        folder,
        "--checkpoints",
        f"{folder}.ck",
        *SMALL,
        *map(str, more),
    ]


def start(study, *command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [COMMAND, *command],
        cwd=study,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_processes_make_the_steps_of_one_and_resume_where_they_were_ended(study):
    """Sums of floats in another order apart."""
    command = words("shared", "--steps", 40, "--processes", 2, "--checkpoint-seconds", 0.01)
    interrupted = start(study, *command)
    for _ in range(1200):
        if list(study.glob("shared.ck/step-*")):
            break
        assert interrupted.poll() is None, interrupted.communicate()[1]
        time.sleep(0.05)
    interrupted.send_signal(signal.SIGTERM)
    interrupted.communicate()
    assert interrupted.returncode == 128 + signal.SIGTERM and not (study / "shared").exists()
    resumed = start(study, *command)
    said, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert said == "shared: digits, 40 steps, 1,280 images seen\n"
    made(*words("alone", "--steps", 40), cwd=study)
    one, two = (load_file(study / name / "model.safetensors") for name in ("alone", "shared"))
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)


def test_what_is_wrong_is_one_sentence_of_the_first_process(study):
    refused = start(study, *words("odd", "--steps", 40, "--batch-size", 33, "--processes", 2))
    said, errors = refused.communicate()
    assert refused.returncode == 2 and said == ""
    assert errors == (
        "fewstep: batch_size must be a positive multiple of the 2 processes that share it; got 33.\n"
    )
