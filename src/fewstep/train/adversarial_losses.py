"""Losses of generators and discriminators, and penalties on a discriminator; all per image."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

Discriminator = Callable[[Tensor], Tensor]
"""Images `(B, C, H, W)` to logits `(B,)`."""


class Adversarial(NamedTuple):
    """What each side lowers, from logits of real and of generated images, `(B,)` each."""

    of_discriminator: Callable[[Tensor, Tensor], Tensor]
    of_generator: Callable[[Tensor, Tensor], Tensor]


ADVERSARIAL: dict[str, Adversarial] = {
    # [goodfellow2014gan, Sec. 3]
    "non-saturating": Adversarial(
        lambda real, fake: softplus(-real) + softplus(fake), lambda real, fake: softplus(-fake)
    ),
    # [arjovsky2017wgan]
    "wasserstein": Adversarial(lambda real, fake: fake - real, lambda real, fake: -fake),
    # pairs of a real and a generated image [huang2024r3gan, Eq. 2]
    "relativistic": Adversarial(
        lambda real, fake: softplus(fake - real), lambda real, fake: softplus(real - fake)
    ),
}


def zero_centred(discriminator: Discriminator, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of images, and half the squared gradient norm of each, `(B,)`: R1 on real images, R2 on generated ones.

    [mescheder2018which, Eq. 9]. The gradient is kept differentiable.
    """
    images = images.detach().requires_grad_(True)
    logits = discriminator(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return logits, 0.5 * gradient.square().flatten(1).sum(1)


def one_centred(discriminator: Discriminator, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """(|gradient| - 1)^2 at a point between a real and a generated image, `(B,)` [gulrajani2017wgangp, Eq. 3].

    Args:
        discriminator: Treats images apart: batch normalisation would void the penalty.
        real: Real images.
        fake: Generated images.
        share: Of the real image in the point, uniform in [0, 1), `(B,)`.
    """
    share = share[:, None, None, None].to(real)
    between = torch.lerp(fake, real, share).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
    # at a gradient of zero the norm has no derivative
    return ((gradient.square().flatten(1).sum(1) + 1e-12).sqrt() - 1.0).square()
