"""A small convolutional classifier whose penultimate layer serves as a feature space for tiny images."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.checks import ConfigError

BODIES = ("plain", "residual")


class Classifier(nn.Module):
    """Convolutions, a mean over the pixels, a feature layer and a linear head.

    Args:
        in_channels: Channels of the images.
        n_classes: Number of classes.
        channels: Width of the first stage; the second stage has twice as many at half the side.
        features: Width of the penultimate layer.
        body: `plain`: four convolutions of 3 x 3 and a mean pooling. `residual`: a convolution of 5 x 5, a strided one,
            and two residual blocks with group norms, for features of another architecture.

    Raises:
        ConfigError: A size below one, fewer than two classes, or an unknown body.
    """

    def __init__(
        self, in_channels: int, n_classes: int, channels: int = 32, features: int = 64, body: str = "plain"
    ) -> None:
        super().__init__()
        if min(in_channels, channels, features) < 1 or n_classes < 2:
            raise ConfigError(
                "a classifier needs in_channels, channels and features >= 1 and n_classes >= 2; got "
                f"{in_channels}, {channels}, {features}, {n_classes}."
            )
        if body not in BODIES:
            raise ConfigError(f"body must be one of {', '.join(BODIES)}; got {body!r}.")
        self.in_channels, self.n_classes, self.channels = in_channels, n_classes, channels
        self.n_features, self.body = features, body
        if body == "plain":
            self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
            self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
            self.conv3 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
            self.conv4 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        else:
            self.stem = nn.Conv2d(in_channels, channels, 5, padding=2)
            self.down = nn.Conv2d(channels, 2 * channels, 2, stride=2)
            self.blocks = nn.ModuleList(_Residual(2 * channels) for _ in range(2))
        self.to_features = nn.Linear(8 * channels, features)
        self.to_logits = nn.Linear(features, n_classes)

    def config(self) -> dict[str, Any]:
        """The constructor's values, ready for JSON."""
        return {
            "in_channels": self.in_channels,
            "n_classes": self.n_classes,
            "channels": self.channels,
            "features": self.n_features,
            "body": self.body,
        }

    def features(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` in [-1, 1], sides of 2 pixels or more, to `(B, features)`.

        The mean is taken over each quarter of the image, so that where a stroke lies still counts.
        """
        return F.silu(self.to_features(F.adaptive_avg_pool2d(self.maps(x), 2).flatten(1)))

    def maps(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` in [-1, 1] to what the convolutions see, `(B, 2 * channels, H / 2, W / 2)`."""
        if self.body == "residual":
            h = self.down(F.relu(self.stem(x)))
            for block in self.blocks:
                h = block(h)
            return F.relu(h)
        h = F.silu(self.conv2(F.silu(self.conv1(x))))
        return F.silu(self.conv4(F.silu(self.conv3(F.avg_pool2d(h, 2)))))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` in [-1, 1] to logits `(B, n_classes)`."""
        logits: Tensor = self.to_logits(self.features(x))
        return logits


class _Residual(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), all of 3 x 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.relu(norm(h)))
        return x + h
