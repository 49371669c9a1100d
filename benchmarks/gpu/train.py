"""Train a model of the zoo within one command: a trial picks the batch and the way, the rest of the time trains.

    PYTHONPATH=src python benchmarks/gpu/train.py --model cifar10-32-base --data gpu-data/cifar10-jpeg.tar.xz \
        --seconds 530 --out $OUT

Resumes: the choice of the trial and the checkpoints stand in --work, so the same command goes on where it was ended.
What comes back: the model folder as an archive (EMA weights in float16), a grid of 64 samples, and
measured.json with the Fréchet distance of 10 calls of UniPC-2 by the project's evaluator.
"""

import copy
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
from common import Lease

from fewstep.checks import ConfigError, DataError
from fewstep.data.latents import Latents, draw_latents, load_latents, write_latents
from fewstep.data.packed import Dataset, load_dataset
from fewstep.data.pixels import to_unit
from fewstep.diffusion.condition import LABEL, Condition
from fewstep.diffusion.schedule import DDPMTable, Flow, Schedule
from fewstep.files import atomic_dir, object_or_empty, write_json
from fewstep.interop.autoencoder import load_autoencoder
from fewstep.methods.patchdm import objective as patchdm
from fewstep.methods.rad import objective as rad
from fewstep.metrics.evaluate import evaluate_samples
from fewstep.nets import AUTOENCODER, CURVE, WEIGHTS
from fewstep.nets.autoencoder import VAE
from fewstep.nets.folder import fill, read_weights, save_autoencoder, save_model
from fewstep.nets.patched import PatchedUNet
from fewstep.nets.unet import UNet
from fewstep.pipeline.environment import card_facts
from fewstep.progress import track
from fewstep.rng import generator, initial_weights
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import sample
from fewstep.train.autoencoder import measured_scale, reconstruction_error, train_autoencoder
from fewstep.train.denoiser import train_denoiser
from fewstep.train.losses import denoising_loss, draw_times, noised
from fewstep.train.recipe import Objective, Recipe
from fewstep.train.sandwich import Sandwich


@dataclass(frozen=True)
class Design:
    """A network, and how it is trained.

    Attributes:
        net: arguments of the U-Net.
        widths: shares of its channels at which it is trained, too.
        label_dropout: of a class-conditional model; None for an unconditional one.
        autoencoder: of a flow on latents, the arguments of the autoencoder that is trained first; None for pixels.
        objective: of a paper, `rad` or `patchdm`; None for whole images that have one time.
        tile: side of the patches that the network sees; None for whole images.
        start: the design whose weights it starts from, given by --start; None for random ones.
    """

    net: dict[str, Any]
    widths: tuple[float, ...] = (1.0,)
    label_dropout: float | None = None
    autoencoder: dict[str, int] | None = None
    objective: str | None = None
    tile: int | None = None
    start: str | None = None

    @property
    def schedule(self) -> Schedule:
        """A flow for latents, DDPM's table for pixels."""
        return DDPMTable.linear() if self.autoencoder is None else Flow()

    @property
    def prediction(self) -> str:
        """What the network outputs."""
        return "v" if self.autoencoder is None else "u"


BASE: dict[str, Any] = {"channels": 128, "multipliers": (1, 2, 2, 2), "attention": (16, 8)}
TINY: dict[str, Any] = {"channels": 16, "multipliers": (1, 2)}
MODELS = {
    "cifar10-32-base": Design(BASE),
    "cifar10-32-slim-cond": Design(BASE, widths=(1.0, 0.75, 0.5), label_dropout=0.1),
    "cifar10-32-lfm": Design(
        {"channels": 192, "multipliers": (1, 2, 2), "attention": (8, 4)},
        label_dropout=0.1,
        autoencoder={"channels": 64, "latent_channels": 4, "factor": 2},
    ),
    "cifar10-32-rad": Design(BASE, objective="rad", start="cifar10-32-base"),
    "cifar10-32-patches": Design(
        {"channels": 128, "multipliers": (1, 2, 2), "attention": (8, 4)},
        label_dropout=0.1,
        objective="patchdm",
        tile=16,
    ),
    "tiny": Design({**TINY, "channels": 8}),
    "tiny-slim-cond": Design(TINY, widths=(1.0, 0.5), label_dropout=0.1),
    "tiny-lfm": Design(
        TINY, label_dropout=0.1, autoencoder={"channels": 8, "latent_channels": 4, "factor": 2}
    ),
    "tiny-rad": Design({**TINY, "channels": 8}, objective="rad", start="tiny"),
    "tiny-patches": Design({"channels": 8}, objective="patchdm", tile=4),
}
"""The tiny ones are for tests."""

