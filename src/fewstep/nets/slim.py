"""One set of weights, several widths: a narrow network is a slice of the wide one [yu2019slimmable].

A narrow U-Net is an ordinary `UNet` with a share of the channels. Each of its layers uses the first channels of the
wide layer's; where a layer's channels are several groups side by side (a skip connection beside the features of the
way up; query, key, value; scale, shift) it uses the first of each group, so that a weight always meets the channel
that it was trained for. The sinusoids of the time, maps and context tokens stay whole, since their meaning does not
depend on the width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.nets.unet import Attention, Block, CrossAttention, UNet, blocks_of

STEP = 4  # channels: the U-Net's own unit, so that every layer of a narrow network can be built
Groups = tuple[tuple[int, int], ...]
"""Channels of one axis, group by group: how many the wide layer has, and how many the narrow one uses."""


def check_widths(widths: Sequence[float], channels: int) -> tuple[float, ...]:
    """The widths as a model keeps them.

    Raises:
        ConfigError: They do not fall from 1, or two of them have equally many channels.
    """
    numbers = [_channels(channels, width) for width in widths]
    falling = all(b < a for a, b in zip(numbers[:-1], numbers[1:], strict=True))
    if not widths or widths[0] != 1.0 or min(widths) <= 0 or not falling:
        raise ConfigError(
            f"widths must fall from 1.0 by {STEP} of the {channels} channels or more at a time; "
            f"got {list(widths)}, which are {numbers} channels."
        )
    return tuple(float(width) for width in widths)


def _channels(channels: int, width: float) -> int:
    return max(STEP, STEP * round(channels * width / STEP))


def skeleton(net: UNet, width: float) -> UNet:
    """The narrow network without weights, on the meta device: its shapes, to be called with `sliced` ones."""
    with torch.device("meta"):
        return UNet(**{**net.config(), "channels": _channels(net.channels, width)})


def sliced(weights: Mapping[str, Tensor], groups: Mapping[str, tuple[Groups, ...]]) -> dict[str, Tensor]:
    """The narrow network's weights, cut out of the wide one's; gradients flow back to where they came from.

    Args:
        weights: Of the wide network, by name.
        groups: From `groups_of`.
    """
    return {name: _cut(weights[name], of_axes) for name, of_axes in groups.items()}


def _cut(weight: Tensor, of_axes: Sequence[Groups]) -> Tensor:
    for axis, groups in enumerate(of_axes):
        if all(wide == narrow for wide, narrow in groups):
            continue
        parts, start = [], 0
        for wide, narrow in groups:
            parts.append(weight.narrow(axis, start, narrow))
            start += wide
        weight = parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)
    return weight


def groups_of(net: UNet, narrow: UNet) -> dict[str, tuple[Groups, ...]]:
    """Which channels of every weight a narrow network uses, on its first axis and, where there is one, its second."""
    inputs, outputs = dict(_grouped_inputs(net, narrow)), dict(_grouped_outputs(net))
    slim = dict(narrow.named_parameters())
    found: dict[str, tuple[Groups, ...]] = {}
    for name, weight in net.named_parameters():
        layer, small = name.rpartition(".")[0], slim[name]
        parts = outputs.get(layer, 1)
        first: Groups = ((weight.shape[0] // parts, small.shape[0] // parts),) * parts
        if weight.ndim == 1:  # a bias, or a normalisation, whose channels are those of its input
            normalises = isinstance(net.get_submodule(layer), nn.GroupNorm)
            found[name] = (inputs.get(layer, first) if normalises else first,)
        else:
            found[name] = (first, inputs.get(layer, ((weight.shape[1], small.shape[1]),)))
    return found


def _grouped_inputs(net: UNet, narrow: UNet) -> Iterator[tuple[str, Groups]]:
    """The layers of the way up that see features and a skip connection side by side."""
    names = {module: name for name, module in net.named_modules()}
    for i, level in enumerate(net.decoder):
        below = net.multipliers[min(i + 1, len(net.multipliers) - 1)]
        own = (net.channels * net.multipliers[i], narrow.channels * net.multipliers[i])
        entering = (net.channels * below, narrow.channels * below)
        for block in blocks_of(level):
            for layer in (block.norm1, block.conv1, block.shortcut):
                if isinstance(layer, nn.Module):
                    yield names[layer], (entering, own)
            entering = own


def _grouped_outputs(net: UNet) -> Iterator[tuple[str, int]]:
    """The layers whose outputs are cut into equal parts, and how many."""
    for name, module in net.named_modules():
        if isinstance(module, Block):
            yield f"{name}.emb", 2
        if isinstance(module, Attention):
            yield f"{name}.qkv", 3
        if isinstance(module, CrossAttention):
            yield f"{name}.kv", 2


class Narrow:
    """The network at one width, on the wide network's own weights: for training and for search.

    Args:
        net: The wide network.
        width: Share of its channels.
    """

    def __init__(self, net: UNet, width: float) -> None:
        self.net, self.skeleton = net, skeleton(net, width)
        self.groups = groups_of(net, self.skeleton)

    def __call__(self, x: Tensor, time: Tensor | float, condition: Condition | None = None) -> Tensor:
        """As `UNet.forward`."""
        self.skeleton.train(self.net.training)
        weights = sliced(dict(self.net.named_parameters()), self.groups)
        out: Tensor = torch.func.functional_call(self.skeleton, weights, (x, time, condition))
        return out


def materialised(net: UNet, width: float) -> UNet:
    """The network at one width with weights of its own, contiguous: for sampling, compiling, calibrating."""
    narrow = skeleton(net, width)
    weights = sliced(dict(net.named_parameters()), groups_of(net, narrow))
    like = next(net.parameters())
    made = narrow.to(like.dtype).to_empty(device=like.device)
    made.load_state_dict(weights)
    made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return made.eval().requires_grad_(False)


def sub_networks(net: UNet, widths: Sequence[float]) -> Callable[[int], UNet]:
    """From an index into `widths` to the network; each narrow one is made at its first use and kept."""

    @cache
    def at(index: int) -> UNet:
        return net if index == 0 else materialised(net, widths[index])

    return at
