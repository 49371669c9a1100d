"""Speed on a GPU: training and MFU, the sampling loop, evaluation; beside EDM's loops and, where it is, diffusers'.

    PYTHONPATH=src python benchmarks/gpu/speed.py --seconds 290 --out $OUT

Random weights and images. Each comparison alternates the two sides, with the same network, noise and times, and states
the largest difference of what they make. MFU: operations of the network (three times a forward pass, a multiply-add
counts as two) over the bf16 products of two matrices of 8192 per second on the same card. What the time no longer
allows is left out, and so named.
"""

import statistics
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import common
import numpy as np
import sampler_loop
import torch
import train
import training
from common import Lease
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import EDM, DDPMTable
from fewstep.metrics.extractor import extract, load_extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Statistics
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve
from fewstep.train.denoiser import train_denoiser
from fewstep.train.recipe import Recipe

SIDE = 32


def peer(options: Any) -> bool:
    """Whether diffusers is measured, too; it is no dependency of the core."""
    return not options.no_diffusers and find_spec("diffusers") is not None


def edm_sample(denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: list[float]) -> Tensor:
    """Heun's method as EDM states it, without churn, in float64 as its code [karras2022edm, Algorithm 1]."""
    x = x.double()
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - denoise(x.float(), torch.full((len(x),), sigma, device=x.device)).double()) / sigma
        moved = x + (following - sigma) * slope
        if following > 0:
            at = torch.full((len(x),), following, device=x.device)
            end = (moved - denoise(moved.float(), at).double()) / following
            moved = x + (following - sigma) * (slope + end) / 2
        x = moved
    return x.float()


def alternating(lease: Lease, sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Seconds of each side, the median over rounds, and the ratio of the second to the first, with its range."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    for k in range(repeats):
        for name in list(sides)[:: -1 if k % 2 else 1]:
            started = common.synchronised(lease.device)
            sides[name]()
            seconds[name].append(common.synchronised(lease.device) - started)
    ours, theirs = seconds.values()
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return {
        **{f"{name}_ms": 1000 * statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(ratios),
        "range": [ratios[0], ratios[-1]],
    }


def peak_flops(lease: Lease) -> float:
    """Operations per second of bf16 products of matrices of 8192 (on a CPU: float32, 512)."""
    on_cpu = torch.device(lease.device).type == "cpu"
    size, dtype = (512, torch.float32) if on_cpu else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, generator=generator(k)).to(lease.device, dtype) for k in (0, 1))
    rates = []
    for _ in range(8):
        started = common.synchronised(lease.device)
        for _ in range(5):
            a @ b
        rates.append(5 * 2 * size**3 / (common.synchronised(lease.device) - started))
    return statistics.median(rates[2:])


def network(options: Any, device: str) -> UNet:
    with initial_weights(0):
        net = UNet(SIDE, 3, **train.MODELS[options.model].net).to(device)
    with torch.no_grad():
        last = net.conv_out.weight
        last.copy_(0.02 * torch.randn(last.shape, generator=generator(0)))
    return net.eval()


def flops_of(net: UNet, device: str) -> int:
    """Of a forward pass on one image."""
    x, t = torch.zeros(1, 3, SIDE, SIDE, device=device), torch.zeros(1, device=device)
    backend = torch.nn.attention.SDPBackend.MATH  # whose products the counter sees
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(backend), FlopCounterMode(display=False) as counter:
        net(x, t)
    return int(counter.get_total_flops())


def training_speed(lease: Lease, options: Any) -> dict[str, Any]:
    """Images per second of the shared loop by way, MFU of each, and diffusers' standard loop."""
    images, rows = training.RandomImages(), []
    peak, flops = peak_flops(lease), flops_of(network(options, lease.device), lease.device)
    ways = [("fp32", False), ("bf16", False), ("bf16", True)]
    for precision, compiled in ways[: 2 if options.eager else 3]:
        stamps: list[float] = []

        def stamped(steps: Any, stamps: list[float] = stamps) -> Any:
            for step in steps:
                stamps.append(common.synchronised(lease.device) if step == 3 else 0.0)
                yield step
            stamps.append(common.synchronised(lease.device))

        recipe = Recipe(
            schedule=DDPMTable.linear(), prediction="v", steps=3 + options.steps, batch_size=options.batch,
            lr=1e-4, seed=0, precision=precision, compile=compiled,
        )  # fmt: skip
        row: dict[str, Any] = {"precision": precision, "compiled": compiled, "batch": options.batch}
        try:
            train_denoiser(images, network(options, lease.device), recipe, log_every=1000, progress=stamped)
            rate = options.steps * options.batch / (stamps[-1] - stamps[3])
            row |= {"images_per_second": rate, "mfu": 3 * flops * rate / peak}
        except RuntimeError as error:  # no compiler, out of memory
            row["error"] = " ".join(str(error).split())[:300]
        rows.append(row)
        lease.say(f"training {row}")
    found: dict[str, Any] = {"peak_flops": peak, "flops_per_image": flops, "ours": rows}
    if peer(options):
        rates = training.rounds(
            {"ours": training.ours, "theirs": training.theirs}, n=3, batch=options.batch, steps=options.steps,
            precision="bf16", clock=lambda: common.synchronised(lease.device), device=lease.device,
        )  # fmt: skip
        found["diffusers"] = {name: statistics.median(values) for name, values in rates.items()}
    return found