LR, WARMUP, COOLDOWN, EMA_DECAY, SEED = 4e-4, 0.02, 0.2, 0.9995, 0
"""WARMUP and COOLDOWN in shares of the steps."""
TRIAL_STEPS, WARM_STEPS = 8, 3
AGREEMENT = {"fp32": 1e-3, "bf16": 3e-2}
"""Largest relative difference of a loss from eager float32, by precision: rounding, and not another function."""
AFTER = 0.12
"""Share of the time that is left for saving, sampling and measuring."""
OF_AUTOENCODER = 0.25
"""Share of the time for the autoencoder and its latents, where there is one."""

OBJECTIVES: dict[str, Callable[..., Objective]] = {"rad": rad.objective, "patchdm": patchdm.objective}
Images = Dataset | Latents
Net = UNet | PatchedUNet


def network(name: str, dataset: Images, device: str, start: Path | None = None) -> Net:
    """The network as it starts: with the weights of a model, or random ones that depend on the seed alone."""
    design = MODELS[name]
    n_classes = 0 if design.label_dropout is None else len(dataset.classes or ())
    channels, side, _ = dataset.shape
    arguments = {
        "image_size": design.tile or side,
        "in_channels": channels,
        "n_classes": n_classes,
        **design.net,
    }
    with initial_weights(SEED):
        net: Net = UNet(**arguments) if design.tile is None else PatchedUNet(arguments)
    if start is not None:
        fill(net, read_weights(start / WEIGHTS), source=start / WEIGHTS)
    return net.to(device)


def objective_of(name: str, net: Net) -> Objective | None:
    """What the paper of a design trains with."""
    design = MODELS[name]
    if design.objective is None:
        return None
    made: Objective = OBJECTIVES[design.objective](
        design.objective, design.schedule, design.prediction, "uniform", net
    )
    return made


def recipe(name: str, net: Net, *, steps: int, batch: int, precision: str, compiled: bool) -> Recipe:
    """How it is trained: a constant rate, then a cooldown."""
    design, objective = MODELS[name], objective_of(name, net)
    assert isinstance(net, UNet) or len(design.widths) == 1
    return Recipe(
        schedule=design.schedule,
        prediction=design.prediction,
        steps=steps,
        batch_size=batch,
        lr=LR,
        seed=SEED,
        warmup_steps=int(WARMUP * steps),
        lr_schedule="constant",
        cooldown=int(COOLDOWN * steps),
        condition_dropout=design.label_dropout or 0.0,
        flip=design.autoencoder is None,  # a mirrored latent is not that of the mirrored image
        ema_decay=EMA_DECAY,
        precision=precision,
        compile=compiled,
        loss_of_step=Sandwich(net, design.widths) if len(design.widths) > 1 else objective,
        times_of_step=None if objective is None else objective.times,
    )


def loss_of(name: str, net: Net, dataset: Images, device: str, *, precision: str, compiled: bool) -> float:
    """The loss on one fixed batch, to hold a way of computing against eager float32."""
    rng, n, design = generator(SEED, "agreement"), min(32, len(dataset)), MODELS[name]
    schedule, images = design.schedule, dataset.batch(range(n))
    x0 = (images if images.is_floating_point() else to_unit(images)).to(device)
    eps = torch.randn(x0.shape, generator=rng).to(device)
    t = draw_times(schedule, n, weighting="uniform", rng=rng)
    objective = objective_of(name, net)
    if objective is not None and objective.times is not None:
        t = objective.times(t, (x0.shape[-2], x0.shape[-1]), rng)
    loss = denoising_loss if objective is None else objective(rng, n)
    inputs = noised(x0, eps, t, schedule=schedule, prediction=design.prediction, weighting="uniform")
    condition = None
    if net.conditions is not None and dataset.labels is not None:
        condition = Condition({LABEL: torch.as_tensor(dataset.labels[:n], dtype=torch.int64)}).to(
            torch.device(device), torch.float32
        )
    call = torch.compile(net) if compiled else net
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    with torch.no_grad(), autocast:
        return float(loss(call, inputs, condition).mean())


def speed_of(name: str, dataset: Images, lease: Lease, way: dict[str, Any]) -> float:
    """Images per second of the shared training loop in some steps."""
    stamps: list[float] = []

    def stamped(steps: Iterable[int]) -> Iterator[int]:
        for step in steps:
            if step == WARM_STEPS:
                stamps.append(common.synchronised(lease.device))
            yield step
        stamps.append(common.synchronised(lease.device))

    net = network(name, dataset, lease.device)
    values = recipe(name, net, steps=WARM_STEPS + TRIAL_STEPS, **way)
    train_denoiser(dataset, net, values, log_every=1000, progress=stamped)
    return TRIAL_STEPS * way["batch"] / (stamps[1] - stamps[0])


