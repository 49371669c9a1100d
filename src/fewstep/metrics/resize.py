"""Resizes that are part of a metric's name: another kernel is another metric."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep._typing import Float, Images, Num


def bilinear_tf1(x: Images, size: int) -> Float[Tensor, "b c {size} {size}"]:
    """Bilinear resize of TensorFlow 1: output i reads source i * in / out, clamped, no antialias.

    PyTorch's own bilinear resize centres pixels at half integers, which shifts every pixel and the features.
    Args: x: (B, C, H, W), floating point. size: height and width that come out.
    """
    rows_low, rows_high, row_weight = _taps_tf1(x.shape[2], size, x)
    columns_low, columns_high, column_weight = _taps_tf1(x.shape[3], size, x)
    # Along the width first, then the height, as the TensorFlow kernel does: the last bits agree. The width is
    # done on the rows that came, which are few where an image is enlarged.
    wide = torch.lerp(x[..., columns_low], x[..., columns_high], column_weight)
    return torch.lerp(wide[:, :, rows_low], wide[:, :, rows_high], row_weight[:, None])


def _taps_tf1(n_in: int, n_out: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    position = torch.arange(n_out, dtype=like.dtype, device=like.device) * (n_in / n_out)
    low = position.floor().long().clamp(max=n_in - 1)
    return low, (low + 1).clamp(max=n_in - 1), position - low


def bilinear_halfpixel(x: Images, size: int) -> Float[Tensor, "b c {size} {size}"]:
    """Bilinear resize with pixels centred at half integers, PyTorch's and OpenCV's default; no antialias.
    Args: x: (B, C, H, W), floating point. size: height and width that come out.
    """
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


def bicubic_aa(x: Images, size: int) -> Float[Tensor, "b c {size} {size}"]:
    """Bicubic resize with antialias (a = -0.5, Pillow's kernel), without clipping or rounding.
    Args: x: (B, C, H, W), floating point. size: height and width that come out.
    """
    if x.shape[2:] == (size, size):
        return x
    return F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False)


def bicubic(x: Images, size: int) -> Float[Tensor, "b c {size} {size}"]:
    """Bicubic resize without antialias (a = -0.75), PyTorch's.
    Args: x: (B, C, H, W), floating point. size: height and width that come out.
    """
    return F.interpolate(x, size=(size, size), mode="bicubic", align_corners=False)


def to_rgb(images: Num[Tensor, "b c h w"]) -> Num[Tensor, "b 3 h w"]:
    """Repeat one grey channel to three; three stay as they are."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
