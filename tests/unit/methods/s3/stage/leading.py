"""A tiny search in a folder; as a script, the process that leads its workers, to be killed in the midst."""

import multiprocessing
import sys
import time
from pathlib import Path

import torch

from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.methods.s3.stage.solutions import FILE, solve_teacher, write_teacher
from fewstep.methods.s3.stage.workers import SearchSetup, workers
from fewstep.nets.folder import save_model
from fewstep.nets.unet import UNet
from fewstep.rng import initial_weights


def setup(folder, *, trials=10, model="model"):
    settings = SearchSettings(trials=trials, noises=16, trial_noises=16, teacher_nfe=10, batch_size=16)
    return SearchSetup(
        folder / model, None, None, 1.0, "cpu", True, settings, None, None, "effnet-lite0-p320"
    )


def prepare(folder):
    """A network whose weights are drawn, and the fine solutions of the search."""
    with initial_weights(0):
        net = UNet(8, 1, 8, (1, 2))
    facts = {"schedule": VPLinear(), "prediction": "eps", "shape": (1, 8, 8), "name": "drawn", "card": {}}
    save_model(folder / "model", net, **facts)
    tiny = setup(folder)
    task = tiny.task()
    write_teacher(folder / FILE, solve_teacher(task, tiny.settings, to_zero=True), task)


def working(folder, count, **options):
    """Workers of the search in a folder."""
    storage = str(folder / "journal.log")
    return workers(count, setup(folder, **options), 3, teacher=folder / FILE, storage=storage)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with working(Path(sys.argv[1]), 2, trials=100_000):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(600)