def trial(name: str, dataset: Images, lease: Lease, batches: list[int], *, seconds: float) -> dict[str, Any]:
    """The fastest way that computes the same: eager ones at each batch, then the better batch compiled.

    Returns: batch, precision and compiled of the fastest way, and all that was tried.
    """
    ends = lease.left - seconds
    net = network(name, dataset, lease.device)
    # the last layer starts at zero, so that every way would agree
    with torch.no_grad():
        last = (net if isinstance(net, UNet) else net.net).conv_out.weight
        last.copy_(0.02 * torch.randn(last.shape, generator=generator(SEED, "agreement")))
    exact = loss_of(name, net, dataset, lease.device, precision="fp32", compiled=False)
    tried: list[dict[str, Any]] = []
    ways = [{"batch": b, "precision": "bf16", "compiled": False} for b in batches]

    def attempt(way: dict[str, Any]) -> None:
        row: dict[str, Any] = dict(way)
        began = lease.left
        try:
            found = loss_of(
                name, net, dataset, lease.device, precision=way["precision"], compiled=way["compiled"]
            )
            row["difference"] = abs(found / exact - 1)
            if row["difference"] <= AGREEMENT[way["precision"]]:
                row["images_per_second"] = speed_of(name, dataset, lease, way)
        except (RuntimeError, DataError) as error:  # out of memory, no compiler, not finite
            row["error"] = " ".join(str(error).split())[:300]
        row["seconds"] = round(began - lease.left, 1)
        tried.append(row)
        lease.say(f"trial: {row}")

    for way in ways:
        attempt(way)
    best = max(tried, key=lambda row: row.get("images_per_second", 0.0))
    if lease.left > ends and "images_per_second" in best:
        attempt({**{key: best[key] for key in ("batch", "precision")}, "compiled": True})
    fast = [row for row in tried if "images_per_second" in row]
    if not fast:
        way = {"batch": batches[0], "precision": "fp32", "compiled": False}
        fast = [{**way, "images_per_second": speed_of(name, dataset, lease, way)}]
    chosen = max(fast, key=lambda row: row["images_per_second"])
    return {**chosen, "tried": tried}


