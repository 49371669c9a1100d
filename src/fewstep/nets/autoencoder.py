"""A convolutional variational autoencoder [kingma2014vae], and what latent models need of any autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.checks import ConfigError, DataError
from fewstep.nets.unet import Norm

LOG_STD = (-10.0, 3.0)
"""Range of the logarithm of a posterior's standard deviation."""


class Posterior(NamedTuple):
    """The normal distribution of the latent of each image: mean and standard deviation, (B, c, h, w)."""

    mean: Tensor
    std: Tensor

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence from the unit normal, in nats, summed over each latent, (B,)."""
        each = (self.mean.square() + self.std.square() - 1) / 2 - self.std.log()
        return each.flatten(1).sum(1)


@dataclass(frozen=True)
class Autoencoder:
    """A frozen autoencoder, of this project or of diffusers, whose latents are scaled to unit variance.

    Attributes:
        encoder: images in [-1, 1], (B, C, H, W), to the posterior of their unscaled latents.
        decoder: unscaled latents to images in [-1, 1].
        in_channels: of an image.
        latent_channels: of a latent.
        factor: side of an image over that of its latent.
        scale: of the latents, 1 over their standard deviation [rombach2022ldm, App. G].
        shift: what is taken off a latent before it is scaled.
        fingerprint: sha256 of the weights.
    """

    encoder: Callable[[Tensor], Posterior] = field(repr=False)
    decoder: Callable[[Tensor], Tensor] = field(repr=False)
    in_channels: int
    latent_channels: int
    factor: int
    scale: float
    name: str
    fingerprint: str
    shift: float = 0.0

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Of the latent of images (C, H, W).

        Raises: ConfigError: images of other channels, or sides that are no multiples of the factor.
        """
        channels, height, width = shape
        if channels != self.in_channels:
            raise ConfigError(
                f"The autoencoder {self.name} takes images of {self.in_channels} channels, got {channels}; use another."
            )
        if height % self.factor or width % self.factor:
            raise ConfigError(
                f"The sides of images must be multiples of {self.factor} for the autoencoder {self.name}, got "
                f"{height} x {width}; prepare them with another --size."
            )
        return self.latent_channels, height // self.factor, width // self.factor

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents, drawn from their posteriors by unit normal noise of their shape."""
        posterior = self.encoder(images)
        return (posterior.mean + posterior.std * noise.to(posterior.mean) - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Images, nominally in [-1, 1], of scaled latents; gradients flow."""
        return self.decoder(latents / self.scale + self.shift)


class VAE(nn.Module):
    """Residual blocks that halve the side in steps, and their mirror image.

    Args:
        in_channels: Of the images.
        channels: Width at full resolution; every halving doubles it, up to four times.
        latent_channels: Of the latents.
        factor: Side of an image over that of its latent, a power of two.
        blocks: Residual blocks per resolution.

    Raises:
        ConfigError: A value that cannot be built.
    """

    def __init__(
        self, in_channels: int, channels: int = 32, latent_channels: int = 4, factor: int = 2, blocks: int = 1
    ) -> None:
        super().__init__()
        if min(in_channels, channels, latent_channels, blocks) < 1 or factor < 2 or factor & (factor - 1):
            raise ConfigError(
                "an autoencoder needs in_channels, channels, latent_channels and blocks >= 1 and a factor that is a "
                f"power of two; got {in_channels}, {channels}, {latent_channels}, {blocks} and {factor}."
            )
        self.in_channels, self.channels, self.latent_channels = in_channels, channels, latent_channels
        self.factor, self.blocks = factor, blocks
        widths = [channels * min(2**level, 4) for level in range(int(math.log2(factor)) + 1)]
        down: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(latent_channels, widths[-1], 3, padding=1)]
        for level, width in enumerate(widths):
            down += [ResidualBlock(width) for _ in range(blocks)]
            if level + 1 < len(widths):
                down.append(nn.Conv2d(width, widths[level + 1], 3, stride=2, padding=1))
        for level, width in reversed(list(enumerate(widths))):
            up += [ResidualBlock(width) for _ in range(blocks)]
            if level:
                up += [nn.Upsample(scale_factor=2.0), nn.Conv2d(width, widths[level - 1], 3, padding=1)]
        down += [Norm(widths[-1], 32), nn.SiLU(), nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)]
        up += [Norm(widths[0], 32), nn.SiLU(), nn.Conv2d(widths[0], in_channels, 3, padding=1)]
        self.down, self.up = nn.Sequential(*down), nn.Sequential(*up)

    def config(self) -> dict[str, Any]:
        """The constructor's values, ready for JSON."""
        return {
            "in_channels": self.in_channels,
            "channels": self.channels,
            "latent_channels": self.latent_channels,
            "factor": self.factor,
            "blocks": self.blocks,
        }

    def posterior(self, images: Tensor) -> Posterior:
        """Images in [-1, 1], (B, C, H, W) with sides that are multiples of the factor, to their posteriors."""
        mean, log_std = self.down(images).chunk(2, dim=1)
        return Posterior(mean, log_std.clamp(*LOG_STD).exp())

    def images(self, latents: Tensor) -> Tensor:
        """Latents (B, c, h, w) to images (B, C, H, W), nominally in [-1, 1]."""
        return cast(Tensor, self.up(latents))

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Posterior]:
        """Images rebuilt from latents drawn by unit normal noise of their shape, and the posteriors."""
        posterior = self.posterior(images)
        return self.images(posterior.mean + posterior.std * noise), posterior


class ResidualBlock(nn.Module):
    """Two convolutions, each after a normalisation, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(width, 32), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = Norm(width, 32), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + cast(Tensor, self.conv2(F.silu(self.norm2(h))))


def as_autoencoder(net: VAE, *, scale: Any, name: str = "", fingerprint: str = "") -> Autoencoder:
    """A network in memory as a frozen autoencoder.
    Raises: DataError: a scale that cannot be.
    """
    require_scale(scale, name)
    net = net.eval().requires_grad_(False)
    return Autoencoder(
        net.posterior,
        net.images,
        in_channels=net.in_channels,
        latent_channels=net.latent_channels,
        factor=net.factor,
        scale=scale,
        name=name,
        fingerprint=fingerprint,
    )


def require_scale(scale: Any, name: str) -> None:
    """Raise DataError where a scale is missing, or no positive number."""
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not is_number or not 0 < scale < math.inf:
        raise DataError(
            f"The autoencoder {name} must state a scale above 0 for its latents, got {scale!r}; write 1 over their "
            "standard deviation into its config.json."
        )


def require_unit(latents: Tensor, name: str) -> None:
    """Raise DataError where scaled latents are not finite, or not of a standard deviation near 1."""
    std = float(latents.float().std())
    if not 1 / 3 <= std <= 3:
        raise DataError(
            f"Scaled latents must have a standard deviation near 1, but those of {name} have {std:.3g}; "
            "correct the scale in the config.json of the autoencoder."
        )
