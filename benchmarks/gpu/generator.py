"""Train a ViTGAN at the size of its paper for 32 pixels until the time is over, and measure its one call.

    PYTHONPATH=src python benchmarks/gpu/generator.py --data gpu-data/cifar10-jpeg.tar.xz --reference cifar10-jpeg \
        --seconds 530 --out $OUT

The recipe is that of the run `cifar10-gan`. Resumes from --work; the averaged generator comes back with a grid of 64
samples and its Fréchet distance.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import torch
from common import Lease

from fewstep.data.packed import Dataset, load_dataset
from fewstep.files import object_or_empty, write_json
from fewstep.metrics.evaluate import evaluate_samples
from fewstep.nets import CURVE
from fewstep.nets.folder import save_generator
from fewstep.nets.vitgan import ViTDiscriminator, ViTGenerator
from fewstep.pipeline.environment import card_facts
from fewstep.progress import track
from fewstep.rng import initial_weights
from fewstep.sampling.document import save_plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import sample
from fewstep.train.adversarial import TTUR, AdversarialRecipe, train_adversarial
from fewstep.train.augment import Augmentation


@dataclass(frozen=True)
class Size:
    """Of both networks."""

    width: int
    depth: int
    heads: int
    patch: int
    warmup: int


SIZES = {"cifar10-32-vitgan": Size(384, 4, 6, 4, 3000), "tiny": Size(16, 1, 2, 4, 2)}
"""The tiny one is for tests."""
SEED, TRIAL_STEPS, WARM_STEPS, AFTER = 0, 8, 3, 0.12


def recipe(size: Size, steps: int, batch: int) -> AdversarialRecipe:
    """That of the paper, as in the run cifar10-gan."""
    rates = TTUR(
        lr_g=2e-3, lr_d=2e-3, betas_g=(0.0, 0.99), betas_d=(0.0, 0.99), warmup=min(size.warmup, steps // 4)
    )
    augmentation = Augmentation(("colour", "translation", "cutout"))
    return AdversarialRecipe(
        rates=rates,
        steps=steps,
        batch_size=batch,
        seed=SEED,
        bcr=10.0,
        augmentation=augmentation,
        ema_decay=0.9995,
        flip=True,
    )


def networks(size: Size, shape: tuple[int, int, int], device: str) -> tuple[ViTGenerator, ViTDiscriminator]:
    """Both, untrained."""
    sizes = {"depth": size.depth, "heads": size.heads, "patch": size.patch}
    with initial_weights(SEED):
        generator = ViTGenerator(shape, size.width, size.width, **sizes)
        discriminator = ViTDiscriminator(shape, size.width, **sizes)
    return generator.to(device), discriminator.to(device)


def steps_in(lease: Lease, size: Size, dataset: Dataset, batch: int) -> int:
    """How many steps fit into the time that is left."""
    stamps: list[float] = []

    def stamped(steps: Any) -> Any:
        for step in steps:
            if step == WARM_STEPS:
                stamps.append(common.synchronised(lease.device))
            yield step
        stamps.append(common.synchronised(lease.device))

    pair = networks(size, dataset.shape, lease.device)
    values = recipe(size, WARM_STEPS + TRIAL_STEPS, batch)
    train_adversarial(dataset, *pair, values, log_every=1000, progress=stamped)
    each = (stamps[1] - stamps[0]) / TRIAL_STEPS
    return max(10, int(0.96 * (lease.left - AFTER * lease.seconds) / each))


def train(name: str, dataset: Dataset, lease: Lease, batch: int) -> Path:
    """The folder of the generator."""
    folder, kept, size = lease.work / name, lease.work / f"{name}.way.json", SIZES[name]
    if folder.is_dir():
        return folder
    way = object_or_empty(kept) or {"steps": steps_in(lease, size, dataset, batch), "batch": batch}
    write_json(kept, way)
    values = recipe(size, way["steps"], way["batch"])
    metrics = lease.work / f"{name}.{CURVE}"
    bar, stop = track("train", unit="step"), lease.until(AFTER * lease.seconds)
    pair = networks(size, dataset.shape, lease.device)
    state = train_adversarial(
        dataset,
        *pair,
        values,
        checkpoints=lease.work / f"{name}.checkpoints",
        metrics=metrics,
        log_every=max(1, min(100, way["steps"] // 10)),
        progress=lambda steps: stop(bar(steps)),
    )
    lease.say(f"trained {state.step} of {way['steps']} steps")
    card = {
        **card_facts(dataset, pair[0]),
        **lease.facts(),
        "settings": {
            **values.settings(),
            "steps": values.steps,
            "batch_size": values.batch_size,
            "seed": SEED,
        },
        "steps": state.step,
        "images_seen": state.images_seen,
    }
    save_generator(
        folder,
        state.ema["g"].net,
        name=name,
        card=card,
        finish=lambda made: (made / CURVE).write_bytes(metrics.read_bytes()),
    )
    return folder


def main(arguments: list[str] | None = None) -> None:
    made = common.with_data(common.parser(__doc__))
    made.add_argument("--model", choices=SIZES, default="cifar10-32-vitgan")
    made.add_argument("--batch", type=int, default=128)
    made.add_argument("--images", type=int, default=10_000, help="of the measurement")
    options = made.parse_args(arguments)
    lease = Lease.of(options, exact=False)
    dataset = load_dataset(common.packed(lease, options), "train")
    folder = train(options.model, dataset, lease, options.batch)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    common.bring_back(lease, [folder])
    reference, extractor = common.judge(lease, options)
    task = common.task_of(folder, lease, batch_size=1000)
    one_call = PRESETS["ddim"](task.model.schedule, 1, grid="uniform-t", to_zero=True)
    provenance = {"sampler": "vitgan", "grid": "one call"}
    plan = replace(one_call, name="vitgan.nfe1", fingerprint=task.model.fingerprint, provenance=provenance)
    save_plan(plan, lease.out / "vitgan.nfe1.json")
    common.save_grid(lease.out / "samples.png", sample(task.model, plan, seeds=range(64)))
    found, seconds = common.features(task, plan, range(options.images), extractor)
    result = evaluate_samples(found, reference, extractor, metrics=("fd",))
    protocol = {"reference": reference.protocol, "extractor": extractor.protocol}
    values = {
        "model": options.model,
        "seeds": [0, options.images - 1],
        "protocol": protocol,
        "results": result,
    }
    common.record(
        lease, "measured.json", {**values, "ms_per_image_with_features": 1000 * seconds / options.images}
    )
    for label, one in result.items():
        lease.say(f"{label} in one call: {one['value']:.4g} {one['interval']}")


if __name__ == "__main__":
    common.run(main)
