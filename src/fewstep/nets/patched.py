"""A U-Net that sees patches of an image only, and yet shows no seams between them: Patch-DM [ding2024patchdm].

An image of P x Q patches of side p is padded by p / 2 zeros and cut into (P + 1) x (Q + 1) *grid patches*, each of
which is encoded alone. The decoder makes the P x Q patches of the image itself, which lie half a patch off: their
features, at every level, are cut out of those of the four grid patches below them, the *collage*.

    h, s_l = Enc(x^(i, j), t, (i, j), g)        eps_hat = Dec(C(h), C(s_l), t, (i + 1/2, j + 1/2), g)

Sizes are those of the states that the network is given: pixels, or places of a latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition, Conditions
from fewstep.nets.unet import UNet, sinusoids

BLOCK = ((0, 0), (0, 1), (1, 0), (1, 1))
"""The grid patches of a block of 2 x 2, by row and column, in their order."""


def split(x: Tensor, side: int) -> Tensor:
    """Cut `(B, C, P * side, Q * side)` into patches `(B * P * Q, C, side, side)`, image by image and row by row."""
    b, c, height, width = x.shape
    cut = x.reshape(b, c, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(-1, c, side, side)


def join(patches: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `split`: `(B * rows * columns, C, s, s)` to `(B, C, rows * s, columns * s)`."""
    c, side = patches.shape[1:3]
    laid = patches.reshape(-1, rows, columns, c, side, side).permute(0, 3, 1, 4, 2, 5)
    return laid.reshape(-1, c, rows * side, columns * side)


def inner(x: Tensor, margin: int) -> Tensor:
    """`(..., H, W)` without a margin on all four sides."""
    return x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin]


