"""The one U-Net of the project, of the ADM family [dhariwal2021adm].

Residual blocks are conditioned by a scale and a shift computed from the time (and the class). Maps enter beside the
image, context tokens by cross-attention wherever there is self-attention [rombach2022ldm]. The whole time path is
written with linear layers on the last axis, so the very same weights accept one time for the batch, one per image, or
one per pixel: a map of times is averaged down to every resolution [kim2025rad].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import CONTEXT, LABEL, Classes, Condition, Conditions, Entry, Stored
from fewstep.nets.roles import Role

M = TypeVar("M", bound=nn.Module)


class UNet(nn.Module):
    """A U-Net whose output has the shape of its input.

    Differs from ADM in three places, that save about 40 to 50 % of its work: the decoder has as many blocks per
    level as the encoder (ADM: one more), down-sampling is a 2 x 2 mean inside the first block
    of a level, and up-sampling repeats pixels, without convolutions of their own.

    Args:
        image_size: Side of the images in pixels; decides on which levels there is attention. Any input whose
            sides are multiples of `patch * 2 ** (levels - 1)` is accepted.
        in_channels: Channels of the input.
        channels: Width of the first level.
        multipliers: Width of each level in units of `channels`; every level halves the side
            of the one before; the first has `image_size / patch`.
        blocks: Residual blocks per level, on the way down and on the way up.
        attention: Sides of the levels at which blocks are followed by self-attention.
        n_classes: Number of classes; the label `n_classes` means "no label". 0: no class embedding.
        dropout: Probability, inside the residual blocks.
        head_channels: Width of one attention head.
        groups: Upper bound of the groups of a normalisation; each keeps 4 channels or more.
        out_channels: Channels of the output; as many as `in_channels` when None.
        time_channels: Sinusoids of the time, an even number; as many as `channels` when None.
        patch: Side of the squares of pixels that enter and leave as the channels of one. The first level, the most
            expensive per weight, is left out [hoogeboom2023simple].
        maps: Channels of each map of the condition, by its name; a map has the sides of the image. Their layer starts
            at zero, so that the network starts as the one without.
        context: Width of the tokens of the condition's `context`, any number of them; 0: no cross-attention. It starts
            at zero, too.

    Raises:
        ConfigError: A value that cannot be built.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        channels: int,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        n_classes: int = 0,
        dropout: float = 0.0,
        head_channels: int = 32,
        groups: int = 32,
        out_channels: int | None = None,
        time_channels: int | None = None,
        patch: int = 1,
        maps: Mapping[str, int] | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.image_size, self.in_channels, self.channels = image_size, in_channels, channels
        self.multipliers, self.blocks, self.attention = tuple(multipliers), blocks, tuple(attention)
        self.n_classes, self.dropout, self.head_channels, self.groups = (
            n_classes,
            dropout,
            head_channels,
            groups,
        )
        self.out_channels = in_channels if out_channels is None else out_channels
        self.time_channels = channels if time_channels is None else time_channels
        self.patch, self.maps, self.context = patch, dict(sorted((maps or {}).items())), context
        self._check()

        width = 4 * channels
        self.time_in = nn.Linear(self.time_channels, width)
        self.time_out = nn.Linear(width, width)
        self.label = nn.Embedding(n_classes + 1, width) if n_classes else None

        widths = [channels * m for m in self.multipliers]
        sides = self._sides()

        def level(inputs: Sequence[int], width_out: int, side: int, down: bool = False) -> nn.ModuleList:
            """One level: a residual block per entry of `inputs`, attention after each where `attention` says so."""
            return nn.ModuleList(
                Block(
                    width_in,
                    width_out,
                    width,
                    attend=side in self.attention,
                    down=down and i == 0,
                    dropout=dropout,
                    head_channels=head_channels,
                    groups=groups,
                    context=context,
                )
                for i, width_in in enumerate(inputs)
            )

        self.conv_in = nn.Conv2d(in_channels * patch**2, widths[0], 3, padding=1)
        above = [widths[0], *widths[:-1]]
        self.encoder = nn.ModuleList(
            level([above[i]] + [w] * (blocks - 1), w, sides[i], down=i > 0) for i, w in enumerate(widths)
        )
        bottom = widths[-1]
        self.middle_in = Block(bottom, bottom, width, True, False, dropout, head_channels, groups, context)
        self.middle_out = Block(bottom, bottom, width, False, False, dropout, head_channels, groups)
        below = [*widths[1:], bottom]
        self.decoder = nn.ModuleList(
            level([below[i] + w] + [2 * w] * (blocks - 1), w, sides[i]) for i, w in enumerate(widths)
        )
        self.norm_out = Norm(widths[0], groups)
        self.conv_out = zeroed(nn.Conv2d(widths[0], self.out_channels * patch**2, 3, padding=1))
        n_maps = sum(self.maps.values())
        # beside conv_in, whose weights stay those of the network without; the two are one layer on the concatenation
        self.maps_in = (
            zeroed(nn.Conv2d(n_maps * patch**2, widths[0], 3, padding=1, bias=False)) if n_maps else None
        )

    @property
    def conditions(self) -> Conditions | None:
        """What the network takes; the null condition has the label `n_classes`, and zeros elsewhere."""
        return conditions_of(self.image_size, self.n_classes, self.maps, self.context)

    def condition_parts(self) -> tuple[str, ...]:
        """Prefixes of the names of those weights that a network without maps and context has not."""
        crossing = (name for name, module in self.named_modules() if isinstance(module, CrossAttention))
        return (*(("maps_in.",) if self.maps else ()), *(f"{name}." for name in crossing))

    def _sides(self) -> list[int]:
        return [self.image_size // self.patch >> level for level in range(len(self.multipliers))]

    def _check(self) -> None:
        """Refuse values that would fail later with an obscure message."""
        levels = len(self.multipliers)
        if levels == 0 or min(self.multipliers) < 1 or not 1 <= self.blocks <= 256 or self.in_channels < 1:
            raise ConfigError(
                "a U-Net needs positive multipliers and in_channels, and 1 to 256 blocks; got "
                f"{self.multipliers}, {self.in_channels} and {self.blocks}."
            )
        if self.channels < 4 or self.channels % 4:
            raise ConfigError(f"channels must be a positive multiple of 4; got {self.channels}.")
        if self.time_channels < 2 or self.time_channels % 2:
            raise ConfigError(f"time_channels must be even and positive; got {self.time_channels}.")
        if self.patch < 1:
            raise ConfigError(f"patch must be 1 or more; got {self.patch}.")
        factor = self.patch * 2 ** (levels - 1)
        if self.image_size < factor or self.image_size % factor:
            raise ConfigError(
                f"image_size must be a multiple of {factor} for {levels} levels of patches of side {self.patch}; "
                f"got {self.image_size}. Use fewer multipliers, smaller patches or another size."
            )
        sides = self._sides()
        if unknown := [side for side in self.attention if side not in sides]:
            raise ConfigError(f"attention must name sides among {sides}; got {unknown}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must lie in [0, 1); got {self.dropout}.")
        if self.n_classes < 0 or self.head_channels < 1 or self.groups < 1:
            raise ConfigError(
                f"n_classes must be >= 0, head_channels and groups >= 1; got {self.n_classes}, "
                f"{self.head_channels}, {self.groups}."
            )
        if self.context < 0 or min(self.maps.values(), default=1) < 1 or {LABEL, CONTEXT} & self.maps.keys():
            raise ConfigError(
                f"context must be >= 0, and maps must have 1 channel or more and other names than {LABEL} and "
                f"{CONTEXT}; got {self.context} and {self.maps}."
            )

    def config(self) -> dict[str, Any]:
        """The constructor's values, ready for JSON: `UNet(**net.config())` has the same parameters."""
        used = {"maps": self.maps, "context": self.context}
        return {
            "image_size": self.image_size,
            "in_channels": self.in_channels,
            "channels": self.channels,
            "multipliers": list(self.multipliers),
            "blocks": self.blocks,
            "attention": list(self.attention),
            "n_classes": self.n_classes,
            "dropout": self.dropout,
            "head_channels": self.head_channels,
            "groups": self.groups,
            "out_channels": self.out_channels,
            "time_channels": self.time_channels,
            "patch": self.patch,
            **{name: value for name, value in used.items() if value},
        }

    def forward(self, x: Tensor, time: Tensor | float, condition: Condition | None = None) -> Tensor:
        """The network's output.

        Args:
            x: `(B, in_channels, H, W)`.
            time: `schedule.time_input(t)`: a number, `()`, `(B,)` or a map `(B, 1, H, W)` ((1, 1, H, W) too).
            condition: As far as the network takes it, "label", int64 `(B,)` in `[0, n_classes]`; "context",
                `(B, T, context)`; and a map `(B, channels, H, W)` under each name of `maps`, in x's dtype. None means
                the null condition for all.

        Returns:
            `(B, out_channels, H, W)`.
        """
        emb, context = self.embed(time, condition, like=x), self.tokens(condition, like=x)
        h, skips = self.encode(x, emb, condition)
        return self.decode(self.middle(h, emb, context), skips, emb, context)

    def roles(self) -> dict[str, Role]:
        """The role of every convolution and linear layer."""
        found: dict[str, Role] = {"time_in": "time_mlp", "time_out": "time_mlp", "conv_in": "first"}
        if self.maps_in is not None:
            found["maps_in"] = "first"
        for name in self.units():
            block = self.get_submodule(name)
            assert isinstance(block, Block)
            found |= {f"{name}.{layer}": role for layer, role in block.roles().items()}
        return found | {"conv_out": "last"}

    def units(self) -> tuple[str, ...]:
        """The residual blocks, by name."""
        return tuple(name for name, module in self.named_modules() if isinstance(module, Block))

    def temporal(self, time: Tensor, condition: Condition | None = None) -> list[Tensor]:
        """The scale and shift of every block in the order of `units`, (B, 2 * width) each, for times (B,)."""
        emb = F.silu(self.embed(time, condition, like=time))
        blocks = (module for module in self.modules() if isinstance(module, Block))
        return [block.emb(emb) for block in blocks]

    def tokens(self, condition: Condition | None, *, like: Tensor) -> Tensor | None:
        """What blocks attend to, `(B, T, context)`: one token of zeros for the null condition; None without context."""
        return context_tokens(self.context, condition, like=like)

    def embed(self, time: Tensor | float, condition: Condition | None = None, *, like: Tensor) -> Tensor:
        """The time and class of every block: `(1, D)`, `(B, D)`, or `(B, H, W, D)` for a map of times.

        `like` gives the device. The sinusoids are float32 in any case: half precision loses whole time steps.
        """
        return time_and_class(self.time_in, self.time_out, self.label, time, condition, like=like)

    def encode(
        self, x: Tensor, emb: Tensor, condition: Condition | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The way down: the features that enter the middle and, per block, the ones kept for the way up."""
        context = self.tokens(condition, like=x)
        h = self.conv_in(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        if self.maps_in is not None and condition is not None:
            maps = torch.cat([condition.values[name] for name in self.maps], dim=1)
            h = h + self.maps_in(F.pixel_unshuffle(maps, self.patch) if self.patch > 1 else maps)
        skips: list[Tensor] = []
        for i, level in enumerate(self.encoder):
            side = (x.shape[-2] // self.patch >> i, x.shape[-1] // self.patch >> i)
            emb_level = pooled(emb, side)
            for block in blocks_of(level):
                h = block(h, emb_level, context)
                skips.append(h)
        return h, skips

    def middle(self, h: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        """The middle block at the lowest resolution; its output is the `h` that editing methods move."""
        emb = pooled(emb, (h.shape[-2], h.shape[-1]))
        h = self.middle_in(h, emb, context)
        out: Tensor = self.middle_out(h, emb)
        return out

    def decode(
        self, h: Tensor, skips: Sequence[Tensor], emb: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """The way up, from the middle's output and the features kept by `encode`."""
        remaining = list(skips)
        for level in reversed(self.decoder):
            side = (remaining[-1].shape[-2], remaining[-1].shape[-1])
            if h.shape[-2] != side[0]:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            emb_level = pooled(emb, side)
            for block in blocks_of(level):
                h = block(torch.cat([h, remaining.pop()], dim=1), emb_level, context)
        out = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(out, self.patch) if self.patch > 1 else out


class Block(nn.Module):
    """Residual block with scale-shift conditioning; may halve the side, may end with attention."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        width_emb: int,
        attend: bool,
        down: bool,
        dropout: float,
        head_channels: int,
        groups: int,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.down, self.dropout = down, dropout
        self.norm1 = Norm(width_in, groups)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.emb = nn.Linear(width_emb, 2 * width_out)
        self.norm2 = Norm(width_out, groups)
        self.conv2 = zeroed(nn.Conv2d(width_out, width_out, 3, padding=1))
        self.shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None
        self.attention = Attention(width_out, head_channels, groups) if attend else None
        self.cross = CrossAttention(width_out, context, head_channels, groups) if attend and context else None

    def roles(self) -> dict[str, Role]:
        """The role of each of its layers."""
        found: dict[str, Role] = {"conv1": "body", "emb": "time_proj", "conv2": "body"}
        if self.shortcut is not None:
            found["shortcut"] = "shortcut"
        for name, part in (("attention", self.attention), ("cross", self.cross)):
            layers = [] if part is None else [n for n, m in part.named_modules() if isinstance(m, nn.Linear)]
            found |= dict.fromkeys((f"{name}.{layer}" for layer in layers), "attn")
        return found

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        """`(B, width_in, H, W)` to `(B, width_out, H, W)`, or half the sides when `down`."""
        h = F.silu(self.norm1(x))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self.conv1(h)
        scale, shift = as_maps(self.emb(F.silu(emb))).to(h.dtype).chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        h = self.conv2(h) + (x if self.shortcut is None else self.shortcut(x))
        h = h if self.attention is None else cast(Tensor, self.attention(h))
        return h if self.cross is None or context is None else cast(Tensor, self.cross(h, context))


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input."""

    def __init__(self, width: int, head_channels: int, groups: int) -> None:
        super().__init__()
        self.heads = n_heads(width, head_channels)
        self.norm = Norm(width, groups)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape."""
        b, c, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(b, height * width, c)
        q, k, v = self.qkv(tokens).reshape(b, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = attend(q, k, v).transpose(1, 2).reshape(b, height * width, c)
        h = self.proj(h).reshape(b, height, width, c).permute(0, 3, 1, 2)
        return x + cast(Tensor, h)


class CrossAttention(nn.Module):
    """Attention of the pixels to context tokens, added to its input; their order does not matter."""

    def __init__(self, width: int, context: int, head_channels: int, groups: int) -> None:
        super().__init__()
        self.heads = n_heads(width, head_channels)
        self.norm = Norm(width, groups)
        self.query = nn.Linear(width, width)
        self.kv = nn.Linear(context, 2 * width)
        self.proj = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`(B, C, H, W)` and `(B, T, context)` to `(B, C, H, W)`."""
        b, c, height, width = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(b, height * width, c)
        q = self.query(pixels).reshape(b, height * width, self.heads, -1).transpose(1, 2)
        k, v = self.kv(context).reshape(b, context.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = attend(q, k, v).transpose(1, 2).reshape(b, height * width, c)
        h = self.proj(h).reshape(b, height, width, c).permute(0, 3, 1, 2)
        return x + cast(Tensor, h)


def conditions_of(side: int, n_classes: int, maps: Mapping[str, int], context: int) -> Conditions | None:
    """What a network of images of some side takes; null are the label `n_classes`, and zeros elsewhere."""
    if not maps and not context:
        return Classes(n_classes) if n_classes else None
    entries = {name: Entry((channels, side, side)) for name, channels in maps.items()}
    null = {name: torch.zeros(1, channels, 1, 1) for name, channels in maps.items()}
    if context:
        entries[CONTEXT], null[CONTEXT] = Entry((None, context)), torch.zeros(1, 1, context)
    if n_classes:
        entries[LABEL], null[LABEL] = Entry((), torch.int64), torch.tensor([n_classes])
    return Stored(None, Condition(null), entries)


def context_tokens(width: int, condition: Condition | None, *, like: Tensor) -> Tensor | None:
    """What a network attends to, `(B, T, width)`: one token of zeros for the null condition; None for width 0."""
    if not width:
        return None
    if condition is None:
        return torch.zeros(1, 1, width, dtype=like.dtype, device=like.device).expand(len(like), 1, -1)
    return condition.values[CONTEXT]


def time_and_class(
    time_in: nn.Linear,
    time_out: nn.Linear,
    classes: nn.Embedding | None,
    time: Tensor | float,
    condition: Condition | None,
    *,
    like: Tensor,
) -> Tensor:
    """The embedding of time and class: `(1, D)`, `(B, D)`, or `(B, H, W, D)` for a map of times.

    Args:
        time_in: From the sinusoids of the time.
        time_out: To the embedding, after a SiLU.
        classes: Of each class, and last of none; None: the network has no classes.
        time: A number, `()`, `(B,)` or a map `(B, 1, H, W)`.
        condition: Its label is used; None means no class.
        like: Gives the device. The sinusoids are float32 in any case: half precision loses whole time steps.
    """
    if not isinstance(time, Tensor):
        time = torch.full((1,), float(time), dtype=torch.float32, device=like.device)
    time = time.to(device=like.device, dtype=torch.float32)
    time = time[:, 0] if time.ndim == 4 else time.reshape(-1)
    emb = sinusoids(time, time_in.in_features // 2).to(time_in.weight.dtype)
    emb = cast(Tensor, time_out(F.silu(time_in(emb))))
    if classes is None:
        return emb
    if condition is None:
        label = torch.full((1,), classes.num_embeddings - 1, dtype=torch.int64, device=like.device)
    else:
        label = condition.values[LABEL]
    of_class = classes(label)
    both: Tensor = emb + (of_class[:, None, None, :] if emb.ndim == 4 else of_class)
    return both


def n_heads(width: int, head_channels: int) -> int:
    """Heads of about `head_channels` channels that divide the width."""
    heads = max(1, width // head_channels)
    while width % heads:
        heads -= 1
    return heads


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of `(B, heads, tokens, D)`; on a CPU in float32: bfloat16's step backwards takes four times as long."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


class Norm(nn.GroupNorm):
    """Group normalisation that keeps its input's dtype (statistics are float32 in any case).

    A group holds at least 4 channels: with one channel each the normalisation would erase channel means.
    """

    def __init__(self, width: int, groups: int) -> None:
        limit = max(1, min(groups, width // 4))
        super().__init__(next(n for n in range(limit, 0, -1) if width % n == 0), width)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(B, C, H, W)`; autocast would return float32 and double the memory traffic."""
        return super().forward(x).to(x.dtype)


def sinusoids(time: Tensor, n: int) -> Tensor:
    """Cosines and sines of `time` at `n` frequencies from 1 down to 1/10000: shape `(*time.shape, 2 * n)`.

    The transformer's position code as used for diffusion times [ho2020ddpm, App. B].
    """
    powers = torch.arange(n, dtype=torch.float32, device=time.device) / n
    angles = time[..., None] * torch.exp(-math.log(10_000.0) * powers)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def pooled(emb: Tensor, side: tuple[int, int]) -> Tensor:
    """A per-pixel condition `(B, H, W, D)` averaged to `(B, *side, D)`; one without pixels as it is."""
    if emb.ndim == 2 or (emb.shape[1], emb.shape[2]) == side:
        return emb
    factor = (emb.shape[1] // side[0], emb.shape[2] // side[1])
    return F.avg_pool2d(emb.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)


def blocks_of(level: nn.Module) -> nn.ModuleList:
    """The blocks of one level, with the type that a nested list of modules loses."""
    assert isinstance(level, nn.ModuleList)
    return level


def as_maps(emb: Tensor) -> Tensor:
    """`(B, D)` to `(B, D, 1, 1)`; `(B, H, W, D)` to `(B, D, H, W)`."""
    return emb[:, :, None, None] if emb.ndim == 2 else emb.permute(0, 3, 1, 2)


def inputs_of(entries: Mapping[str, Entry], side: int) -> dict[str, Any]:
    """The arguments `maps` and `context` of a network of images of some side that takes these conditions.

    A label is left to the argument `n_classes`, which its form does not say.

    Raises: ConfigError: one of them is neither a map nor the context, nor a label.
    """
    maps: dict[str, int] = {}
    context = 0
    for name, entry in entries.items():
        floating, shape = entry.dtype.is_floating_point, entry.shape
        if name == LABEL and entry == Entry((), torch.int64):
            continue
        if name == CONTEXT and floating and len(shape) == 2 and shape[1]:
            context = shape[1]
        elif name != LABEL and floating and len(shape) == 3 and shape[0] and shape[1:] == (side, side):
            maps[name] = shape[0]
        else:
            raise ConfigError(
                f"A U-Net takes maps, floating point (B, C, {side}, {side}), tokens under the name {CONTEXT}, floating "
                f"point (B, T, D), and classes under the name {LABEL}, int64 (B); got {name}, {entry}."
            )
    return {"maps": maps, "context": context}


def zeroed(layer: M) -> M:
    """Set a layer's parameters to zero, so that the branch that it ends starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
