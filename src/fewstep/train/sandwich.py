"""Train one set of weights at several widths at once, by the sandwich rule [yu2019universally; yang2024ddsm]."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.nets.slim import Narrow, check_widths
from fewstep.nets.unet import UNet
from fewstep.train.losses import Loss, Network, NoisedBatch


class Sandwich:
    """The loss of a step at the full width, the narrowest one, and one drawn from those between, added up.

    A narrow network learns from the data and, by distillation, from the full network's output for the same input,
    which has less noise: its target is (1 - distil) target + distil output.

    Args:
        net: The wide network.
        widths: Shares of its channels, the full one first.
        distil: Share of the full network's output in the target of narrow networks, in [0, 1].

    Raises:
        ConfigError: Widths that the network cannot have, or a share out of range.

    Differs: All widths see the same noised images, at one drawing of times and noise; the paper draws anew for each,
        and does not distil.
    """

    def __init__(self, net: UNet, widths: Sequence[float], *, distil: float = 0.0) -> None:
        if not 0.0 <= distil <= 1.0:
            raise ConfigError(f"distil must lie in [0, 1]; got {distil}.")
        self.widths, self.distil = check_widths(widths, net.channels), distil
        self.narrow = [Narrow(net, width) for width in self.widths[1:]]

    def __call__(self, rng: torch.Generator, size: int) -> Loss:
        """The loss of a step, whose width between the outer ones is drawn from `rng`."""
        *between, last = range(len(self.narrow))
        chosen = [last]
        if between:
            chosen.append(int(torch.randint(len(between), (), generator=rng)))

        def loss(network: Network, batch: NoisedBatch, condition: Condition | None) -> Tensor:
            output = network(batch.x_in, batch.time_in, condition)
            target = torch.lerp(batch.target, output.detach().to(batch.target.dtype), self.distil)
            total = batch.loss(output)
            for k in chosen:
                total = total + batch.loss(self.narrow[k](batch.x_in, batch.time_in, condition), target)
            return total

        return loss

    def config(self) -> dict[str, Any]:
        """Plain values that decide the result."""
        return {"type": "sandwich", "widths": list(self.widths), "distil": self.distil}
