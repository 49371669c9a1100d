"""AMED: samplers whose intermediate times and step lengths a small network predicts for each image.

The predictor is trained by their training loop and their loss on our model. Their loop wants a GPU and a process
group; it gets a group of one on the CPU. NFE is counted as they do: two calls between neighbouring times, and with an
analytical first step (AFS), which they use for odd NFE, one call less.
"""

import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from peers.adapter import Opened, Precond, Sampler, global_stream, program
from torch.nn.parallel import DistributedDataParallel

FOLDER = "amed-solver-main"
STUBS = ("models", "models.ldm", "models.ldm.util:instantiate_from_config")  # loaders of latent models
UPDATES = 79  # batches in their 10 thousand trajectories at their batch of 128
# solver, teacher, steps put between, grid and scales: launch.sh's of CIFAR-10, for DPM-Solver++ those of LSUN with the
# order asked for, data prediction (their default) and the grid that they recommend for small images
VARIANTS: dict[str, dict[str, Any]] = {
    "solver": {
        "sampler_stu": "amed", "sampler_tea": "heun", "M": 1, "schedule_type": "time_uniform", "schedule_rho": 1,
        "scale_dir": 0.01, "scale_time": 0, "max_order": 3,
    },
    "plugin.ipndm-4": {
        "sampler_stu": "ipndm", "sampler_tea": "ipndm", "M": 2, "schedule_type": "polynomial", "schedule_rho": 7,
        "scale_dir": 0.01, "scale_time": 0.2, "max_order": 4,
    },
    "plugin.dpmpp-2m": {
        "sampler_stu": "dpmpp", "sampler_tea": "dpmpp", "M": 2, "schedule_type": "logsnr", "schedule_rho": 1,
        "scale_dir": 0.01, "scale_time": 0, "max_order": 2,
    },
}  # fmt: skip
DATA = {"predict_x0": True, "lower_order_final": True}


class _OnCPU(DistributedDataParallel):
    def __init__(self, module: torch.nn.Module, device_ids: object = None, **options: Any) -> None:
        super().__init__(module, **options)


def samplers(clone: Path, opened: Opened, nfe: int, batch: int) -> Iterator[tuple[str, Sampler, int]]:
    """Each variant trained for `nfe` calls, with the network calls that its training made."""
    with program(clone / FOLDER, STUBS):
        from training.loss import get_solver_fn

        net = Precond(opened)
        for name, variant in VARIANTS.items():
            afs = nfe % 2 == 1
            options = {**variant, "num_steps": (nfe + afs) // 2 + 1, "afs": afs, **DATA}
            before = opened.calls
            predictor = _train(net, {"guidance_type": None, "dataset_name": "ours", **options}, batch, name)
            ends = {"sigma_min": net.sigma_min, "sigma_max": net.sigma_max}
            chosen = {**options, **ends, "AMED_predictor": predictor}
            function = get_solver_fn(variant["sampler_stu"])
            yield name + ".afs" * afs, lambda x, f=function, c=chosen: f(net, x, **c), opened.calls - before


def _train(net: Precond, options: dict[str, Any], batch: int, name: str) -> torch.nn.Module:
    """Their `training_loop` as their train.py calls it, on our model."""
    import dnnlib
    from training import training_loop as theirs

    predictor = dnnlib.EasyDict(class_name="training.networks.AMED_predictor", **options)
    adam = dnnlib.EasyDict(class_name="torch.optim.Adam", lr=5e-3, betas=[0.9, 0.999], eps=1e-8)
    with ExitStack() as stack:
        seed = stack.enter_context(global_stream(f"amed/{name}/{options['num_steps']}"))
        folder = stack.enter_context(TemporaryDirectory())
        for owner, attribute, value in (
            (theirs, "create_model", lambda *_: net),
            (theirs.dist, "print0", lambda *_, **__: None),
            (torch.nn.parallel, "DistributedDataParallel", _OnCPU),
            (torch.cuda, "max_memory_allocated", lambda *_: 0),
            (torch.cuda, "max_memory_reserved", lambda *_: 0),
            (torch.cuda, "reset_peak_memory_stats", lambda *_: None),
        ):
            stack.enter_context(patch.object(owner, attribute, value))
        theirs.training_loop(
            run_dir=folder, AMED_kwargs=predictor, loss_kwargs=dnnlib.EasyDict(class_name="training.loss.AMED_loss"),
            optimizer_kwargs=adam, seed=seed, batch_size=batch, total_kimg=UPDATES * batch / 1000, kimg_per_tick=1,
            snapshot_ticks=1 << 30, dataset_name="ours", device=torch.device("cpu"),
        )  # fmt: skip
        (snapshot,) = Path(folder).glob("network-snapshot-*.pkl")
        with open(snapshot, "rb") as file:
            trained: torch.nn.Module = pickle.load(file)["model"]
    return trained
