"""Training speed of our U-Net and loop against diffusers' UNet2DModel in diffusers' standard loop.

    python benchmarks/training.py [--threads 2] [--rounds 5] [--batch 16] [--clock wall|cpu]

Both train on the same 32 x 32 images at the same batch with AdamW, clipping, a warmed-up learning rate and
averaged weights. The networks have equal parameter counts (within 2 %), four levels each and attention at
8 x 8. Rounds alternate between the two, so that other work on the machine hits both; the ratio is the median
over rounds. `--clock cpu` counts processor seconds, for machines that others use. The table goes to
benchmarks/results/training.md.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from fewstep import process
from fewstep.diffusion.schedule import DDPMTable
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights
from fewstep.train.denoiser import train_denoiser
from fewstep.train.recipe import Recipe

RESULT = Path(__file__).parent / "results" / "training.md"
LR = 1e-4
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
WARM = 2  # steps of each measurement that are not timed


class RandomImages:
    """512 images in memory: reading files is not what is compared."""

    labels = None
    fingerprint = "random"

    def __init__(self) -> None:
        self.pixels = torch.randint(0, 256, (512, 3, 32, 32), generator=generator(0), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pixels[index] / 127.5 - 1

    def batch(self, indices) -> torch.Tensor:
        return self.pixels[torch.as_tensor(indices)]


def our_net() -> UNet:
    return UNet(32, 3, 40, (1, 2, 2, 2), 1, (8,))


def their_net() -> torch.nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64, 64, 64),
        norm_num_groups=8,
        attention_head_dim=32,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


def ours(
    images: RandomImages, *, batch: int, steps: int, precision: str, clock: Clock, device: str = "cpu"
) -> list[float]:
    """Seconds of each step of our loop."""
    stamps: list[float] = []

    def stamped(course: Iterable[int]) -> Iterator[int]:
        for step in course:
            stamps.append(clock())
            yield step
        stamps.append(clock())

    with initial_weights(0):
        net = our_net().to(device)
    train_denoiser(
        images,
        net,
        Recipe(
            schedule=DDPMTable.linear(),
            prediction="eps",
            steps=steps,
            batch_size=batch,
            lr=LR,
            seed=0,
            warmup_steps=1,
            precision=precision,
        ),
        progress=stamped,
    )
    return [stop - start for start, stop in zip(stamps[:-1], stamps[1:], strict=True)]


def theirs(
    images: RandomImages, *, batch: int, steps: int, precision: str, clock: Clock, device: str = "cpu"
) -> list[float]:
    """Seconds of each step of the loop of diffusers' examples/unconditional_image_generation."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    with initial_weights(0):
        net = their_net().to(device)
    ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True)
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR)
    course = get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=steps)
    loader = torch.utils.data.DataLoader(images, batch_size=batch, shuffle=True, generator=generator(0))
    seconds: list[float] = []
    net.train()
    for _, clean in zip(range(steps), loader, strict=False):
        start = clock()
        clean = clean.to(device)
        noise = torch.randn(clean.shape, device=device)
        timesteps = torch.randint(0, 1000, (len(clean),), device=device)
        noisy = noise_scheduler.add_noise(clean, noise, timesteps)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            output = net(noisy, timesteps).sample
        loss = F.mse_loss(output.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        course.step()
        optimizer.zero_grad()
        ema.step(net.parameters())
        loss.item()
        seconds.append(clock() - start)
    return seconds


def rounds(
    contestants: dict[str, Callable[..., list[float]]], *, n: int, batch: int, steps: int, **values
) -> dict[str, list[float]]:
    """Images per second of each contestant in each of `n` alternating rounds."""
    images = RandomImages()
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(n):
        for name, run in contestants.items():
            seconds = run(images, batch=batch, steps=WARM + steps, **values)[WARM:]
            rates[name].append(batch / statistics.median(seconds))
    return rates


def row(precision: str, rates: dict[str, list[float]]) -> str:
    ratios = [a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)]
    return (
        f"| {precision} | {statistics.median(rates['ours']):.1f} | {statistics.median(rates['theirs']):.1f} | "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
    )


def load_average() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="timed steps per round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    import diffusers

    torch.set_num_threads(options.threads)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (our_net(), their_net())]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02, f"the networks differ by more than 2 %: {sizes}"
    contestants = {"ours": ours, "theirs": theirs}
    load = load_average()
    values = {"batch": options.batch, "clock": CLOCKS[options.clock]}
    exact = rounds(contestants, n=options.rounds, steps=options.steps, precision="fp32", **values)
    # Processors without bfloat16 units emulate it, many times slower than float32: fewer rounds will do.
    rough = rounds(contestants, n=max(1, options.rounds // 2), steps=2, precision="bf16", **values)
    text = "\n".join(
        [
            "# Training speed: our U-Net and loop against diffusers'",
            "",
            f"32 x 32 x 3, batch {options.batch}, eager, {options.threads} thread(s); parameters "
            f"{sizes[0]:,} (ours), {sizes[1]:,} (diffusers). Images per {options.clock} second: medians over "
            f"{options.rounds} alternating rounds; of the ratio also the range.",
            f"torch {torch.__version__}, diffusers {diffusers.__version__}, {os.cpu_count()} cores, "
            f"load average {load} at the start, {load_average()} at the end.",
            "",
            "| precision | ours | diffusers | ratio |",
            "| --- | --- | --- | --- |",
            row("fp32", exact),
            row("bf16 autocast", rough),
            "",
        ]
    )
    RESULT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    process.set_up()
    main()
