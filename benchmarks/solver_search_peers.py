"""Public few-step samplers run by their own code, and searched plans, on one model: same noises, same evaluator.

Run: git clone https://github.com/zju-pi/diff-sampler
     OMP_NUM_THREADS=1 python benchmarks/solver_search_peers.py diff-sampler/gits-main MODEL PLAN... \
         --reference stats.npz --extractor NAME
Writes benchmarks/results/solver_search_peers.md (or --name). The peers' code sees the model through an adapter from
their variance-exploding states to ours; their GITS grids are fitted by their own dynamic program on our model.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.data.pixels import to_u8
from fewstep.diffusion.denoiser import Denoiser, Model
from fewstep.files import atomic_file
from fewstep.interop.load import load_model
from fewstep.metrics.extractor import extract, load_extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import load_reference
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import half_samples, normal_interval, spread
from fewstep.rng import ImageNoise, generator
from fewstep.sampling.plan import load_plan
from fewstep.sampling.sample import sample
from fewstep.sampling.task import batches

RESULTS = Path(__file__).parent / "results"
SPACINGS = {"polynomial": 7, "logsnr": 1, "time_uniform": 1}
TEACHER_STEPS, WARMUP, COMPOUNDING = 61, 256, 1.15  # as in their scripts for CIFAR-10


class Adapter:
    """Our model as theirs call it: net(x, sigma) -> x0_hat, where x = x_t / alpha and sigma = sigma_t / alpha."""

    label_dim = 0

    def __init__(self, model: Model) -> None:
        self.model = model
        self.img_channels, self.img_resolution, _ = model.shape

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        schedule = self.model.schedule
        t = schedule.t_of_lambda(-sigma.double().log()).clamp(schedule.t_min, schedule.t_max).reshape(())
        return Denoiser(self.model).x0(float(schedule.alpha(t)) * x, t).to(x)


Sampler = Callable[[Tensor], Tensor]


def peers(folder: str, model: Model, nfe: int) -> Iterator[tuple[str, Sampler]]:
    """Every sampler of theirs that makes `nfe` calls, on each spacing and on GITS grids."""
    sys.path.insert(0, folder)
    import gits_utils
    import solvers

    net = Adapter(model)
    ends = model.schedule.lambda_(
        torch.tensor([model.schedule.t_min, model.schedule.t_max], dtype=torch.float64)
    )
    sigma_min, sigma_max = (-ends).exp().tolist()
    common = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    # one call a step, and one more where the last state is denoised
    endings = {"": {"num_steps": nfe + 1}, ".to-zero": {"num_steps": nfe, "denoise_to_zero": True}}
    made = {
        "euler": (solvers.euler_sampler, {}),
        "ipndm-3": (solvers.ipndm_sampler, {"max_order": 3}),
        "ipndm-4": (solvers.ipndm_sampler, {"max_order": 4}),
        "ipndm_v-3": (solvers.ipndm_v_sampler, {"max_order": 3}),
        "dpmpp-2m": (solvers.dpm_pp_sampler, {"max_order": 2, "predict_x0": True, "lower_order_final": True}),
        "dpmpp-3m": (solvers.dpm_pp_sampler, {"max_order": 3, "predict_x0": True, "lower_order_final": True}),
        "unipc-3": (solvers.unipc_sampler, {"max_order": 3, "predict_x0": True, "lower_order_final": True}),
    }
    for name, (function, options) in made.items():
        for (spacing, rho), (suffix, ending) in product(SPACINGS.items(), endings.items()):
            chosen = {**common, **options, **ending, "schedule_type": spacing, "schedule_rho": rho}
            yield f"{name}.{spacing}{suffix}", lambda x, f=function, c=chosen: f(net, x, **c)
    with torch.random.fork_rng():
        torch.manual_seed(
            generator(0, "gits").initial_seed() % (1 << 31)
        )  # their code draws from the global stream
        kept = gits_utils.get_dp_list(
            net, torch.device("cpu"), dataset_name="ours", num_warmup=WARMUP, max_batch_size=WARMUP,
            num_steps_tea=TEACHER_STEPS, schedule_type="polynomial", schedule_rho=7, afs=False, metric="dev",
            coeff=COMPOUNDING, model_source="edm", solver="ipndm", solver_tea="ipndm", max_order=4, prompt=None,
            num_steps=nfe + 1, **common,
        )  # fmt: skip
    times = solvers.get_schedule(
        TEACHER_STEPS, sigma_min, sigma_max, device=torch.device("cpu"), schedule_type="polynomial",
        schedule_rho=7, dp_list=kept,
    )  # fmt: skip
    for name in ("euler", "ipndm-3", "ipndm-4", "dpmpp-2m", "dpmpp-3m"):
        function, options = made[name]
        chosen = {**common, **options, "num_steps": nfe + 1, "t_steps": times}
        yield f"{name}.gits", lambda x, f=function, c=chosen: f(net, x, **c)


def main(arguments: argparse.Namespace) -> None:
    torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:29507", rank=0, world_size=1)
    model = load_model(arguments.model)
    extractor = load_extractor(arguments.extractor)
    reference = load_reference(arguments.reference, extractor=extractor)
    seeds = range(arguments.n)

    def measured(images: Tensor) -> tuple[float, str]:
        features = extract(images, extractor)
        value = frechet(Statistics.from_features(features), reference.statistics).value
        sd = spread(half_samples(features, reference.statistics, resamples=50, seed=0))
        low, high = normal_interval(value, sd, 0.95)
        return value, f"{value:.1f} [{low:.1f}, {high:.1f}]"

    lines = ["| NFE | sampler | FD | over the best of theirs |", "|---|---|---|---|"]
    for path in arguments.plans:
        plan = load_plan(path)
        rows = []
        for name, run in peers(arguments.peers, model, plan.nfe):
            parts = [
                to_u8(run(ImageNoise(part, model.shape)())) for part in batches(seeds, arguments.batch_size)
            ]
            rows.append((*measured(torch.cat(parts)), name))
            print(plan.nfe, rows[-1][2], rows[-1][1], flush=True)
        rows = sorted((row for row in rows if np.isfinite(row[0])), key=lambda row: row[0])
        ours, text = measured(sample(model, plan, seeds=seeds, batch_size=arguments.batch_size))
        lines.append(f"| {plan.nfe} | **searched** | {text} | {ours / rows[0][0]:.2f} |")
        lines += [f"| {plan.nfe} | {name} | {shown} | |" for _, shown, name in rows[:5]]
    title = f"# {model.name}: FD-{extractor.id} of {arguments.n} images; the five best of diff-sampler at each NFE"
    text = "\n".join([title, "", *lines, ""])
    with atomic_file(RESULTS / f"solver_search_{arguments.name}.md") as temporary:
        temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", help="the folder gits-main of a clone of diff-sampler")
    parser.add_argument("model")
    parser.add_argument("plans", nargs="+", help="searched plans, one for each NFE")
    parser.add_argument("--reference", required=True)
    parser.add_argument("--extractor", required=True)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--name", default="peers")
    main(parser.parse_args())
