"""A worker of a search on a mixture of Gaussians, in a process of its own: URL TRIALS SECONDS [HOST]."""

import sys
import time

import torch
from unit.methods.s3.stage.searching import SPACE, mixture, opened, scored

from fewstep.methods.s3.stage.decisions import run_plan_trials
from fewstep.pipeline import trials as studies
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task

KNOWN = [
    (name, SPACE.decisions(PRESETS[name](SPACE.schedule, SPACE.nfe, grid="uniform-lambda", to_zero=True)))
    for name in ("ddim", "dpmpp-2m", "unipc-2")
]


def work(url: str, trials: int, seconds: float, host: str | None = None) -> None:
    """Run trials until there are enough."""
    torch.set_num_threads(1)
    if host is not None:
        studies.socket.gethostname = lambda: host
    study = opened(url)
    studies.enqueue(study, [(name, decisions) for name, decisions in KNOWN if decisions is not None])
    task = Task(mixture(), batch_size=8)
    score = scored(task, seconds=seconds)
    print("ready", flush=True)
    run_plan_trials(
        study, SPACE, score, trials=trials, sampler="s3", seed=0, network_calls=lambda: task.calls
    )


if __name__ == "__main__":
    began = time.monotonic()
    work(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:5])
    print(f"done after {time.monotonic() - began:.1f} s", flush=True)
