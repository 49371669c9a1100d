"""A search on a mixture of Gaussians; as a script, a worker of one, to be killed in the midst."""

import sys
import time

import torch

from fewstep.checks import DataError
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.s3.space import Space
from fewstep.methods.s3.stage.decisions import run_plan_trials
from fewstep.pipeline import trials as studies
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task, batches, distances

SCHEDULE = VPLinear()
SPACE = Space(SCHEDULE, 4)
NOISES = range(1_000_000, 1_000_032)


def mixture():
    rng = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(3, 4, generator=rng, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    stds = torch.tensor([0.1, 0.2, 0.15], dtype=torch.float64)
    return GaussianMixture(weights, means, stds).model(SCHEDULE)


def scored(task, *, seconds=0.0, fails=lambda: False):
    """A score as searches have it, that can be slow, or diverge."""
    fine = PRESETS["unipc-3"](SCHEDULE, 50, to_zero=True)
    solution = task.solve(fine, NOISES)

    def score(plan, report):
        time.sleep(seconds)
        if fails():
            raise DataError("The state must stay finite.")
        errors = []
        for k, part in enumerate(batches(NOISES, 8)):
            errors.append(distances(task.solve(plan, part), solution[8 * k : 8 * k + 8]))
            if report(float(errors[-1].mean())):
                break
        return float(torch.cat(errors).mean()), len(errors) == 4

    return score


def opened(storage, **identity):
    return studies.open_study(str(storage), "nfe4", {"of": "mixture", **identity}, parts=4)


def run(study, *, trials, sampler="s3", seed=0, **options):
    task = Task(mixture(), batch_size=8)
    run_plan_trials(
        study,
        SPACE,
        scored(task, **options),
        trials=trials,
        sampler=sampler,
        seed=seed,
        network_calls=lambda: task.calls,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(opened(sys.argv[1]), trials=int(sys.argv[2]), seconds=float(sys.argv[3]))
