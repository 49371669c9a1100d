"""Generator and discriminator of ViTGAN, both transformers [lee2022vitgan].

The generator's tokens start as positions alone; the latent vector acts through the normalisations, and a small network
of pixel coordinates, modulated by the token, paints each patch. The discriminator sees overlapping patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.nets.generator import Generator, require_square
from fewstep.nets.lipschitz import DotAttention, L2Attention, keep_spectral_norms, require_heads
from fewstep.nets.transformer import LayerNorm, SelfAttention, TransformerBlock

ATTENTIONS: dict[str, type[nn.Module]] = {"l2": L2Attention, "dot": DotAttention}
EPS = 1e-3
"""Of the self-modulated normalisation."""
OUTPUT_STD = 0.5
"""Of the generator's images at the start, about that of images."""
_LEAK, _GAIN = 0.2, math.sqrt(2.0)
_FREQUENCY = math.sqrt(4.5)


class SelfModulatedNorm(nn.Module):
    """Layer normalisation whose scale and shift come from a vector, (1 + gamma(w)) (h - mu) / sigma + beta(w).

    A `Normalise` of the transformer block, without a gate [lee2022vitgan, Eq. 13].

    Args:
        width: Channels of the tokens, and of the vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.scale, self.shift = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, tokens: Tensor, emb: Tensor) -> tuple[Tensor, None]:
        """`(B or 1, N, C)` and `(B, 1, C)` to `(B, N, C)`."""
        h = F.layer_norm(tokens, (self.width,), eps=EPS)
        return torch.addcmul(self.shift(emb), h, 1.0 + self.scale(emb)), None


class ViTGenerator(Generator):
    """A transformer from positions to patches, modulated by the latent vector.

    Args:
        shape: Of one image, `(C, H, W)`.
        width: Channels of a token, 384 in the paper.
        latent: Numbers of the latent vector.
        depth: Blocks; 4 at 32 pixels.
        heads: Attention heads; 6.
        patch: Side of the patches; 4 at 32 pixels.
        mapping: Layers between the latent vector and what modulates.

    Raises:
        ConfigError: Sides that the patch does not divide, heads that do not divide the width, or a value below 1.

    Differs: Attention is by dot products as in the paper; the published code has L2 attention, of the wrong sign and
        untied, and a spectral norm here. Weights start with variance 1 / fan-in: else the latent vector is invisible at
        the start, and training stalls.
    """

    centres: Tensor
    pixels: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 384,
        latent: int = 384,
        depth: int = 4,
        heads: int = 6,
        patch: int = 4,
        mapping: int = 8,
    ) -> None:
        super().__init__(shape, latent)
        require_patches(require_square(self.shape), patch)
        require_heads(width, heads)
        if min(depth, mapping) < 1:
            raise ConfigError(f"depth and mapping must be 1 or more; got {depth} and {mapping}.")
        self.width, self.depth, self.heads, self.patch = width, depth, heads, patch
        self.mapping = nn.ModuleList([_Mapping(latent if k == 0 else width, width) for k in range(mapping)])
        self.register_buffer("centres", _grid(self.shape[1] // patch), persistent=False)
        self.register_buffer("pixels", _grid(patch), persistent=False)
        self.positions = nn.Linear(2, width)
        self.blocks = nn.ModuleList(
            [
                TransformerBlock(
                    width, SelfAttention(width, heads), SelfModulatedNorm(width), SelfModulatedNorm(width)
                )
                for _ in range(depth)
            ]
        )
        self.norm = SelfModulatedNorm(width)
        self.fourier = nn.Linear(2, width)
        self.hidden = ModulatedLinear(width, width, width)
        self.colour = ModulatedLinear(width, self.shape[0], width, demodulate=False)
        preserve_variance(self)
        for layer in (self.positions, self.fourier):
            nn.init.uniform_(layer.weight, -_FREQUENCY, _FREQUENCY)
            nn.init.uniform_(layer.bias, -math.pi, math.pi)
        with torch.no_grad():  # the styles of the last layer are 1 plus a unit normal number
            self.colour.weight.mul_(OUTPUT_STD / _GAIN)

    def config(self) -> dict[str, Any]:
        """The constructor's values, ready for JSON."""
        return {
            "shape": list(self.shape),
            "width": self.width,
            "latent": self.latent,
            "depth": self.depth,
            "heads": self.heads,
            "patch": self.patch,
            "mapping": len(self.mapping),
        }

    def images(self, z: Tensor) -> Tensor:
        """Images of latent vectors."""
        w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.mapping:
            w = layer(w)
        w = w[:, None]
        tokens = torch.sin(self.positions(self.centres))[None].expand(len(z), -1, -1)
        for block in self.blocks:
            tokens = block(tokens, w)
        tokens, _ = self.norm(tokens, w)
        return self._assembled(self._painted(tokens.flatten(0, 1)), len(z))

    def _painted(self, tokens: Tensor) -> Tensor:
        """The pixels of the patch of each token, `(T, C)` to `(T, patch**2, channels)`."""
        h = torch.sin(self.fourier(self.pixels))
        h = _GAIN * F.leaky_relu(self.hidden(h, tokens), _LEAK)
        return cast(Tensor, self.colour(h, tokens))

    def _assembled(self, patches: Tensor, n: int) -> Tensor:
        """Patches, row by row of an image and pixels row by row of each, to images."""
        side, p = self.shape[1] // self.patch, self.patch
        grid = patches.reshape(n, side, side, p, p, -1)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(n, -1, side * p, side * p)


