"""The objective of patched diffusion: one block of 2 x 2 patches of each image, with and without collage."""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.schedule import Schedule
from fewstep.nets.patched import PatchedUNet, block_at, inner, join
from fewstep.train.losses import Loss, Network, NoisedBatch


class Patches:
    """The loss of a step [ding2024patchdm].

    Of each image a block of neighbouring grid patches is drawn. The loss is the squared error of the patch in its
    middle, decoded with the collage, and that of the four patches, decoded without, whose mean is over all of their
    pixels though those outside of the image are not counted, as in the official code.

    Args:
        tile: side of a patch, that of the network.
        pixels: the paper's ablation, which shifts pixels and no features: the second term alone, for blocks of grid
            patches and of patches half a patch off, with equal chance.

    Differs: A block is drawn for each image, not one for the whole batch, whose gradients would be correlated.
    """

    times = None

    def __init__(self, tile: int, *, pixels: bool = False) -> None:
        self.tile, self.pixels = tile, pixels

    def __call__(self, rng: torch.Generator, size: int) -> Loss:
        """The loss of a step, whose blocks are drawn from `rng`."""
        drawn = torch.rand(size, 3, generator=rng)

        def loss(network: Network, batch: NoisedBatch, condition: Condition | None = None) -> Tensor:
            of_batch = drawn if batch.rows is None else drawn[batch.rows]
            return self.of_blocks(network, batch, condition, self.corners(of_batch, batch.x_in.shape[-2:]))

        return loss

    def corners(self, drawn: Tensor, sides: tuple[int, int] | torch.Size) -> Tensor:
        """Row and column of the first patch of each block, `(B, 2)`, of uniform numbers `(B, 3)`.
        Raises: ConfigError: no patches half a patch off beside each other.
        """
        rows, columns = (side // self.tile for side in sides)
        of_grid = (drawn[:, :2] * torch.tensor([rows, columns])).floor()
        if not self.pixels:
            return of_grid
        if min(rows, columns) < 2:
            raise ConfigError(
                f"Shifts of pixels need images of 2 x 2 patches of {self.tile} or more; got {rows} x {columns}."
            )
        between = 0.5 + (drawn[:, :2] * torch.tensor([rows - 1, columns - 1])).floor()
        return torch.where(drawn[:, 2:] < 0.5, of_grid, between)

    def of_blocks(
        self, network: Network, batch: NoisedBatch, condition: Condition | None, corners: Tensor
    ) -> Tensor:
        """Both terms, `(B,)` float32, for blocks at the corners, `(B, 2)`."""
        five = network(batch.x_in, batch.time_in, condition, corners)
        target = block_at(batch.target, corners, self.tile)
        inside = block_at(torch.ones_like(batch.target[:, :1]), corners, self.tile)
        plain = batch._replace(target=target, weight=batch.weight * inside)
        of_plain = plain.loss(join(five[:, :4].flatten(0, 1), 2, 2))
        if self.pixels:
            return of_plain
        return of_plain + batch._replace(target=inner(target, self.tile // 2)).loss(five[:, 4])

    def config(self) -> dict[str, Any]:
        """Plain values that decide the result."""
        return {"type": "patchdm", "tile": self.tile, "pixels": self.pixels}


def objective(name: str, schedule: Schedule, prediction: str, weighting: str, net: nn.Module) -> Patches:
    """What `fewstep train --objective` makes of a name: patchdm, or patchdm-pixels, the ablation.
    Raises: ConfigError: a network of whole images.
    """
    if not isinstance(net, PatchedUNet):
        raise ConfigError(
            f"--objective {name} needs a network of patches, with --tile, the side of one; got a "
            f"{type(net).__name__} of whole images."
        )
    return Patches(net.tile, pixels=name == "patchdm-pixels")
