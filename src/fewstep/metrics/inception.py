"""The Inception network of 2015-12-05, whose pool3 features alone may be called FID [heusel2017ttur].

Its TensorFlow graph differs from the Inception-v3 of the torch libraries: average pools ignore the padding,
the last block pools by maximum, there are 1008 classes, and the resize has no half-pixel centres. Parameter
names are those of the public port `pt_inception-2015-12-05-6726825d.pth`, so that its file loads as it is.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fewstep.metrics.resize import bicubic_aa, bilinear_halfpixel, bilinear_tf1

INPUT_SIZE = 299
POOL_FEATURES, SPATIAL_CHANNELS = 2048, 7
SPATIAL_FEATURES = 17 * 17 * SPATIAL_CHANNELS


def _tf1_input(images: Tensor) -> Tensor:
    return (bilinear_tf1(images, INPUT_SIZE) - 128) / 128


def _clean_input(images: Tensor) -> Tensor:
    return (bicubic_aa(images, INPUT_SIZE).clamp(0, 255) - 128) / 128


def _halfpixel_input(images: Tensor) -> Tensor:
    return bilinear_halfpixel(images, INPUT_SIZE) / 127.5 - 1


INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "299/bilinear-tf1": _tf1_input,
    "299/bicubic-aa": _clean_input,
    "299/bilinear": _halfpixel_input,
}
"""Resize -> what makes the network's input (B, 3, 299, 299) of images (B, 3, H, W) in [0, 255]: that of the
TensorFlow graph, of clean-fid [parmar2022cleanfid], and of pytorch-fid."""

Kernel = int | tuple[int, int]


class ConvNorm(nn.Module):
    """Convolution, batch norm (eps 1e-3), ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H', W')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)

    def fold(self) -> None:
        """Make the norm part of the convolution, in float64; the module then only infers."""
        assert isinstance(self.bn, nn.BatchNorm2d)
        self.conv = fuse_conv_bn_eval(self.conv.double(), self.bn.double()).float()
        self.bn = nn.Identity()


def _average_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class InceptionA(nn.Module):
    """35 x 35 block: 1x1, 5x5, double 3x3 and pool branches."""

    def __init__(self, c_in: int, pool_features: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(c_in, 64, 1)
        self.branch5x5_1 = ConvNorm(c_in, 48, 1)
        self.branch5x5_2 = ConvNorm(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNorm(c_in, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, padding=1)
        self.branch_pool = ConvNorm(c_in, pool_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, 35, 35) -> (B, 224 + pool_features, 35, 35)."""
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(_average_pool(x))], 1)


class InceptionB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNorm(c_in, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNorm(c_in, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, 35, 35) -> (B, 480 + c_in, 17, 17)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionC(nn.Module):
    """17 x 17 block with 7x7 convolutions split into rows and columns."""

    def __init__(self, c_in: int, c7: int) -> None:
        super().__init__()

        self.branch1x1 = ConvNorm(c_in, 192, 1)
        self.branch7x7_1 = ConvNorm(c_in, c7, 1)
        self.branch7x7_2 = ConvNorm(c7, c7, (1, 7), padding=(0, 3))
        self.branch7x7_3 = ConvNorm(c7, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = ConvNorm(c_in, c7, 1)
        self.branch7x7dbl_2 = ConvNorm(c7, c7, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = ConvNorm(c7, c7, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = ConvNorm(c7, c7, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = ConvNorm(c7, 192, (1, 7), padding=(0, 3))
        self.branch_pool = ConvNorm(c_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, 17, 17) -> (B, 768, 17, 17)."""
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average_pool(x))], 1)


class InceptionD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNorm(c_in, 192, 1)
        self.branch3x3_2 = ConvNorm(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNorm(c_in, 192, 1)
        self.branch7x7x3_2 = ConvNorm(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvNorm(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvNorm(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, 17, 17) -> (B, 512 + c_in, 8, 8)."""
        small = self.branch3x3_2(self.branch3x3_1(x))
        large = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([small, large, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionE(nn.Module):
    """8 x 8 block; the network's last one pools by maximum."""

    def __init__(self, c_in: int, *, max_pool: bool) -> None:
        super().__init__()
        self.max_pool = max_pool
        self.branch1x1 = ConvNorm(c_in, 320, 1)
        self.branch3x3_1 = ConvNorm(c_in, 384, 1)
        self.branch3x3_2a = ConvNorm(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvNorm(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvNorm(c_in, 448, 1)
        self.branch3x3dbl_2 = ConvNorm(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvNorm(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvNorm(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvNorm(c_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, 8, 8) -> (B, 2048, 8, 8)."""
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else _average_pool(x)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(pooled),
            ],
            1,
        )


class Inception2015(nn.Module):
    """The network's input to the 2048 features of pool3, or to the spatial ones of sFID.

    Spatial [nash2021sfid, dhariwal2021adm]: the first 7 channels of `mixed_6/conv`, which the public port calls
    Mixed_6d.branch1x1, after ReLU, ordered row, column, channel.
    """

    def __init__(self, tap: str = "pool3") -> None:
        """`tap`: "pool3" (2048 features) or "spatial" (2023)."""
        super().__init__()
        self.tap = tap
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b = InceptionA(192, 32)
        self.Mixed_5c = InceptionA(256, 64)
        self.Mixed_5d = InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, 128)
        self.Mixed_6c = InceptionC(768, 160)
        self.Mixed_6d = InceptionC(768, 160)
        self.Mixed_6e = InceptionC(768, 192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280, max_pool=False)
        self.Mixed_7c = InceptionE(2048, max_pool=True)
        self.fc = nn.Linear(2048, 1008)  # unused here; present so that the public weight file loads strictly

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 299, 299), as one of INPUTS makes it -> float32 (B, 2048) or (B, 2023)."""
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        if self.tap == "spatial":
            spatial: Tensor = self.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS]
            return spatial.permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))))
        return x.mean((2, 3))

    def fold(self) -> "Inception2015":
        """Fold all batch norms once the weights are loaded: same features to 1e-5, a tenth less time."""
        self.eval()
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        return self
