"""What models of LFM are conditioned on beside classes: a masked image, and a semantic map [dao2023lfm, Sec. 4.3]."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.checks import DataError
from fewstep.diffusion.condition import Condition
from fewstep.rng import generator

MASK, KNOWN, MAP = "mask", "known", "map"
PROJECTED = 4
"""Channels of the published map encoder."""


def masked(images: Tensor, masks: Tensor, encode: Callable[[Tensor], Tensor], factor: int) -> Condition:
    """Conditions of inpainting: the latent of the image without its hole, and the mask at the size of the latent.

    Args:
        images: (B, C, H, W) in [-1, 1].
        masks: bool (B, H, W), true in the hole, which is filled with black, -1.
        encode: images to scaled latents; the identity for models of pixels.
        factor: side of an image over that of its latent.

    Returns: {"known": (B, c, h, w), "mask": (B, 1, h, w), -1 where all is known and 1 in the hole}.
    """
    if masks.dtype != torch.bool or masks.shape != images[:, 0].shape:
        raise DataError(
            f"Masks must be bool {tuple(images[:, 0].shape)}, one for each image, true in the hole; got {masks.dtype} "
            f"{tuple(masks.shape)}."
        )
    hole = masks[:, None]
    small = F.interpolate(hole.float(), scale_factor=1 / factor, mode="nearest")
    return Condition({KNOWN: encode(torch.where(hole, -1.0, images)), MASK: 2 * small - 1})


def pasted(images: Tensor, filled: Tensor, masks: Tensor) -> Tensor:
    """Generated images in the hole, the given ones elsewhere, to the bit; masks: bool (B, H, W)."""
    return torch.where(masks[:, None], filled, images)


def foreground_maps(images_u8: Tensor, labels: Tensor) -> Tensor:
    """Semantic maps of images of one bright thing on dark ground: 0 on the ground, 1 + label on the thing.

    Args: images_u8: uint8 (B, C, H, W). labels: int64 (B,).
    Returns: int64 (B, H, W).
    """
    bright = images_u8.float().mean(1) > 127.5
    return torch.where(bright, 1 + labels[:, None, None], 0)


def halved(maps: Tensor, n_classes: int, factor: int) -> Tensor:
    """One-hot maps at the size of the latent, by the means of bilinear halvings: (B, n_classes, h, w).

    Raises: DataError: a class that is not below `n_classes`.
    """
    if int(maps.min()) < 0 or int(maps.max()) >= n_classes:
        raise DataError(
            f"Classes of a map must be 0 to {n_classes - 1}; got {int(maps.min())} to {int(maps.max())}."
        )
    one_hot = F.one_hot(maps, n_classes).permute(0, 3, 1, 2).float()
    return F.avg_pool2d(one_hot, factor) if factor > 1 else one_hot


def projected(maps: Tensor, *, seed: int) -> Tensor:
    """What the published code makes of `halved` maps: a 1 x 1 convolution to 4 channels that never learns.

    It is computed there without gradients, so its weights stay as they are drawn.
    """
    n_classes = maps.shape[1]
    bound = n_classes**-0.5  # torch's default for a convolution
    weight = bound * (
        2 * torch.rand(PROJECTED, n_classes, 1, 1, generator=generator(seed, "map-encoder")) - 1
    )
    return F.conv2d(maps, weight.to(maps))
