"""The residual generator and critic of WGAN-GP [gulrajani2017wgangp, App. C], for sides that halve up to four times.

The critic normalises each image by itself, over all its channels and pixels: batch normalisation would couple images,
and the gradient penalty would mean nothing.

Differs: The critic's last map is flattened at its true size; the published code takes it for 4 x 4, which at 32 pixels
merges four images into one logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nets.generator import Generator, halvings, require_square


class ResNetGenerator(Generator):
    """A linear layer, then residual blocks that double the side, with batch normalisation; tanh at the end.

    Args:
        shape: Of one image, `(C, H, W)`.
        width: Channels at the full side: 64 for 64 pixels in the paper; up to 8 times as many at smaller ones.
        latent: Numbers of the latent vector.

    Raises:
        ConfigError: Images that are not square or cannot be halved, or a latent vector of a wrong length.
    """

    def __init__(self, shape: Sequence[int], width: int = 64, latent: int = 128) -> None:
        super().__init__(shape, latent)
        self.width = width
        n = halvings(require_square(self.shape))
        self.side = self.shape[1] // 2**n
        widths = [width * min(8, 2**k) for k in reversed(range(n))]
        self.first = nn.Linear(latent, widths[0] * self.side**2)
        self.blocks = nn.ModuleList(
            [_Block(a, b, doubles=True) for a, b in zip([widths[0], *widths[:-1]], widths, strict=True)]
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.last = nn.Conv2d(widths[-1], self.shape[0], 3, padding=1)
        _scaled_uniform(self)

    def config(self) -> dict[str, Any]:
        """The constructor's values, ready for JSON."""
        return {"shape": list(self.shape), "width": self.width, "latent": self.latent}

    def images(self, z: Tensor) -> Tensor:
        """Images of latent vectors."""
        h = self.first(z).unflatten(1, (-1, self.side, self.side))
        for block in self.blocks:
            h = block(h)
        return torch.tanh(self.last(F.relu(self.norm(h))))


class ResNetCritic(nn.Module):
    """A convolution, residual blocks that halve the side, each image normalised by itself; then a linear layer.

    Args:
        shape: Of one image, `(C, H, W)`.
        width: Channels at the full side; up to 8 times as many at smaller ones.

    Raises:
        ConfigError: Images that are not square or cannot be halved.
    """

    def __init__(self, shape: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.shape, self.width = tuple(shape), width
        n = halvings(require_square(self.shape))
        widths = [width, *(width * min(8, 2 ** (k + 1)) for k in range(n))]
        self.first = nn.Conv2d(self.shape[0], width, 3, padding=1)
        self.blocks = nn.ModuleList(
            [_Block(a, b, doubles=False) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        )
        self.last = nn.Linear(widths[-1] * (self.shape[1] // 2**n) ** 2, 1)
        _scaled_uniform(self)

    def config(self) -> dict[str, Any]:
        """The constructor's values, ready for JSON."""
        return {"shape": list(self.shape), "width": self.width}

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)` to logits `(B,)`."""
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.last(h.flatten(1)).squeeze(1)
        return logits


class _Block(nn.Module):
    """Two convolutions after norm and ReLU each, and a 1 x 1 convolution beside them; the side doubles or halves."""

    def __init__(self, channels: int, out: int, *, doubles: bool) -> None:
        super().__init__()
        inner = out if doubles else channels
        self.doubles = doubles
        self.norm1, self.norm2 = (
            # of a critic a layer norm over channels and pixels, with a scale per channel
            nn.BatchNorm2d(n) if doubles else nn.GroupNorm(1, n)
            for n in (channels, inner)
        )
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, out, 2 H, 2 W)` or `(B, out, H / 2, W / 2)`."""
        h = F.relu(self.norm1(x))
        if self.doubles:
            h = self.conv2(F.relu(self.norm2(self.conv1(_doubled(h)))))
            doubled: Tensor = h + _doubled(self.shortcut(x))
            return doubled
        h = self.conv2(F.relu(self.norm2(self.conv1(h))))
        halved: Tensor = F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))
        return halved


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _scaled_uniform(net: nn.Module) -> None:
    """Variance-preserving weights for ReLU [he2015delving], biases of 0."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
