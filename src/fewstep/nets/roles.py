"""What part each layer plays in a network, as the network's class says: quantisation treats them by it.

A class that can be quantised has three methods: `roles`, `units` and `temporal` (see `HasRoles`).
"""

from collections.abc import Mapping
from typing import Literal, Protocol, get_args, runtime_checkable

from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition

Role = Literal["time_mlp", "time_proj", "first", "last", "shortcut", "resample", "attn", "body"]
ROLES: tuple[Role, ...] = get_args(Role)
TIME: tuple[Role, ...] = ("time_mlp", "time_proj")
"""The temporal information block: what the time goes through, and the image does not [huang2024tfmq]."""

_SUPPORTED = (nn.Conv2d, nn.Linear)
_WITHOUT_PRODUCTS = (nn.GroupNorm, nn.LayerNorm, nn.Embedding)
"""Layers whose parameters stay in floats: they multiply no matrices."""


@runtime_checkable
class HasRoles(Protocol):
    """A network of which each layer's part is known."""

    def roles(self) -> Mapping[str, Role]:
        """The role of every convolution and linear layer, by the name of the module."""

    def units(self) -> tuple[str, ...]:
        """The modules that are reconstructed as wholes, by name: residual blocks, transformer blocks."""

    def temporal(self, time: Tensor, condition: Condition | None = None) -> list[Tensor]:
        """What the layers of role `time_proj` give for some times, (B, D_i) each, without an image.

        Args: time: the network's own, (B,). condition: of each row, as far as it goes into the time's embedding.
        """


def roles_of(net: nn.Module | None, name: str) -> dict[str, Role]:
    """The roles of a network's layers, of which every one must be known.

    Args: name: of the model, for errors.
    Raises: ConfigError: the network's class has no roles, or some layers are unknown or of an unsupported kind.
    """
    if not isinstance(net, HasRoles):
        kind = "a function" if net is None else type(net).__name__
        layers = [] if net is None else [path for path, module in net.named_modules() if _multiplies(module)]
        raise ConfigError(
            f"Quantisation needs a network whose class says the role of each layer, but {name} is {kind}, with "
            f"{len(layers)} unknown layers{_few(layers)}; give its class the methods of fewstep.nets.roles.HasRoles."
        )
    found = dict(net.roles())
    known = {id(net.get_submodule(path)) for path in found}  # a module may have two names
    unknown = [
        path for path, module in net.named_modules() if id(module) not in known and _multiplies(module)
    ]
    if unknown:
        raise ConfigError(
            f"Every layer with weights must have a role, one of {', '.join(ROLES)}, but {len(unknown)} layers of "
            f"{name} have none{_few(unknown)}; name them in {type(net).__name__}.roles."
        )
    odd = [path for path in found if not isinstance(net.get_submodule(path), _SUPPORTED)]
    if odd:
        raise ConfigError(
            f"Quantised layers must be Conv2d or Linear, but {name} has {_few(odd)[2:]} of "
            f"{type(net.get_submodule(odd[0])).__name__}; leave their roles out of the quantised ones."
        )
    if not any(role == "time_proj" for role in found.values()):
        raise ConfigError(
            f"A quantised network must have layers of role time_proj, through which blocks see the time, but {name} "
            f"has none; name them in {type(net).__name__}.roles."
        )
    return found


def _multiplies(module: nn.Module) -> bool:
    own = any(p.ndim > 1 for p in module.parameters(recurse=False))
    return own and not isinstance(module, _WITHOUT_PRODUCTS)


def _few(names: list[str]) -> str:
    if not names:
        return ""
    more = "" if len(names) <= 4 else f" and {len(names) - 4} more"
    return f": {', '.join(names[:4])}{more}"
