"""Between stored bytes and the range in which networks work: uint8 in 0..255, x0 in [-1, 1]."""

import torch
from torch import Tensor


def to_unit(images_u8: Tensor) -> Tensor:
    """Read bytes as x0 = v / 127.5 - 1.
    Args: images_u8: uint8, any shape.
    Returns: float32 of the same shape and device, in [-1, 1].
    Raises: TypeError: another dtype, whose range would have to be guessed.
    """
    if images_u8.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 in 0..255, got {images_u8.dtype}; quantise with to_u8 first.")
    return images_u8.float() / 127.5 - 1


def to_u8(x0: Tensor) -> Tensor:
    """Quantise once: clamp(floor(127.5 * x0 + 128), 0, 255), which rounds halves up [karras2022edm].
    Args: x0: floating point, any shape, nominally in [-1, 1]; a sampler's overshoot saturates.
    Returns: uint8 of the same shape and device; NaN becomes 0.
    Raises: TypeError: not floating point.
    Differs: half precision is computed in float32, since 128 + 127.5 has no room for a fraction in it.
    """
    if not x0.is_floating_point():
        raise TypeError(f"x0 must be floating point in [-1, 1], got {x0.dtype}; bytes need no quantising.")
    wide = x0 if x0.dtype == torch.float64 else x0.float()
    # An undefined value has no defined cast to an integer: fix it so that all machines give the same byte.
    return torch.nan_to_num(127.5 * wide + 128).floor().clamp(0, 255).to(torch.uint8)
