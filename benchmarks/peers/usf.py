"""USF: the sampler, the presets and the evolutionary search of its code for models with a discrete schedule.

Their codebase `imagenet256` is taken, whose schedule is the DDPM table that our models have. Three things are ours,
because the repository leaves them out: the first population (their presets), the model statistics of DPM-Solver-v3
steps (the degenerate ones, l = 1 and s = b = 0, with which these steps are data prediction) and the end of their
endless loop (a number of network calls). Their search draws from as many NFE as it is told; here each NFE has its
turn, and a child that lands at another NFE joins the population there, as in their shared folder.
"""

import math
import random
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from peers.adapter import Opened, Sampler, global_stream, program
from torch import Tensor

from fewstep.diffusion.denoiser import Denoiser

FOLDER = "codebases/imagenet256"
STATISTICS, ROWS = 1200, 1000
GRIDS = ("logSNR", "time_uniform", "time_quadratic")
# main.py's other values: multistep, lower order at the end where the steps are few
PRESETS: dict[str, dict[str, Any]] = {
    "dpmsolver": {"uni_sampler_decision_type": "dpmsolver"},
    "dpmsolver++": {"uni_sampler_decision_type": "dpmsolver++"},
    "unipc-bh1": {"uni_sampler_decision_type": "unipc", "uni_pc_variant": "bh1"},
    "unipc-bh2": {"uni_sampler_decision_type": "unipc", "uni_pc_variant": "bh2"},
}
ORDERS = ((2, "no_afs"), (3, "no_afs"), (2, "average_x0"))
RANK_BAR = 15  # parents kept, of their CIFAR-10 settings; those of ImageNet, 30, are for larger populations

Decisions = dict[str, Any]
Score = Callable[[Sampler], float]


class Usf:
    """Their sampler on our model."""

    def __init__(self, clone: Path, opened: Opened, mean: Tensor) -> None:
        from uni_sampler.uni_sampler import NoiseScheduleVP, model_wrapper, uni_sampler

        self.clone, self.opened = clone, opened
        t = torch.arange(1, ROWS + 1, dtype=torch.float64) / ROWS

        class ScheduleVP(NoiseScheduleVP):
            def marginal_log_mean_coeff(self, t: Tensor) -> Tensor:
                # theirs returns one row more of axes, which NumPy no longer turns into a number
                return super().marginal_log_mean_coeff(t).reshape(t.shape)

        schedule = ScheduleVP("discrete", alphas_cumprod=opened.schedule.alpha(t) ** 2)

        def network(x: Tensor, told: Tensor) -> Tensor:
            return Denoiser(opened.model).eps(x, (told.double() + 1) / ROWS)

        with TemporaryDirectory() as folder, redirect_stdout(None):
            shape = (STATISTICS + 1, 1, 1, 1)
            np.savez(f"{folder}/l.npz", l=np.ones(shape, np.float32))
            np.savez(f"{folder}/sb.npz", s=np.zeros(shape, np.float32), b=np.zeros(shape, np.float32))
            torch.save(mean, f"{folder}/mean.pth")
            with patch.object(torch.Tensor, "cuda", lambda tensor, *_: tensor):
                self.sampler = uni_sampler(
                    model_wrapper(network, schedule, time_input_type="1", model_type="noise"), schedule,
                    device="cpu", statistics_dir=folder, average_x0_dir=f"{folder}/mean.pth",
                )  # fmt: skip

    def run(self, decisions: Decisions) -> Sampler:
        """Images of one set of decisions; the factors of skips are handed to the network without their file."""

        def sample(x: Tensor) -> Tensor:
            self.opened.skips = decisions["skip_coefficients"]
            try:
                return self.sampler.sample(x, {**decisions, "skip_coefficients": None})
            finally:
                self.opened.skips = None

        return sample

    def presets(self, nfe: int) -> Iterator[tuple[str, Decisions]]:
        """Known samplers as their code expresses them, on their grids, with and without an analytical first step."""
        from uni_sampler.utils import get_empirical_decisions

        for (name, options), (order, afs), grid in product(PRESETS.items(), ORDERS, GRIDS):
            arguments = Namespace(
                skip_type=grid, timesteps=nfe + (afs != "no_afs"), lower_order_final=True, t_start=None, t_end=None,
                afs=afs, dpm_solver_order=order, dpm_solver_method="multistep", dpm_solver_type="dpmsolver",
                uni_pc_order=order, uni_pc_prediction_type="data_prediction", uni_pc_disable_corrector=False, **options,
            )  # fmt: skip
            decisions = get_empirical_decisions(arguments, self.sampler, "cpu")
            decisions["skip_coefficients"] = torch.ones(self.opened.n_skips)
            yield f"{name}-{order}.{grid}{'' if afs == 'no_afs' else '.afs'}", decisions

    def search(self, budgets: Mapping[int, int], score: Score) -> dict[int, dict[str, Any]]:
        """Their loop until the network calls of each NFE are spent.

        Returns: of each NFE, the best preset, the best of all and the numbers of trials.
        """
        from utils.search_utils import crossover, get_nfe, get_population, mutate, select_parents

        config = yaml.safe_load((self.clone / FOLDER / "configs/evo_search.yml").read_text())
        config["parents"]["rank_bar"] = RANK_BAR
        left, results = dict(budgets), {nfe: {"trials": 0, "failed": 0} for nfe in budgets}
        with TemporaryDirectory() as folder, global_stream("usf") as seed, _python_stream(seed):

            def trial(turn: int, decisions: Decisions) -> float:
                before = self.opened.calls
                try:
                    value = score(self.run(decisions))
                except Exception:
                    value = math.nan  # crossed decisions can be invalid; their loop would end here
                left[turn] -= self.opened.calls - before
                results[turn]["trials"] += 1
                if math.isfinite(value):
                    home = Path(folder) / f"nfe{get_nfe(decisions)}"
                    home.mkdir(exist_ok=True)
                    torch.save([decisions, value], home / f"{len(list(home.iterdir()))}.pth")
                else:
                    results[turn]["failed"] += 1
                return value

            for nfe in budgets:
                scored = [(trial(nfe, made), name, made) for name, made in self.presets(nfe)]
                results[nfe]["preset"] = min(
                    (row for row in scored if math.isfinite(row[0])), key=lambda row: row[0]
                )[1:]
                results[nfe]["presets"] = len(scored)
            while any(calls > 0 for calls in left.values()):
                for nfe in (nfe for nfe, calls in left.items() if calls > 0):
                    config["total_timesteps_range"] = {"min": nfe, "max": nfe}
                    with redirect_stdout(None):
                        population = get_population(Path(folder) / f"nfe{nfe}", config)
                        child = None
                        if random.uniform(0, 1) < config["crossover"]["prob"]:
                            for _ in range(6):
                                first, second = select_parents(population, config, num=2)
                                if len(first[0]["orders"]) == len(second[0]["orders"]):
                                    break
                            child = crossover(first[0], second[0], config=config)
                        parent = select_parents(population, config, num=1)[0] if child is None else child
                        child = mutate(parent, config)
                    trial(nfe, child)
            for nfe, result in results.items():
                config["total_timesteps_range"] = {"min": nfe, "max": nfe}
                with redirect_stdout(None):
                    result["best"] = get_population(Path(folder) / f"nfe{nfe}", config)[0][0]
        return results


@contextmanager
def usf(clone: Path, opened: Opened, mean: Tensor) -> Iterator[Usf]:
    """Their sampler, as long as their modules are imported."""
    with program(clone / FOLDER):
        yield Usf(clone, opened, mean)


@contextmanager
def _python_stream(seed: int) -> Iterator[None]:
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