def train(
    name: str, dataset: Images, lease: Lease, batches: list[int], *, trial_seconds: float, start: Path | None
) -> Path:
    """The model folder, trained until the time for it is over."""
    folder, kept = lease.work / name, lease.work / f"{name}.way.json"
    if folder.is_dir():
        return folder
    after = AFTER * lease.seconds
    way = object_or_empty(kept)
    if not way:
        way = trial(name, dataset, lease, batches, seconds=trial_seconds)
        again = way.get("seconds", 0.0) if way["compiled"] else 0.0  # it is compiled again
        seconds = 0.96 * (lease.left - after - again)
        way["steps"] = max(10, int(seconds * way["images_per_second"] / way["batch"]))
        write_json(kept, way)
    net, metrics = network(name, dataset, lease.device, start), lease.work / f"{name}.{CURVE}"
    values = recipe(
        name,
        net,
        steps=way["steps"],
        batch=way["batch"],
        precision=way["precision"],
        compiled=way["compiled"],
    )
    lease.say(f"training: {way['steps']} steps of {way['batch']}, {lease.left - after:.0f} s")
    bar, stop, started = track("train", unit="step"), lease.until(after), time.monotonic()
    state = train_denoiser(
        dataset,
        net,
        values,
        checkpoints=lease.work / f"{name}.checkpoints",
        metrics=metrics,
        log_every=max(1, min(100, way["steps"] // 10)),
        checkpoint_seconds=60.0,
        progress=lambda steps: stop(bar(steps)),
    )
    seconds = time.monotonic() - started
    lease.say(f"trained {state.step} of {way['steps']} steps")
    design = MODELS[name]

    def finish(made: Path) -> None:
        (made / CURVE).write_bytes(metrics.read_bytes())
        if design.autoencoder is not None:
            shutil.copytree(lease.work / f"{name}.autoencoder", made / AUTOENCODER)

    save_model(
        folder,
        state.ema["net"].net,
        schedule=values.schedule,
        prediction=design.prediction,
        shape=dataset.shape,
        name=name,
        card={
            **card_facts(dataset, net),
            **lease.facts(),
            "settings": {
                **values.settings(),
                "steps": values.steps,
                "warmup": values.warmup_steps,
                "cooldown": values.cooldown,
                "batch_size": values.batch_size,
                "compile": values.compile,
                "flip": values.flip,
                "seed": SEED,
            },
            "trial": way["tried"],
            "steps": state.step,
            "images_seen": state.images_seen,
            "seconds_of_last_start": round(seconds, 1),
        },
        dtype=torch.float16,
        widths=design.widths,
        guidable=bool(design.label_dropout),
        pixel_times=values.times_of_step is not None,
        finish=finish,
    )
    return folder


def latents_of(name: str, data: Path, lease: Lease, batch: int) -> Latents:
    """The latents of the training images, by an autoencoder that is trained until its share of the time is over."""
    design, made, folder = MODELS[name], lease.work / f"{name}.autoencoder", lease.work / f"{name}.latents"
    assert design.autoencoder is not None
    images = load_dataset(data, "train")
    if not made.is_dir():
        with initial_weights(SEED):
            net = VAE(images.shape[0], **design.autoencoder).to(lease.device)
        ends = lease.left - OF_AUTOENCODER * lease.seconds
        values: dict[str, Any] = {
            "batch_size": batch,
            "lr": 1e-3,
            "seed": SEED,
            "kl_weight": 1e-2,
            "flip": True,
        }
        steps = _steps_in(
            lease, ends, lambda n: train_autoencoder(images, copy.deepcopy(net), steps=n, **values)
        )
        state = train_autoencoder(
            images,
            net,
            steps=steps,
            checkpoints=lease.work / f"{name}.autoencoder.checkpoints",
            progress=lease.until(ends),
            **values,
        )
        scale, error = measured_scale(net, images), reconstruction_error(net, load_dataset(data, "test"))
        lease.say(f"autoencoder: {state.step} of {steps} steps, squared error {error:.4g} on the test images")
        card = {**card_facts(images, net), "steps": state.step, "test_mse": error, "settings": values}
        save_autoencoder(made, net, scale=scale, name=f"{name}-autoencoder", card=card)
    if not folder.is_dir():
        loaded, whole = load_autoencoder(made, device=lease.device), load_dataset(data)
        array = draw_latents(
            whole,
            loaded.encode,
            loaded.latent_shape(whole.shape),
            seed=SEED,
            batch_size=500,
            device=lease.device,
        )
        facts = {"name": loaded.name, "fingerprint": loaded.fingerprint, "scale": loaded.scale}
        with atomic_dir(folder) as written:
            write_latents(written, array, whole, autoencoder=facts)
    return load_latents(folder, "train")


def _steps_in(lease: Lease, ends: float, run: Callable[[int], object]) -> int:
    """How many steps fit in until so many seconds are left; `run` makes some for their time."""
    run(WARM_STEPS)
    before = common.synchronised(lease.device)
    run(TRIAL_STEPS)
    each = (common.synchronised(lease.device) - before) / TRIAL_STEPS
    return max(10, int(0.9 * (lease.left - ends) / each))


def main(arguments: list[str] | None = None) -> None:
    made = common.with_data(common.parser(__doc__))
    made.add_argument("--model", choices=MODELS, default="cifar10-32-base")
    made.add_argument("--batches", type=int, nargs="+", default=[256, 512])
    made.add_argument("--trial-seconds", type=float, default=40.0, help="after these nothing new is tried")
    made.add_argument("--start", type=Path, help="model folder that one of a paper's objective starts from")
    made.add_argument("--images", type=int, default=10_000, help="of the measurement")
    options = made.parse_args(arguments)
    of_start = MODELS[options.model].start
    if (options.start is None) != (of_start is None):
        raise ConfigError(
            f"--start must be the folder of {of_start}, from which {options.model} is fine-tuned; got none."
            if of_start
            else f"--start must be left out, as {options.model} starts at random; got {options.start}."
        )
    lease = Lease.of(options, exact=False)
    data = common.packed(lease, options)
    dataset: Images = load_dataset(data, "train")
    if MODELS[options.model].autoencoder is not None:
        dataset = latents_of(options.model, data, lease, options.batches[0])
    folder = train(
        options.model,
        dataset,
        lease,
        options.batches,
        trial_seconds=options.trial_seconds,
        start=options.start,
    )
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    common.bring_back(lease, [folder])  # before what may still go wrong
    reference, extractor = common.judge(lease, options)
    task = common.task_of(folder, lease, batch_size=1000)
    plan = PRESETS["unipc-2"](task.model.schedule, 10)
    n = min(options.images, 64) if lease.left < 0 else options.images
    grid = sample(task.model, plan, seeds=range(64), condition=task.model.condition_of(range(64)))
    common.save_grid(lease.out / "samples.png", grid)
    found, seconds = common.features(task, plan, range(n), extractor)
    result = evaluate_samples(found, reference, extractor, metrics=("fd",))
    common.record(
        lease,
        "measured.json",
        {
            "model": options.model,
            "plan": plan.to_json(),
            "seeds": [0, n - 1],
            "protocol": {"reference": reference.protocol, "extractor": extractor.protocol},
            "results": result,
            "ms_per_image_with_features": 1000 * seconds / n,
        },
    )
    for label, one in result.items():
        lease.say(f"{label} of unipc-2 in 10 calls: {one['value']:.4g} {one['interval']}")


if __name__ == "__main__":
    common.run(main)
