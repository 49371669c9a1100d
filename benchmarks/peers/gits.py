"""diff-sampler's solvers on its own grids and on those of GITS, fitted by its dynamic program on our model."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from peers.adapter import Opened, Precond, Sampler, global_stream, program

FOLDER = "gits-main"
SPACINGS = {"polynomial": 7, "logsnr": 1, "time_uniform": 1}
TEACHER_STEPS, WARMUP, COMPOUNDING = 61, 256, 1.15  # as in their scripts for CIFAR-10


def samplers(clone: Path, opened: Opened, nfe: int) -> Iterator[tuple[str, Sampler]]:
    """Every sampler of theirs that makes `nfe` calls, on each spacing and on GITS grids."""
    with program(clone / FOLDER):
        import gits_utils
        import solvers

        net = Precond(opened)
        common = {"sigma_min": net.sigma_min, "sigma_max": net.sigma_max}
        # one call a step, none for an analytical first step, and one more where the last state is denoised
        endings = {
            "": {"num_steps": nfe + 1},
            ".to-zero": {"num_steps": nfe, "denoise_to_zero": True},
            ".afs": {"num_steps": nfe + 2, "afs": True},
        }
        data = {"predict_x0": True, "lower_order_final": True}
        made = {
            "ipndm-3": (solvers.ipndm_sampler, {"max_order": 3}),
            "ipndm-4": (solvers.ipndm_sampler, {"max_order": 4}),
            "ipndm_v-3": (solvers.ipndm_v_sampler, {"max_order": 3}),
            "dpmpp-2m": (solvers.dpm_pp_sampler, {"max_order": 2, **data}),
            "dpmpp-3m": (solvers.dpm_pp_sampler, {"max_order": 3, **data}),
            "unipc-3": (solvers.unipc_sampler, {"max_order": 3, **data}),
        }
        for name, (function, options) in made.items():
            for (spacing, rho), (suffix, ending) in product(SPACINGS.items(), endings.items()):
                chosen = {**common, **options, **ending, "schedule_type": spacing, "schedule_rho": rho}
                yield f"{name}.{spacing}{suffix}", lambda x, f=function, c=chosen: f(net, x, **c)
        for afs in (False, True):
            with global_stream("gits"):  # with an analytical first step it puts one more time in
                kept = gits_utils.get_dp_list(
                    net, torch.device("cpu"), dataset_name="ours", num_warmup=WARMUP, max_batch_size=WARMUP,
                    num_steps_tea=TEACHER_STEPS, schedule_type="polynomial", schedule_rho=7, afs=afs, metric="dev",
                    coeff=COMPOUNDING, model_source="edm", solver="ipndm", solver_tea="ipndm", max_order=4,
                    prompt=None, num_steps=nfe + 1, **common,
                )  # fmt: skip
            times = solvers.get_schedule(
                TEACHER_STEPS, net.sigma_min, net.sigma_max, device=torch.device("cpu"), schedule_type="polynomial",
                schedule_rho=7, dp_list=kept,
            )  # fmt: skip
            for name in ("ipndm-3", "ipndm-4", "dpmpp-2m", "dpmpp-3m"):
                function, options = made[name]
                chosen = {**common, **options, "num_steps": len(kept), "t_steps": times, "afs": afs}
                yield f"{name}{'.afs' * afs}.gits", lambda x, f=function, c=chosen: f(net, x, **c)