def sampling_speed(lease: Lease, options: Any) -> dict[str, Any]:
    """Our loop against EDM's, alone and with a network, and against diffusers'."""
    net, schedule = network(options, lease.device), EDM()
    net.requires_grad_(False)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return net(x / (1 + sigma[:, None, None, None] ** 2).sqrt(), schedule.time_input(sigma))

    def nothing(x: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 * x

    plan = PRESETS["heun"](schedule, 2 * options.heun_steps - 1, grid="karras", to_zero=True)
    sigmas = [node.t for node in plan.nodes]
    x = 80 * torch.randn(options.batch, 3, SIDE, SIDE, generator=generator(0)).to(lease.device)
    found: dict[str, Any] = {"plan": plan.name, "batch": options.batch}
    for name, fn in (("loop alone", nothing), ("with the network", denoise)):
        model = Model(fn, schedule=schedule, prediction="x0", shape=(3, SIDE, SIDE))
        sides = {
            "ours": lambda model=model: solve(model, plan, x),
            "edm": lambda fn=fn: edm_sample(fn, x, sigmas),
        }
        ours, theirs = (run() for run in sides.values())
        with torch.no_grad():
            row = alternating(lease, sides, options.repeats)
        found[name] = {**row, "difference": float((ours - theirs).abs().max() / theirs.abs().max())}
        lease.say(f"sampling, {name}, against EDM: {found[name]}")
    if peer(options):
        noise = torch.randn(options.batch, 3, SIDE, SIDE, generator=generator(0)).to(lease.device)
        result = sampler_loop.compare(
            "diffusers",
            sampler_loop.fewstep_sample(net, 10, None),
            lambda x: sampler_loop.diffusers_sample(net, x, 10),
            noise,
            options.repeats,
        )
        found["diffusers"] = {"ratio": result.ratio, "difference": result.difference}
    return found


def edm_statistics(images: Tensor, extractor: Any, batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance as EDM's fid.py sums them: batches of 64, float64 on the device."""
    mu = torch.zeros(extractor.dim, dtype=torch.float64, device=extractor.device)
    sigma = torch.zeros(extractor.dim, extractor.dim, dtype=torch.float64, device=extractor.device)
    for part in torch.split(images, batch):
        with torch.inference_mode():
            rows = extractor.forward(part.to(extractor.device)).double()
        mu, sigma = mu + rows.sum(0), sigma + rows.T @ rows
    n = len(images)
    mu /= n
    return mu.cpu().numpy(), ((sigma - torch.outer(mu, mu) * n) / (n - 1)).cpu().numpy()


def evaluation_speed(lease: Lease, options: Any) -> dict[str, Any]:
    """Images to statistics and distance, against the loop of EDM's fid.py with the same network."""
    extractor = load_extractor(options.extractor, device=lease.device)
    side = SIDE if extractor.shape is None else extractor.shape[1]
    channels = 3 if extractor.shape is None else extractor.shape[0]
    shape = (options.images, channels, side, side)
    images = torch.randint(0, 256, shape, generator=generator(0), dtype=torch.uint8)
    reference = Statistics.from_features(extract(images[: len(images) // 2], extractor))
    distances: dict[str, float] = {}

    def ours() -> None:
        distances["ours"] = frechet(Statistics.from_features(extract(images, extractor)), reference).value

    def edm() -> None:
        mu, cov = edm_statistics(images, extractor)
        if find_spec("scipy"):
            import scipy.linalg

            root = scipy.linalg.sqrtm(cov @ reference.cov).real
        else:  # the same root by eigenvalues: the machine has no SciPy
            half = np.linalg.cholesky(reference.cov + 1e-12 * np.eye(len(cov)))
            root = np.diag(np.sqrt(np.clip(np.linalg.eigvalsh(half.T @ cov @ half), 0, None)))
        off = mu - reference.mu
        distances["edm"] = float(off @ off + np.trace(cov + reference.cov - 2 * root))

    row = alternating(lease, {"ours": ours, "edm": edm}, min(3, options.repeats))
    rate = options.images / (row["ours_ms"] / 1000)
    found = {
        **row,
        "images": options.images,
        "images_per_second": rate,
        "extractor": extractor.id,
        "distances": distances,
    }
    lease.say(f"evaluation: {found}")
    return found


PARTS = {"sampling": sampling_speed, "evaluation": evaluation_speed, "training": training_speed}


def main(arguments: list[str] | None = None) -> None:
    made = common.parser(__doc__)
    made.add_argument("--model", choices=train.MODELS, default="cifar10-32-base", help="whose network")
    made.add_argument("--batch", type=int, default=512)
    made.add_argument("--steps", type=int, default=20, help="timed steps of training")
    made.add_argument("--heun-steps", type=int, default=18)
    made.add_argument("--repeats", type=int, default=7)
    made.add_argument("--images", type=int, default=10_000, help="of the evaluation")
    made.add_argument("--extractor", default="effnet-lite0-p320")
    made.add_argument("--eager", action="store_true", help="do not compile")
    made.add_argument("--no-diffusers", action="store_true", help="leave it out although it is installed")
    options = made.parse_args(arguments)
    lease = Lease.of(options, exact=True)
    results = common.kept_results(lease, "speed.json")
    for name, part in PARTS.items():
        if name not in results and lease.left > 0.1 * lease.seconds:
            results[name] = part(lease, options)
            common.keep_results(lease, "speed.json", results)
    missing = [name for name in PARTS if name not in results]
    without = [] if peer(options) else ["diffusers"]
    common.record(lease, "speed.json", {**results, "not_measured": missing, "peers_left_out": without})


if __name__ == "__main__":
    common.run(main)
