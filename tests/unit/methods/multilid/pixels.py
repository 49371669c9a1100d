"""A network that does nothing, so that a protocol can be tested without one."""

import torch

from fewstep.methods.multilid.taps import Taps
from fewstep.metrics.extractor import Extractor


def pixel_taps(*, layers=1):
    """Pixels as the map of the first layer, their halves as that of the second, and so on."""

    def forward(images_u8):
        flat = images_u8.flatten(1).float()
        return [flat / 2**i for i in range(layers)]

    pooled = Extractor("mean", 1, "none", "0" * 64, lambda images: images.float().mean((1, 2, 3))[:, None])
    return Taps("pixels", tuple(f"layer{i}" for i in range(layers)), "none", "0" * 64, forward, pooled)


def noise_images(n, *, seed, side=4, channels=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)


def digits():
    """The real images that come with scikit-learn, 0..16 as they are."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images).to(torch.uint8)[:, None]
