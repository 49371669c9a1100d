"""The one transformer of the project: the block that everything is made of, and the diffusion transformer DiT.

A block takes its attention and its normalisations as parts, so that a paper brings its own of either and no block. The
diffusion transformer is of the kind of [peebles2023dit]: patches as tokens, fixed positions, and time and class in the
normalisations, whose gates start at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import CONTEXT, LABEL, Condition, Conditions
from fewstep.nets.roles import Role
from fewstep.nets.unet import (
    attend,
    conditions_of,
    context_tokens,
    n_heads,
    sinusoids,
    time_and_class,
    zeroed,
)

EPS = 1e-6
"""Of the normalisations, as in DiT."""


class Normalise(Protocol):
    """A normalisation of tokens, and the gate of the branch that it stands at the start of."""

    def __call__(self, tokens: Tensor, emb: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`(B, N, C)` and what modulates it, `(B or 1, N or 1, D)`, to the normalised and the gate; None: 1."""
        ...


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each normalised at its start and added to its input.

        x = x + gate_1 * attention(norm_1(x)),  x = x + cross_attention(x, context),  x = x + gate_2 * mlp(norm_2(x))

    Args:
        width: Channels of the tokens.
        attention: Tokens `(B, N, C)` to the same shape.
        norm1: `Normalise` before the attention.
        norm2: `Normalise` before the perceptron.
        mlp_ratio: Width of the perceptron's inner layer over `width`.
        cross: Adds what tokens `(B, N, C)` find in context tokens `(B, T, D)`; None: nothing.
        dropout: Probability, at the end of the attention and of the perceptron.
    """

    def __init__(
        self,
        width: int,
        attention: nn.Module,
        norm1: nn.Module,
        norm2: nn.Module,
        *,
        mlp_ratio: float = 4.0,
        cross: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1, self.attention = norm1, attention
        self.cross = cross
        self.norm2, self.mlp = norm2, Perceptron(width, mlp_ratio)
        self.dropout = dropout

    def forward(self, x: Tensor, emb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """`(B, N, C)` to the same shape; emb `(B or 1, N or 1, D)` goes to the normalisations."""
        h, gate = self.norm1(x, emb)
        x = self._added(x, self.attention(h), gate)
        if self.cross is not None and context is not None:
            x = cast(Tensor, self.cross(x, context))
        h, gate = self.norm2(x, emb)
        return self._added(x, self.mlp(h), gate)

    def _added(self, x: Tensor, h: Tensor, gate: Tensor | None) -> Tensor:
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        return x + h if gate is None else torch.addcmul(x, h, gate.to(h.dtype))


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with weights of its own, whatever the embedding; no gate."""

    def forward(self, tokens: Tensor, emb: Tensor | None = None) -> tuple[Tensor, None]:  # type: ignore[override]
        """`Normalise`."""
        return super().forward(tokens).to(tokens.dtype), None


class AdaptiveNorm(nn.Module):
    """Layer normalisation whose scale, shift and gate are computed from the embedding [peebles2023dit, Sec. 3.2].

    All three start at zero, so that a branch starts as nothing and a block as the identity (adaLN-zero).

    Args:
        width: Channels of the tokens.
        width_emb: Channels of the embedding.
        gated: Whether there is a gate.
    """

    def __init__(self, width: int, width_emb: int, *, gated: bool = True) -> None:
        super().__init__()
        self.width, self.parts = width, 3 if gated else 2
        self.modulation = zeroed(nn.Linear(width_emb, self.parts * width))

    def forward(self, tokens: Tensor, emb: Tensor) -> tuple[Tensor, Tensor | None]:
        """`Normalise`."""
        shift, scale, *gate = self.modulation(F.silu(emb)).to(tokens.dtype).chunk(self.parts, dim=-1)
        h = F.layer_norm(tokens, (self.width,), eps=EPS).to(tokens.dtype)
        return torch.addcmul(shift, h, 1 + scale), gate[0] if gate else None


