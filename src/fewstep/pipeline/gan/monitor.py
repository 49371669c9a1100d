"""What a generator is judged by while it is trained: the distance of its samples, and signs of collapse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep import files
from fewstep.checks import ConfigError
from fewstep.data.pixels import to_u8, to_unit
from fewstep.metrics.extractor import Extractor, extract
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.nets.generator import Generator
from fewstep.rng import ImageNoise
from fewstep.train.adversarial import DISCRIMINATOR, GENERATOR, largest_spectral_norm
from fewstep.train.batches import ImageSource
from fewstep.train.loop import Diverged, Probe, State

LEAST_SPREAD = 0.1
"""Of the standard deviation of generated over real images, pixel by pixel: below it the images are all alike."""
LARGEST_SHARE = 0.95
"""Of one class among generated images, by the extractor's own classifier."""
LARGEST_GAP = 100.0
"""Between the mean logits of real and generated images; far beyond it the losses have no gradient left."""
GRACE = 0.25
"""Share of the steps in which none of these stops a training: at the start images are all alike."""
SHOWN = 16
"""Images of the first seeds that are kept at each measurement."""
_BATCH = 250


class Measure(NamedTuple):
    """An extractor, and the features that generated images are to have."""

    extractor: Extractor
    reference: Reference


@dataclass(frozen=True)
class Monitor:
    """Measures the averaged generator, always on the same seeds.

    Attributes:
        real: The images that it learns from, of which the first are looked at.
        steps: Of the whole training.
        seeds: Of the images of a measurement.
        measure: What distances are measured by; None: only signs of collapse are looked for.
        pictures: Folder for the images of the first seeds; None: they are not kept.
    """

    real: ImageSource
    steps: int
    seeds: Sequence[int]
    measure: Measure | None = None
    pictures: Path | None = None

    def probe(self, every: int) -> Probe:
        """As `fit` takes it."""
        return Probe(every, self)

    def __call__(self, state: State) -> Mapping[str, float]:
        """The numbers of one step: fd, spread, share_min, share_max, probe_gap, sigma.

        Raises:
            Diverged: The generator has collapsed, or the discriminator has run away.
        """
        generator, discriminator = state.ema[GENERATOR].net, state.nets[DISCRIMINATOR]
        assert isinstance(generator, Generator)
        images = images_of(generator, self.seeds)
        if self.pictures is not None:
            _keep(self.pictures / f"{state.step:08d}.npy", images[:SHOWN])
        n = min(_BATCH, len(self.real), len(images))
        device = next(generator.parameters()).device
        real, fake = (to_unit(part).to(device) for part in (self.real.batch(np.arange(n)), images[:n]))
        with torch.no_grad():
            discriminator.eval()
            gap = float(discriminator(real).mean() - discriminator(fake).mean())
            discriminator.train()
        found = {"spread": float(_std(fake) / _std(real).clamp(min=1e-6)), "probe_gap": gap}
        found["sigma"] = largest_spectral_norm(discriminator)[1]
        if self.measure is not None:
            found |= self._distance(images)
        if state.step > GRACE * self.steps:
            require_no_collapse(found, state.step)
        return found

    def _distance(self, images: Tensor) -> dict[str, float]:
        assert self.measure is not None
        extractor, reference = self.measure
        features = extract(images, extractor)
        found = {"fd": frechet(Statistics.from_features(features), reference.statistics).value}
        if extractor.head is not None and len(extractor.head.weight) > 1:
            logits = extractor.head.logits(features)
            shares = np.bincount(logits.argmax(1), minlength=logits.shape[1]) / len(logits)
            found |= {"share_min": float(shares.min()), "share_max": float(shares.max())}
        return found


def require_no_collapse(found: Mapping[str, float], step: int) -> None:
    """Raise Diverged where the numbers of a monitor say that the training has collapsed or diverged."""
    gap, remedy = found["probe_gap"], "Change the learning rates or their ratio, or raise r1"
    reason = ""
    if found["spread"] < LEAST_SPREAD:
        reason = (
            f"the generator has collapsed: at step {step} its images vary by {found['spread']:.3g} of what real ones "
            f"do, less than {LEAST_SPREAD}"
        )
    elif found.get("share_max", 0.0) > LARGEST_SHARE:
        reason = (
            f"the generator has collapsed: at step {step} one class has {found['share_max']:.1%} of its images, more "
            f"than {LARGEST_SHARE:.0%}"
        )
    elif abs(gap) > LARGEST_GAP:
        reason = (
            f"training diverged: at step {step} the discriminator's logits of real and generated images are {gap:.4g} "
            f"apart, more than {LARGEST_GAP:g}"
        )
    if reason:
        raise Diverged(f"{reason}. {remedy}.")


@torch.no_grad()
def images_of(generator: Generator, seeds: Sequence[int]) -> Tensor:
    """The images that a plan of one call makes of these seeds, uint8 `(N, C, H, W)` on the CPU."""
    device = next(generator.parameters()).device
    made = []
    for first in range(0, len(seeds), _BATCH):
        noise = ImageNoise(seeds[first : first + _BATCH], generator.shape)().to(device)
        made.append(to_u8(generator(noise, torch.zeros(len(noise), device=device))).cpu())
    return torch.cat(made)


def _std(images: Tensor) -> Tensor:
    """Standard deviation over images, root mean square over pixels."""
    return images.var(0).mean().sqrt()


def _keep(path: Path, images: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, images.permute(0, 2, 3, 1).contiguous().numpy())


def measure_by(extractor: str, reference: Path, shape: tuple[int, int, int], device: str) -> Measure:
    """An extractor by its name or folder, and the statistics of real images through it.
    Raises: ConfigError, DataError: it takes other images, or a file is missing or damaged.
    """
    from fewstep.interop.zoo import find_reference
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import load_reference

    network = load_extractor(extractor, device=device)
    if network.shape not in (None, shape):
        raise ConfigError(
            f"The extractor must take the dataset's images, (C, H, W) = {shape}; {network.id} takes {network.shape}; "
            "use another extractor."
        )
    return Measure(network, load_reference(find_reference(reference, network.id), extractor=network))
