"""Generator and discriminator of DCGAN [radford2016dcgan], at any side that is halved up to four times.

As in the experiments of [heusel2017ttur]: 5 x 5 convolutions of stride 2, batch normalisation, uniform latent vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nets.generator import Generator, halvings, require_square


class DCGANGenerator(Generator):
    """A linear layer, then transposed convolutions with batch normalisation and ReLU, tanh at the end.

    Args:
        shape: Of one image, `(C, H, W)`.
        width: Channels before the last convolution, 64 in the paper; twice as many at each smaller side.
        latent: Numbers of the latent vector.

    Raises:
        ConfigError: Images that are not square or cannot be halved, or a latent vector of a wrong length.
    """

    def __init__(self, shape: Sequence[int], width: int = 64, latent: int = 100) -> None:
        super().__init__(shape, latent)
        self.width = width
        n = halvings(require_square(self.shape))
        self.side = self.shape[1] // 2**n
        widths = [width * 2**k for k in reversed(range(n))]
        self.first = nn.Linear(latent, widths[0] * self.side**2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for channels in widths])
        self.convs = nn.ModuleList(
            [
                nn.ConvTranspose2d(a, b, 5, stride=2, padding=2, output_padding=1)
                for a, b in zip(widths, [*widths[1:], self.shape[0]], strict=True)
            ]
        )
        _small_normal(self)

    def config(self) -> dict[str, Any]:
        """The constructor's values, ready for JSON."""
        return {"shape": list(self.shape), "width": self.width, "latent": self.latent}

    def images(self, z: Tensor) -> Tensor:
        """Images of latent vectors, which become uniform in [-1, 1] by the normal distribution function."""
        h = self.first(torch.erf(z / math.sqrt(2))).unflatten(1, (-1, self.side, self.side))
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.relu(norm(h)))
        return torch.tanh(h)


class DCGANDiscriminator(nn.Module):
    """Convolutions of stride 2 with leaky ReLU, batch normalisation on all but the first, then a linear layer.

    Args:
        shape: Of one image, `(C, H, W)`.
        width: Channels after the first convolution; twice as many at each smaller side.

    Raises:
        ConfigError: Images that are not square or cannot be halved.
    """

    def __init__(self, shape: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.shape, self.width = tuple(shape), width
        n = halvings(require_square(self.shape))
        widths = [self.shape[0], *(width * 2**k for k in range(n))]
        self.convs = nn.ModuleList(
            [nn.Conv2d(a, b, 5, stride=2, padding=2) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for channels in widths[2:]])
        self.last = nn.Linear(widths[-1] * (self.shape[1] // 2**n) ** 2, 1)
        _small_normal(self)

    def config(self) -> dict[str, Any]:
        """The constructor's values, ready for JSON."""
        return {"shape": list(self.shape), "width": self.width}

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)` to logits `(B,)`."""
        h = F.leaky_relu(self.convs[0](x), 0.2)
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            h = F.leaky_relu(norm(conv(h)), 0.2)
        logits: Tensor = self.last(h.flatten(1)).squeeze(1)
        return logits


def _small_normal(net: nn.Module) -> None:
    """Weights of N(0, 0.02), biases of 0."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