class SelfAttention(nn.Module):
    """Attention of tokens to each other by scaled dot products.

    Args:
        width: Channels of the tokens.
        heads: Heads, which must divide them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = xavier(nn.Linear(width, 3 * width))
        self.proj = xavier(nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, N, C)` to the same shape."""
        b, n, width = tokens.shape
        q, k, v = self.qkv(tokens).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return cast(Tensor, self.proj(attend(q, k, v).transpose(1, 2).reshape(b, n, width)))


class ContextAttention(nn.Module):
    """Attention of tokens to context tokens, added to its input; starts as nothing, and their order does not matter."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.query = xavier(nn.Linear(width, width))
        self.kv = xavier(nn.Linear(context, 2 * width))
        self.proj = zeroed(nn.Linear(width, width))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """`(B, N, C)` and `(B, T, context)` to `(B, N, C)`."""
        b, n, width = tokens.shape
        q = self.query(self.norm(tokens).to(tokens.dtype)).reshape(b, n, self.heads, -1).transpose(1, 2)
        k, v = self.kv(context).reshape(b, context.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return tokens + cast(Tensor, self.proj(attend(q, k, v).transpose(1, 2).reshape(b, n, width)))


class Perceptron(nn.Module):
    """Two linear layers with a GELU between them, on each token."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        inner = max(1, round(ratio * width))
        self.into, self.out = xavier(nn.Linear(width, inner)), xavier(nn.Linear(inner, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, N, C)` to the same shape."""
        return cast(Tensor, self.out(F.gelu(self.into(tokens), approximate="tanh")))


class Transformer(nn.Module):
    """A diffusion transformer whose output has the shape of its input [peebles2023dit].

    Differs: Width of the heads and number of sinusoids follow the U-Net's conventions, and maps of times, maps and
    context tokens are taken as the U-Net takes them, so that either network can stand for the other.

    Args:
        image_size: Side of the images in pixels, a multiple of `patch`. Other sides are accepted, too.
        in_channels: Channels of the input.
        channels: Width of the tokens, a multiple of 4.
        depth: Number of blocks.
        patch: Side of the squares of pixels that are tokens.
        n_classes: Number of classes; the label `n_classes` means "no label". 0: no class embedding.
        dropout: Probability, at the ends of the branches of a block.
        head_channels: Width of one attention head.
        mlp_ratio: Width of a perceptron's inner layer over `channels`.
        out_channels: Channels of the output; as many as `in_channels` when None.
        time_channels: Sinusoids of the time, an even number; as many as `channels` when None.
        maps: Channels of each map of the condition, by its name; a map has the sides of the image. Their layer starts
            at zero, so that the network starts as the one without.
        context: Width of the tokens of the condition's `context`, any number of them; 0: no cross-attention. It starts
            at zero, too.

    Raises:
        ConfigError: A value that cannot be built.
    """

    positions: Tensor

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        channels: int,
        depth: int = 4,
        patch: int = 2,
        n_classes: int = 0,
        dropout: float = 0.0,
        head_channels: int = 32,
        mlp_ratio: float = 4.0,
        out_channels: int | None = None,
        time_channels: int | None = None,
        maps: Mapping[str, int] | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.image_size, self.in_channels, self.channels, self.depth = (
            image_size,
            in_channels,
            channels,
            depth,
        )
        self.patch, self.n_classes, self.dropout, self.head_channels = (
            patch,
            n_classes,
            dropout,
            head_channels,
        )
        self.mlp_ratio = mlp_ratio
        self.out_channels = in_channels if out_channels is None else out_channels
        self.time_channels = channels if time_channels is None else time_channels
        self.maps, self.context = dict(sorted((maps or {}).items())), context
        self._check()

        self.time_in = nn.Linear(self.time_channels, channels)
        self.time_out = nn.Linear(channels, channels)
        self.label = nn.Embedding(n_classes + 1, channels) if n_classes else None
        self.patch_in = xavier(nn.Linear(in_channels * patch**2, channels))
        n_maps = sum(self.maps.values())
        self.maps_in = zeroed(nn.Linear(n_maps * patch**2, channels, bias=False)) if n_maps else None
        heads = n_heads(channels, head_channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                channels,
                SelfAttention(channels, heads),
                AdaptiveNorm(channels, channels),
                AdaptiveNorm(channels, channels),
                mlp_ratio=mlp_ratio,
                cross=ContextAttention(channels, context, heads) if context else None,
                dropout=dropout,
            )
            for _ in range(depth)
        )
        self.norm_out = AdaptiveNorm(channels, channels, gated=False)
        self.patch_out = zeroed(nn.Linear(channels, self.out_channels * patch**2))
        side = image_size // patch
        self.register_buffer("positions", grid_positions(side, side, channels), persistent=False)
        nn.init.normal_(self.time_in.weight, std=0.02)
        nn.init.normal_(self.time_out.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)

    @property
    def conditions(self) -> Conditions | None:
        """What the network takes; the null condition has the label `n_classes`, and zeros elsewhere."""
        return conditions_of(self.image_size, self.n_classes, self.maps, self.context)

    def condition_parts(self) -> tuple[str, ...]:
        """Prefixes of the names of those weights that a network without maps and context has not."""
        crossing = (f"blocks.{i}.cross." for i in range(self.depth if self.context else 0))
        return (*(("maps_in.",) if self.maps else ()), *crossing)

    def roles(self) -> dict[str, Role]:
        """The role of every linear layer."""
        found: dict[str, Role] = {"time_in": "time_mlp", "time_out": "time_mlp", "patch_in": "first"}
        if self.maps_in is not None:
            found["maps_in"] = "first"
        for name, module in self.named_modules():
            if isinstance(module, AdaptiveNorm):
                found[f"{name}.modulation"] = "time_proj"
            elif isinstance(module, SelfAttention | ContextAttention):
                layers = (n for n, m in module.named_modules() if isinstance(m, nn.Linear))
                found |= dict.fromkeys((f"{name}.{layer}" for layer in layers), "attn")
            elif isinstance(module, Perceptron):
                found |= {f"{name}.into": "body", f"{name}.out": "body"}
        return found | {"patch_out": "last"}

    def units(self) -> tuple[str, ...]:
        """The blocks, by name."""
        return tuple(f"blocks.{i}" for i in range(self.depth))

    def temporal(self, time: Tensor, condition: Condition | None = None) -> list[Tensor]:
        """Shifts, scales and gates of every normalisation, (B, parts * channels) each, for times (B,)."""
        emb = F.silu(self._embedded(time, condition, time))[:, 0]
        norms = (module for module in self.modules() if isinstance(module, AdaptiveNorm))
        return [norm.modulation(emb) for norm in norms]

    def config(self) -> dict[str, Any]:
        """The constructor's values, ready for JSON: `Transformer(**net.config())` has the same parameters."""
        used = {"maps": self.maps, "context": self.context}
        return {
            "image_size": self.image_size,
            "in_channels": self.in_channels,
            "channels": self.channels,
            "depth": self.depth,
            "patch": self.patch,
            "n_classes": self.n_classes,
            "dropout": self.dropout,
            "head_channels": self.head_channels,
            "mlp_ratio": self.mlp_ratio,
            "out_channels": self.out_channels,
            "time_channels": self.time_channels,
            **{name: value for name, value in used.items() if value},
        }

    def forward(self, x: Tensor, time: Tensor | float, condition: Condition | None = None) -> Tensor:
        """The network's output.

        Args:
            x: `(B, in_channels, H, W)`, sides that are multiples of `patch`.
            time: `schedule.time_input(t)`: a number, `()`, `(B,)` or a map `(B, 1, H, W)` ((1, 1, H, W) too).
            condition: As `UNet.forward` takes it.

        Returns:
            `(B, out_channels, H, W)`.
        """
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        emb, context = self._embedded(time, condition, x), context_tokens(self.context, condition, like=x)
        h = self.patch_in(patches(x, self.patch))
        if self.maps_in is not None and condition is not None:
            maps = torch.cat([condition.values[name] for name in self.maps], dim=1)
            h = h + self.maps_in(patches(maps, self.patch))
        h = h + self._positions(rows, columns).to(h)
        for block in self.blocks:
            h = block(h, emb, context)
        h, _ = self.norm_out(h, emb)
        return image_of(self.patch_out(h), rows, columns, self.patch)

    def _embedded(self, time: Tensor | float, condition: Condition | None, like: Tensor) -> Tensor:
        """Time and class of each token, `(B or 1, N or 1, D)`; a map of times is averaged over each patch."""
        if isinstance(time, Tensor) and time.ndim == 4:
            time = F.avg_pool2d(time.float(), self.patch)
        emb = time_and_class(self.time_in, self.time_out, self.label, time, condition, like=like)
        return emb.flatten(1, 2) if emb.ndim == 4 else emb[:, None]

    def _positions(self, rows: int, columns: int) -> Tensor:
        if rows * self.patch == columns * self.patch == self.image_size:
            return self.positions
        return grid_positions(rows, columns, self.channels, device=self.positions.device)

    def _check(self) -> None:
        """Refuse values that would fail later with an obscure message."""
        if self.channels < 4 or self.channels % 4:
            raise ConfigError(f"channels must be a positive multiple of 4; got {self.channels}.")
        if self.time_channels < 2 or self.time_channels % 2:
            raise ConfigError(f"time_channels must be even and positive; got {self.time_channels}.")
        if self.patch < 1 or self.image_size < self.patch or self.image_size % self.patch:
            raise ConfigError(
                f"image_size must be a multiple of the patch, which is 1 or more; got {self.image_size} and "
                f"{self.patch}. Use a patch that divides the side."
            )
        if not 1 <= self.depth <= 256 or self.in_channels < 1 or self.head_channels < 1 or self.n_classes < 0:
            raise ConfigError(
                "a transformer needs a depth of 1 to 256, in_channels and head_channels >= 1 and n_classes >= 0; got "
                f"{self.depth}, {self.in_channels}, {self.head_channels} and {self.n_classes}."
            )
        if not 0.0 <= self.dropout < 1.0 or not self.mlp_ratio > 0:
            raise ConfigError(
                f"dropout must lie in [0, 1), and mlp_ratio must be > 0; got {self.dropout} and {self.mlp_ratio}."
            )
        if self.context < 0 or min(self.maps.values(), default=1) < 1 or {LABEL, CONTEXT} & self.maps.keys():
            raise ConfigError(
                f"context must be >= 0, and maps must have 1 channel or more and other names than {LABEL} and "
                f"{CONTEXT}; got {self.context} and {self.maps}."
            )


def xavier(layer: nn.Linear) -> nn.Linear:
    """Weights as DiT's code draws them, and no bias at the start."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def patches(x: Tensor, patch: int) -> Tensor:
    """Images `(B, C, H, W)` as tokens, row by row: `(B, N, C * patch**2)`."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def image_of(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """The images `(B, C, H, W)` that `patches` cut into these tokens."""
    return F.pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns), patch)


def grid_positions(rows: int, columns: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Fixed positions of a grid of tokens, row by row: sinusoids of the row beside those of the column, `(N, width)`.

    `width` is a multiple of 4.
    """
    of_row = sinusoids(torch.arange(rows, dtype=torch.float32, device=device), width // 4)
    of_column = sinusoids(torch.arange(columns, dtype=torch.float32, device=device), width // 4)
    both = (of_row[:, None].expand(-1, columns, -1), of_column[None].expand(rows, -1, -1))
    return torch.cat(both, dim=-1).flatten(0, 1)
