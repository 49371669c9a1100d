"""The sampling loop against diffusers' DPMSolverMultistepScheduler: same network, same times, same noise.

Run: OMP_NUM_THREADS=1 python benchmarks/sampler_loop.py [--device cuda --short bfloat16]
Needs diffusers. Runs of the two alternate; the ratio is the median over pairs.
"""

import argparse
import copy
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from fewstep import process
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import DDPMTable
from fewstep.files import atomic_file
from fewstep.nets.unet import UNet
from fewstep.rng import generator
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve
from fewstep.sampling.solver import Values

OUT = Path(__file__).parent / "results" / "sampler_loop.md"
SCHEDULE = DDPMTable.linear()
SHAPE = (3, 32, 32)

# numpy 2 about diffusers' own arrays
warnings.filterwarnings("ignore", message="__array_", category=DeprecationWarning)


class Identity(nn.Module):
    """A network without work, so that the loop alone is timed."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x


def unet() -> UNet:
    net = UNet(32, 3, 64, multipliers=(1, 2, 2), attention=(16,)).eval().requires_grad_(False)
    # the last layer starts at zero, which would make all samples equal
    net.conv_out.weight.copy_(0.02 * torch.randn(net.conv_out.weight.shape, generator=generator(0)))
    return net


def diffusers_sample(net: nn.Module, x: Tensor, n_steps: int) -> Tensor:
    """The loop of diffusers' unconditional pipelines."""
    from diffusers.schedulers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(n_steps, device=x.device)
    with torch.no_grad():
        for k in scheduler.timesteps:
            x = scheduler.step(net(x, k), k, x).prev_sample
    return x


def times_of_diffusers(n_steps: int) -> list[float]:
    from diffusers.schedulers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(n_steps)
    return [*((scheduler.timesteps.double() + 1) / 1000).tolist(), 0.001]


def fewstep_sample(
    fn: Callable[[Tensor, Tensor], Tensor], n_steps: int, dtype: torch.dtype | None
) -> Callable[[Tensor], Tensor]:
    """Our loop on the same times, compiled anew in each run as in a first use."""
    model = Model(lambda x, t: fn(x, SCHEDULE.time_input(t)), schedule=SCHEDULE, shape=SHAPE)
    lambdas = SCHEDULE.lambda_(torch.tensor(times_of_diffusers(n_steps), dtype=torch.float64))
    plan = PRESETS["dpmpp-2m"](SCHEDULE, n_steps, lower_final=n_steps < 15)
    plan = replace(Values.of(plan), lambdas=lambdas).put_into(plan, SCHEDULE)
    return lambda x: solve(model, plan, x, dtype=dtype)


def seconds(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Wall time on a GPU; on a CPU shared with other work, the processor time of this process."""
    if x.is_cuda:
        torch.cuda.synchronize()
        started = time.perf_counter()
        run(x)
        torch.cuda.synchronize()
        return time.perf_counter() - started
    started = time.process_time()
    run(x)
    return time.process_time() - started


@dataclass
class Result:
    case: str
    ours: float
    theirs: float
    ratio: float
    difference: float


def compare(
    case: str, ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor, repeats: int
) -> Result:
    """Alternate the two, the order turning from pair to pair."""
    expected, actual = theirs(x), ours(x)
    difference = float((actual - expected).abs().max() / expected.abs().max())
    pairs = []
    for i in range(repeats):
        first, second = (ours, theirs) if i % 2 else (theirs, ours)
        a, b = seconds(first, x), seconds(second, x)
        pairs.append((a, b) if i % 2 else (b, a))
    return Result(
        case,
        median(a for a, _ in pairs),
        median(b for _, b in pairs),
        median(b / a for a, b in pairs),
        difference,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--nfe", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--short", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    x = torch.randn(options.batch, *SHAPE, generator=generator(0)).to(options.device)
    idle, net = Identity(), unet().to(options.device)
    nfe, repeats = options.nfe, options.repeats

    def theirs(network: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: diffusers_sample(network, x, nfe)

    results = [
        compare(
            "loop alone (network returns its input)",
            fewstep_sample(idle, nfe, None),
            theirs(idle),
            x,
            5 * repeats,
        ),
        compare("U-Net, eager float32 for both", fewstep_sample(net, nfe, None), theirs(net), x, repeats),
    ]
    fast = copy.deepcopy(net).to(memory_format=torch.channels_last)
    wide = x.contiguous(memory_format=torch.channels_last)
    dtype = None if options.short == "float32" else torch.bfloat16
    ways = [("channels-last", fast)]
    if not options.no_compile:
        ways.append(("channels-last + torch.compile", torch.compile(fast)))
    for way, network in ways:
        ours = fewstep_sample(network, nfe, dtype)
        case = f"U-Net, {way}, {options.short}, against eager float32"
        results.append(compare(case, lambda x, ours=ours: ours(wide), theirs(net), x, repeats))
    write(options, results)


def write(options: argparse.Namespace, results: list[Result]) -> None:
    device = (
        torch.cuda.get_device_name()
        if options.device.startswith("cuda")
        else f"{platform.processor() or platform.machine()}"
    )
    clock = "wall time" if options.device.startswith("cuda") else "processor time of one thread"
    lines = [
        "# Sampling loop: fewstep against diffusers",
        "",
        f"DPM-Solver++(2M), {options.nfe} evaluations, batch {options.batch} of 3 x 32 x 32, U-Net of 3.0 M",
        f"parameters; {clock}, medians of alternating pairs; {device},",
        f"torch {torch.__version__}, Python {platform.python_version()}.",
        "The difference is the largest one between the samples, relative to the largest value.",
        "",
        "| case | fewstep, ms | diffusers, ms | ratio | difference |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.case} | {1000 * r.ours:.1f} | {1000 * r.theirs:.1f} | {r.ratio:.2f} | {r.difference:.1e} |"
        for r in results
    ]
    with atomic_file(options.out) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    process.set_up()
    main()