def collage(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Maps of (rows + 1) x (columns + 1) neighbours, each image's, to those of rows x columns half a patch off.

    Args: maps: `(B * (rows + 1) * (columns + 1), C, s, s)`, s even.
    Returns: `(B * rows * columns, C, s, s)`; each is made of a quarter of each of four neighbours.
    """
    side = maps.shape[-1]
    return split(inner(join(maps, rows + 1, columns + 1), side // 2), side)


def block_at(images: Tensor, corners: Tensor, tile: int) -> Tensor:
    """The block of 2 x 2 patches of each image whose first one is at a corner; zeros outside of the image.

    Args: images: `(B, C, H, W)`. corners: `(B, 2)`, row and column in the grid, whole or between two. tile: of a patch.
    Returns: `(B, C, 2 * tile, 2 * tile)`.
    """
    padded = F.pad(images, [tile // 2] * 4)
    corners = (corners * tile).long().to(images.device)
    along = torch.arange(2 * tile, device=images.device)
    b = torch.arange(len(images), device=images.device)[:, None, None]
    rows, columns = (corners[:, :1] + along)[:, :, None], (corners[:, 1:] + along)[:, None, :]
    return padded[b, :, rows, columns].permute(0, 3, 1, 2)


class PatchedUNet(nn.Module):
    """A U-Net of patches with the collage between encoder and decoder; it takes images of any number of patches.

    Memory of a training step does not grow with the image: see `forward` with corners.

    Args:
        net: Arguments of the `UNet` of one patch, whose side is its `image_size`.

    Attributes:
        tile: Side of a patch.

    Raises:
        ConfigError: A side that cannot be halved once more at the lowest level, maps as conditions, or values that no
            U-Net can have.

    Differs: The class, where there is one, enters as the time does, by scale and shift, and is not a scale of its own;
        time, position and class are added up before each block's linear layer instead of being joined.
    """

    def __init__(self, net: Mapping[str, Any]) -> None:
        super().__init__()
        self.tile = int(net["image_size"])
        levels, square = len(net.get("multipliers", (1, 2))), int(net.get("patch", 1))
        factor = square * 2**levels
        if self.tile < factor or self.tile % factor:
            raise ConfigError(
                f"The side of a patch must be a multiple of {factor} for {levels} levels"
                f"{f' of squares of {square}' if square > 1 else ''}, so that features can be halved at the lowest "
                f"one; got {self.tile}."
            )
        if net.get("maps"):
            raise ConfigError(
                f"A network of patches takes classes and tokens as conditions, which all patches share; got maps, "
                f"{', '.join(net['maps'])}."
            )
        self.net = UNet(**net)
        width = self.net.time_out.out_features
        self.position_in = nn.Linear(2 * self.net.time_channels, width)
        self.position_out = nn.Linear(width, width)

    @property
    def n_classes(self) -> int:
        """Number of classes, as of its U-Net."""
        return self.net.n_classes

    @property
    def conditions(self) -> Conditions | None:
        """What the network takes, as its U-Net does; all patches of an image share it."""
        return self.net.conditions

    def condition_parts(self) -> tuple[str, ...]:
        """As of its U-Net."""
        return tuple(f"net.{name}" for name in self.net.condition_parts())

    def config(self) -> dict[str, Any]:
        """The constructor's values, ready for JSON: `PatchedUNet(**net.config())` has the same parameters."""
        return {"net": self.net.config()}

    def forward(
        self,
        x: Tensor,
        time: Tensor | float,
        condition: Condition | None = None,
        corners: Tensor | None = None,
        rows: int | None = None,
    ) -> Tensor:
        """The network's output.

        Args:
            x: `(B, in_channels, H, W)`, sides multiples of `tile`.
            time: `schedule.time_input(t)`: a number, `()`, or `(B,)`.
            condition: As `UNet.forward` takes it.
            corners: In training, `(B, 2)`: the row and column of the first of 2 x 2 patches of each image, which alone
                are looked at; of grid patches whole numbers, of patches of the image itself with a half.
            rows: Rows of patches that are decoded at once; None: all. Features of as many rows and one are in memory,
                so that with 1 memory grows with the width of the image alone. The output is the same.

        Returns:
            `(B, out_channels, H, W)`; with corners `(B, 5, out_channels, tile, tile)`: the four patches, decoded
            without collage, and the patch in their middle, decoded with it.

        Raises:
            ConfigError: Sides that are no multiples of the patch's, or a time per pixel.
        """
        emb = self._time(x, time, condition)
        if corners is not None:
            return self._block(x, corners, emb, condition)
        p, (height, columns) = self.tile, self.grid(x.shape[-2], x.shape[-1])
        at_once = height if rows is None else max(1, rows)
        padded = F.pad(x, [p // 2] * 4)
        made: list[Tensor] = []
        kept: list[Tensor] | None = None  # of the last row of grid patches, which the next rows need, too
        for first in range(0, height, at_once):
            last = min(first + at_once, height)  # the grid has one row more than the image
            top = first if kept is None else first + 1
            strip, places = padded[:, :, top * p : (last + 1) * p], _places(last + 1 - top, columns + 1, top)
            features = [_by_image(f, places.shape[1]) for f in self._encode(strip, places, emb, condition)]
            if kept is not None:
                features = [torch.cat([a, b], dim=1) for a, b in zip(kept, features, strict=True)]
            kept = [f[:, -columns - 1 :] for f in features] if last < height else None
            shifted = [collage(f.flatten(0, 1), last - first, columns) for f in features]
            out = self._decode(shifted, _places(last - first, columns, first + 0.5, 0.5), emb, condition)
            made.append(join(out, last - first, columns))
        return torch.cat(made, dim=2)

    def plain(
        self, x: Tensor, time: Tensor | float, condition: Condition | None = None, *, aligned: bool = False
    ) -> Tensor:
        """Each patch encoded and decoded alone, without collage: what shows seams; arguments as of `forward`.

        Args: aligned: take the patches of the image itself, at positions between those of the grid patches.
        """
        emb = self._time(x, time, condition)
        rows, columns = self.grid(x.shape[-2], x.shape[-1])
        if not aligned:
            x, rows, columns = F.pad(x, [self.tile // 2] * 4), rows + 1, columns + 1
        first = 0.5 if aligned else 0.0
        places = _places(rows, columns, first, first)
        features = self._encode(x, places, emb, condition)
        whole = join(self._decode(features, places, emb, condition), rows, columns)
        return whole if aligned else inner(whole, self.tile // 2)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches.
        Raises: ConfigError: sides that are no multiples of the patch's.
        """
        p = self.tile
        if height < p or width < p or height % p or width % p:
            nearest = [max(p, round(side / p) * p) for side in (height, width)]
            raise ConfigError(
                f"Sides must be multiples of the patch's, {p}; got {height} x {width}; the nearest size is "
                f"{nearest[0]} x {nearest[1]}."
            )
        return height // p, width // p

    def _time(self, x: Tensor, time: Tensor | float, condition: Condition | None) -> Tensor:
        """Time and class of each image, `(B, D)`."""
        emb = self.net.embed(time, condition, like=x)
        if emb.ndim > 2:
            raise ConfigError(
                "A network of patches takes one time for each image; got a time for each pixel."
            )
        return emb.expand(len(x), -1)

    def _of_patches(self, emb: Tensor, places: Tensor) -> Tensor:
        """Time, class and position of each patch, `(B * n, D)`, of places `(B or 1, n, 2)`."""
        waves = sinusoids(places.to(emb.device), self.net.time_channels // 2).flatten(-2)
        position = self.position_out(F.silu(self.position_in(waves.to(emb.dtype))))
        both: Tensor = emb[:, None] + position
        return both.flatten(0, 1)

    def _encode(self, x: Tensor, places: Tensor, emb: Tensor, condition: Condition | None) -> list[Tensor]:
        """The features of patches, each alone: of the middle, and those kept for the way up. x: `(B, C, H, W)`."""
        n, emb = places.shape[1], self._of_patches(emb, places)
        of_patches = self._shared(condition, n)
        patches = split(x, self.tile)
        h, skips = self.net.encode(patches, emb, of_patches)
        return [self.net.middle(h, emb, self.net.tokens(of_patches, like=patches)), *skips]

    def _decode(
        self, features: list[Tensor], places: Tensor, emb: Tensor, condition: Condition | None
    ) -> Tensor:
        h, *skips = features
        context = self.net.tokens(self._shared(condition, places.shape[1]), like=h)
        return self.net.decode(h, skips, self._of_patches(emb, places), context)

    def _shared(self, condition: Condition | None, n: int) -> Condition | None:
        """The condition of each image for its n patches."""
        if condition is None or not self.net.context:
            return condition  # the class is in the embedding
        return condition[torch.arange(len(condition)).repeat_interleave(n)]

    def _block(self, x: Tensor, corners: Tensor, emb: Tensor, condition: Condition | None) -> Tensor:
        self.grid(x.shape[-2], x.shape[-1])
        places = corners[:, None].float() + torch.tensor(BLOCK, device=corners.device)
        features = self._encode(block_at(x, corners, self.tile), places, emb, condition)
        five = [
            torch.cat([_by_image(f, 4), _by_image(collage(f, 1, 1), 1)], dim=1).flatten(0, 1)
            for f in features
        ]
        out = self._decode(five, torch.cat([places, places[:, :1] + 0.5], dim=1), emb, condition)
        return _by_image(out, 5)


def _by_image(patches: Tensor, n: int) -> Tensor:
    """`(B * n, ...)` as `(B, n, ...)`."""
    return patches.reshape(-1, n, *patches.shape[1:])


def _places(rows: int, columns: int, top: float = 0.0, left: float = 0.0) -> Tensor:
    """The position of each patch, `(1, rows * columns, 2)`, in patches from the first grid patch."""
    grid = torch.cartesian_prod(torch.arange(float(rows)), torch.arange(float(columns)))
    return (grid + torch.tensor([top, left]))[None]
