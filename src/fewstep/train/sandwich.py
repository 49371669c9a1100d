"""Train one set of weights at several widths at once, by the sandwich rule [yu2019universally; yang2024ddsm]."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.nets.slim import Narrow, check_widths
from fewstep.nets.unet import UNet
from fewstep.train.losses import Loss, Network, Question


class Sandwich:
    """The loss of a step at the full width, the narrowest one, and one drawn from those between, added up.

    A narrow network learns from the truth and from the full network's answer to the same question, which has less
    noise: towards (1 - distil) target + distil answer.

    Args:
        net: The wide network.
        widths: Shares of its channels, the full one first.
        distil: Share of the full network's answer in what narrow networks learn, in [0, 1].

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

    def __call__(self, rng: torch.Generator) -> Loss:
        """The loss of a step, whose width between the outer ones is drawn from `rng`."""
        *between, last = range(len(self.narrow))
        chosen = [last]
        if between:
            chosen.append(int(torch.randint(len(between), (), generator=rng)))

        def loss(network: Network, asked: Question, condition: Condition | None) -> Tensor:
            answer = network(asked.fed, asked.time, condition)
            target = torch.lerp(asked.target, answer.detach().to(asked.target.dtype), self.distil)
            total = asked.loss(answer)
            for k in chosen:
                total = total + asked.loss(self.narrow[k](asked.fed, asked.time, condition), target)
            return total

        return loss

    def config(self) -> dict[str, Any]:
        """Plain values that decide the result."""
        return {"type": "sandwich", "widths": list(self.widths), "distil": self.distil}