class ViTDiscriminator(nn.Module):
    """A transformer of overlapping patches whose class token gives the logit.

    Args:
        shape: Of one image, `(C, H, W)`.
        width: Channels of a token.
        depth: Blocks.
        heads: Attention heads.
        patch: Distance between patches.
        overlap: Pixels by which a patch is wider on each side; None: half a patch, so that windows are twice as wide.
        attention: "l2", or "dot" for comparison.
        keeps_norms: Whether each layer keeps the spectral norm of its weight at the start.

    Raises:
        ConfigError: Sides that the patch does not divide, heads that do not divide the width, or another bad value.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 384,
        depth: int = 4,
        heads: int = 6,
        patch: int = 4,
        overlap: int | None = None,
        attention: str = "l2",
        keeps_norms: bool = True,
    ) -> None:
        super().__init__()
        self.shape, self.width, self.depth, self.heads, self.patch = tuple(shape), width, depth, heads, patch
        self.overlap = patch // 2 if overlap is None else overlap
        self.attention, self.keeps_norms = attention, keeps_norms
        side = require_square(self.shape)
        require_patches(side, patch)
        require_heads(width, heads)
        if attention not in ATTENTIONS:
            raise ConfigError(f"attention must be {' or '.join(ATTENTIONS)}; got {attention!r}.")
        if depth < 1 or not 0 <= self.overlap <= patch:
            raise ConfigError(
                f"depth must be 1 or more, and the overlap 0 to {patch}, the patch; got {depth} and {self.overlap}."
            )
        window = patch + 2 * self.overlap
        self.embed = nn.Linear(self.shape[0] * window**2, width)
        self.class_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, width)))
        self.positions = nn.Parameter(nn.init.normal_(torch.empty(1, (side // patch) ** 2 + 1, width)))
        self.blocks = nn.ModuleList(
            [
                TransformerBlock(
                    width, ATTENTIONS[attention](width, heads), LayerNorm(width), LayerNorm(width)
                )
                for _ in range(depth)
            ]
        )
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, 1)
        preserve_variance(self)
        if keeps_norms:
            keep_spectral_norms(self)

    def config(self) -> dict[str, Any]:
        """The constructor's values, ready for JSON."""
        names = ("width", "depth", "heads", "patch", "overlap", "attention", "keeps_norms")
        return {"shape": list(self.shape), **{name: getattr(self, name) for name in names}}

    def windows(self, x: Tensor) -> Tensor:
        """The patches of images `(B, C, H, W)`, row by row, with zeros beyond the edge: `(B, N, C * window**2)`."""
        window = self.patch + 2 * self.overlap
        return F.unfold(x, window, padding=self.overlap, stride=self.patch).mT

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)` to logits `(B,)`."""
        tokens = self.embed(self.windows(x))
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        first, _ = self.norm(tokens[:, 0])
        return cast(Tensor, self.head(first).squeeze(1))


class ModulatedLinear(nn.Module):
    """A linear layer whose inputs are scaled by styles of a token, and whose outputs are scaled back to unit variance.

        W'_oc = W_oc s_c(y) / sqrt(sum_c (W_oc s_c(y))^2 + 1e-8)   [karras2020stylegan2, Eqs. 1, 3]

    Args:
        channels: Of the input.
        out: Of the output.
        width: Of the token.
        demodulate: Whether outputs are scaled back.
    """

    def __init__(self, channels: int, out: int, width: int, *, demodulate: bool = True) -> None:
        super().__init__()
        self.style = nn.Linear(width, channels)
        self.weight = nn.Parameter(torch.empty(out, channels))
        self.bias = nn.Parameter(torch.zeros(out))
        self.demodulate = demodulate

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """X `(P, channels)` of all tokens or `(T, P, channels)`, tokens `(T, width)`; to `(T, P, out)`."""
        style = 1.0 + self.style(tokens)
        y = (x * style[:, None]) @ self.weight.mT
        if self.demodulate:
            # of squares, so that no weight per token has to be kept in memory
            y = y * (style.square() @ self.weight.square().mT + 1e-8).rsqrt()[:, None]
        return cast(Tensor, y + self.bias)


class _Mapping(nn.Module):
    """A layer of the mapping network, whose weights learn a hundred times as slowly [karras2019stylegan, App. C]."""

    slowness = 0.01

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(out, channels), std=1 / self.slowness))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels)` to `(B, out)`."""
        weight = self.weight * (self.slowness / math.sqrt(self.weight.shape[1]))
        return _GAIN * F.leaky_relu(F.linear(x, weight, self.bias * self.slowness), _LEAK)


def preserve_variance(net: nn.Module) -> None:
    """Weights of N(0, 1 / fan-in), biases of 0: signals keep their variance from layer to layer."""
    for module in net.modules():
        if isinstance(module, nn.Linear | ModulatedLinear):
            nn.init.normal_(module.weight, 0.0, module.weight.shape[1] ** -0.5)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def require_patches(side: int, patch: int) -> None:
    """Raise ConfigError where patches do not tile an image."""
    if patch < 1 or side % patch:
        raise ConfigError(
            f"the side of the images must be a multiple of the patch; got {side} and {patch}; change the patch."
        )


def _grid(n: int) -> Tensor:
    """Centres of n x n cells of [-1, 1]^2 as (x, y), row by row, `(n * n, 2)`."""
    centres = (torch.arange(n) + 0.5) * (2.0 / n) - 1.0
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)
