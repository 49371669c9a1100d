"""Low-rank adaptation: weights stay as they are, and a product of two small factors is learned beside them.

    W + B A,    A of rank r from normal noise, B from zero        [hu2022lora, Eq. 3]

For a convolution, A is one to r channels and B one of 1 x 1 back, whose product is one convolution again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fewstep.checks import ConfigError
from fewstep.nets.roles import TIME, Role, roles_of


class LowRank(nn.Module):
    """Adds B A to a weight, as many numbers a row as a kernel has.

    Args:
        weight: `(out, in, ...)`.
        rank: Of the factors; the largest possible where that is less.
        rng: Of A, whose standard deviation is 1 / rank.
    """

    def __init__(self, weight: Tensor, rank: int, *, rng: torch.Generator) -> None:
        super().__init__()
        rank = min(rank, most_rank(weight))
        size = weight[0].numel()
        self.a = nn.Parameter((torch.randn(rank, size, generator=rng) / rank).to(weight))
        self.b = nn.Parameter(weight.new_zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The sum, in the weight's shape."""
        return weight + (self.b @ self.a).reshape(weight.shape)


def most_rank(weight: Tensor) -> int:
    """The largest rank that a weight, `(out, in, ...)`, can have as a matrix."""
    return min(len(weight), weight[0].numel())


def adapt(
    net: nn.Module, *, rank: int, roles: Sequence[Role], rng: torch.Generator, name: str = "the network"
) -> None:
    """Give the layers of some roles a product to learn; the layers of the time learn in full, all others stay.

    Args:
        net: Whose class says the role of each layer; changed in place.
        rank: Of the products, with a factor of 1 before them.
        roles: Of the layers.
        rng: Of the factors.
        name: What errors call the network.

    Raises:
        ConfigError: A role that no layer has, a rank that none of these layers can have, or a network without roles.
    """
    known = roles_of(net, name)
    if absent := sorted(set(roles) - set(known.values())):
        raise ConfigError(
            f"Roles of adapted layers must be among those of {name}, {', '.join(sorted(set(known.values())))}; got "
            f"{', '.join(absent)}, which none of its layers has."
        )
    chosen = [path for path, role in known.items() if role in roles]
    most = max((most_rank(_weight(net, path)) for path in chosen), default=0)
    if not 1 <= rank <= most:
        raise ConfigError(
            f"The rank of adapted layers must be 1 to {most}, the most that one of {', '.join(roles) or 'no role'} in "
            f"{name} can have; got {rank}."
        )
    net.requires_grad_(False)
    for path in chosen:
        layer = net.get_submodule(path)
        parametrize.register_parametrization(layer, "weight", LowRank(_weight(net, path), rank, rng=rng))
    for path, role in known.items():
        if role in TIME:
            net.get_submodule(path).requires_grad_(True)


def merge(net: nn.Module) -> None:
    """Write the sums into the weights; what `adapt` added is gone."""
    for layer in list(net.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _weight(net: nn.Module, path: str) -> Tensor:
    weight = net.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return weight
