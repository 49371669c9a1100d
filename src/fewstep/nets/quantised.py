"""Layers whose weights and inputs are integers, calculated with in floats as integer kernels would.

Weights have one scale and one zero point per output channel, inputs one scale per network call and one zero point for
all calls, so that one integer graph can serve every call: a call differs by a factor before and after each layer.
Uniform quantisers as in [huang2024tfmq, Sec. 3.1], whose inputs have a zero point per call, too.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.checks import ConfigError

WEIGHT_BITS = tuple(range(2, 9))
ACTIVATION_BITS = (4, 8, 32)
SMALLEST_SCALE = 1e-8
"""Where a range is narrower, as of constant zeros: nothing may divide by zero."""


@dataclass(frozen=True)
class Bits:
    """Bits of weights and of activations, of which 32 are floats; as text w8a8."""

    weights: int
    activations: int

    def __post_init__(self) -> None:
        if self.weights not in WEIGHT_BITS or self.activations not in ACTIVATION_BITS:
            raise ConfigError(
                f"bits must have {WEIGHT_BITS[0]} to {WEIGHT_BITS[-1]} bits of weights and "
                f"{', '.join(map(str, ACTIVATION_BITS))} of activations, such as w8a8; got {self}."
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """From text such as w4a8.
        Raises: ConfigError: it is of another form, or the numbers are not allowed.
        """
        found = re.fullmatch(r"w(\d{1,3})a(\d{1,3})", text)
        if found is None:
            raise ConfigError(
                f"bits must be of the form w8a8, bits of weights and activations; got {text!r:.40}."
            )
        return cls(*map(int, found.groups()))

    def __str__(self) -> str:
        return f"w{self.weights}a{self.activations}"


@dataclass(frozen=True)
class Codes:
    """Weights as integers: w = scale * (integers - zero), per output channel.

    Attributes: integers: uint8 (out, ...). scale: float32 (out,). zero: uint8 (out,).
    """

    integers: Tensor
    scale: Tensor
    zero: Tensor

    def weight(self) -> Tensor:
        """The weights, float32 (out, ...)."""
        return per_channel(self.scale, self.integers) * self.signed()

    def signed(self) -> Tensor:
        """Integers less zero points, float32 (out, ...): what is multiplied; fits into 8 bits with sign."""
        return self.integers.float() - per_channel(self.zero.float(), self.integers)


@dataclass(frozen=True)
class Ranges:
    """The integers of a layer's input: clamp(round(x / scale_k) + zero, 0, 2^bits - 1) at call k.

    Attributes: scale: float32 (K,). zero: one for all calls.
    """

    scale: Tensor
    zero: int
    bits: int

    def __call__(self, x: Tensor, call: int) -> Tensor:
        """What the integers of x mean, in its shape; the gradient is that of x, and none outside of the range."""
        return torch.fake_quantize_per_tensor_affine(
            x, float(self.scale[call]), self.zero, 0, 2**self.bits - 1
        )

    def among(self, calls: list[int], n_calls: int) -> Self:
        """As ranges of all calls of a plan, of which these are some; the scales of the others, 1, are never used."""
        scale = torch.ones(n_calls)
        scale[calls] = self.scale
        return replace(self, scale=scale)


def per_channel(value: Tensor, like: Tensor) -> Tensor:
    """A value per output channel, (out,), that broadcasts over weights (out, ...)."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


@dataclass
class Cursor:
    """The call that a network is in, which its layers look up; set before each."""

    call: int = 0


class QuantisedLayer(nn.Module):
    """A Conv2d or Linear with integer weights and, where it has ranges, integer inputs.

    Attributes: codes, ranges: None as long as they are not known; then the layer is as it was.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.Linear, cursor: Cursor) -> None:
        super().__init__()
        self.cursor = cursor
        self.codes: Codes | None = None
        self.ranges: Ranges | None = None
        self.conv = (
            {
                "stride": layer.stride,
                "padding": layer.padding,
                "dilation": layer.dilation,
                "groups": layer.groups,
            }
            if isinstance(layer, nn.Conv2d)
            else None
        )
        self.in_features = layer.in_features if isinstance(layer, nn.Linear) else None
        self.register_buffer("weight", layer.weight.detach().clone())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def set_codes(self, codes: Codes) -> None:
        """Take integer weights."""
        self.codes = codes
        self.weight = codes.weight().to(self.weight)
        if self.weight.ndim == 4:
            self.weight = self.weight.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        if self.ranges is not None:
            x = self.ranges(x, self.cursor.call)
        if self.conv is None:
            return F.linear(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, **self.conv)  # type: ignore[arg-type]


def with_quantised(
    net: nn.Module, names: Mapping[str, object]
) -> tuple[nn.Module, dict[str, QuantisedLayer], Cursor]:
    """A copy of a network in which some layers are `QuantisedLayer`s, those layers by name, and their cursor."""
    made, cursor = copy.deepcopy(net), Cursor()
    layers: dict[str, QuantisedLayer] = {}
    for name in names:
        layer = made.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        layers[name] = QuantisedLayer(layer, cursor)
        made.set_submodule(name, layers[name])
    return made.eval().requires_grad_(False), layers, cursor
