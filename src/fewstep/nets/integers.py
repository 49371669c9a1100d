"""The integers of a quantised plan, as a safetensors file beside it, and the network that calculates with them.

The plan names the sha256 of the tensors, and the file's metadata the plan's hash: each belongs to one other.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep import files
from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.denoiser import Model
from fewstep.nets.quantised import Bits, Codes, Cursor, Ranges, with_quantised
from fewstep.nets.roles import roles_of

SCHEMA, FACTS = "fewstep.integers/1", "fewstep"
SUFFIX = ".safetensors"
_TIME_TOLERANCE = 1e-6  # relative; conditioning timesteps are stored in float64


@dataclass(frozen=True)
class Integers:
    """Everything that a plan's calls need beside the model's own weights.

    Attributes:
        bits: of weights and activations.
        times: conditioning timestep of each call, (K,).
        widths: index of the network's width at each call, (K,).
        codes: of the layers, by index of the width and name of the layer; the other layers stay floats.
        ranges: of their inputs, for all K calls; empty with 32 bits of activations.
        fingerprint: of the model.
    """

    bits: Bits
    times: tuple[float, ...]
    widths: tuple[int, ...]
    codes: Mapping[tuple[int, str], Codes]
    ranges: Mapping[tuple[int, str], Ranges] = field(default_factory=dict)
    fingerprint: str | None = None

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        found = {
            "times": torch.tensor(self.times, dtype=torch.float64),
            "widths": torch.tensor(self.widths, dtype=torch.int64),
        }
        for (width, layer), codes in self.codes.items():
            place = f"{width}/{layer}"
            packs = self.bits.weights <= 4
            found[f"{place}/integers"] = _packed(codes.integers) if packs else codes.integers.contiguous()
            found[f"{place}/scale"], found[f"{place}/zero"] = (
                codes.scale.contiguous(),
                codes.zero.contiguous(),
            )
        for (width, layer), ranges in self.ranges.items():
            found[f"{width}/{layer}/input_scale"] = ranges.scale.contiguous()
            found[f"{width}/{layer}/input_zero"] = torch.tensor(ranges.zero, dtype=torch.uint8)
        return found

    @cached_property
    def sha256(self) -> str:
        """Of the bits, the model's fingerprint and all tensors by name: what the plan names."""
        digest = hashlib.sha256(f"{self.bits} {self.fingerprint}".encode())
        for name, value in sorted(self._tensors.items()):
            digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        """Of the tensors."""
        return sum(value.numel() * value.element_size() for value in self._tensors.values())

    def save(self, path: Path, *, plan: str) -> None:
        """Write the file by rename; `plan` is the hash of the plan that it belongs to."""
        facts = {"schema": SCHEMA, "bits": str(self.bits), "plan": plan, "model": self.fingerprint}
        # one text, as the library writes several in any order
        with files.atomic_file(path) as temporary:
            save_file(self._tensors, temporary, metadata={FACTS: files.canonical_json(facts)})


def _packed(integers: Tensor) -> Tensor:
    """Two integers of 4 bits a byte, the earlier one low."""
    flat = integers.flatten()
    flat = torch.cat([flat, flat.new_zeros(len(flat) % 2)])
    return flat[::2] | (flat[1::2] << 4)


def _unpacked(packed: Tensor, shape: torch.Size) -> Tensor:
    both = torch.stack([packed & 15, packed >> 4], dim=1).flatten()
    return both[: math.prod(shape)].reshape(shape)


class IntegersFile:
    """A file of integers, which a network gives their shapes.

    Raises: DataError: it is missing, damaged or of another program.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                said = (file.metadata() or {}).get(FACTS, "{}")
                self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise DataError(
                f"{path} must stand beside the plan, whose integers it holds, but there is no such file; copy it there."
            ) from None
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"{path} must hold the integers of a plan, but it is damaged ({' '.join(str(error).split()):.200}); "
                "quantise again."
            ) from None
        facts = files.parse_json(said, f"the metadata of {path}")
        texts = isinstance(facts, dict) and all(isinstance(facts.get(name), str) for name in ("bits", "plan"))
        if not texts or facts.get("schema") != SCHEMA or not isinstance(facts.get("model"), str | None):
            raise DataError(
                f"{path} must hold the integers of a plan ({SCHEMA}), but does not; quantise again."
            )
        self.plan, self.fingerprint = facts["plan"], facts["model"]
        try:
            self.bits = Bits.parse(facts["bits"])
        except ConfigError as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, why: str) -> DataError:
        return DataError(f"{self.path} must hold the integers of a plan, but {why}; quantise again.")

    def _take(self, name: str, dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> Tensor:
        value = self.tensors.get(name)
        if value is None or value.dtype != dtype or (shape is not None and tuple(value.shape) != shape):
            said = "is missing" if value is None else f"is {value.dtype} {tuple(value.shape)}"
            raise self._damaged(f"{name} {said} where {dtype} {shape or ''} is expected")
        if value.is_floating_point() and not bool((value.isfinite() & (value > 0)).all()):
            raise self._damaged(f"{name} has numbers that are not positive")
        return value

    def of(self, model: Model) -> Integers:
        """The integers, in the shapes of a model's layers.

        Raises: ConfigError: they are of other weights. DataError: what the file holds does not fit.
        """
        if self.fingerprint != model.fingerprint:
            raise ConfigError(
                f"{self.path} is for the model with fingerprint {self.fingerprint or 'none'!s:.16}, but {model.name} "
                f"has {model.fingerprint or 'none'!s:.16}; quantise this model."
            )
        times = self._take("times", torch.float64)
        n = times.numel()
        widths = self._take("widths", torch.int64, (n,))
        if not n or not set(widths.tolist()) <= set(range(len(model.widths))):
            raise self._damaged(f"its calls have the widths {widths.tolist()}, of {len(model.widths)}")
        codes: dict[tuple[int, str], Codes] = {}
        ranges: dict[tuple[int, str], Ranges] = {}
        for width in sorted(set(widths.tolist())):
            net = model.module(width)
            for layer in roles_of(net, model.name):
                place = f"{width}/{layer}"
                if f"{place}/integers" not in self.tensors:
                    continue
                codes[width, layer] = self._codes(place, net.get_submodule(layer))
                if self.bits.activations < 32:
                    scale = self._take(f"{place}/input_scale", torch.float32, (n,))
                    zero = self._take(f"{place}/input_zero", torch.uint8, ())
                    ranges[width, layer] = Ranges(scale, int(zero), self.bits.activations)
        found = Integers(
            self.bits, tuple(times.tolist()), tuple(widths.tolist()), codes, ranges, self.fingerprint
        )
        if unknown := sorted(self.tensors.keys() - found._tensors.keys()):
            raise self._damaged(f"{unknown[0]} is of no layer of {model.name}")
        return found

    def _codes(self, place: str, layer: nn.Module) -> Codes:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        shape, out = layer.weight.shape, (layer.weight.shape[0],)
        if self.bits.weights <= 4:
            integers = _unpacked(
                self._take(f"{place}/integers", torch.uint8, (-(-shape.numel() // 2),)), shape
            )
        else:
            integers = self._take(f"{place}/integers", torch.uint8, tuple(shape))
        if int(integers.max()) >= 2**self.bits.weights:
            raise self._damaged(f"{place}/integers has numbers of more than {self.bits.weights} bits")
        scale = self._take(f"{place}/scale", torch.float32, out)
        return Codes(integers, scale, self._take(f"{place}/zero", torch.uint8, out))


def networks(integers: Integers, model: Model) -> Callable[[int], Callable[..., Tensor]]:
    """What to call at each call of the plan, by its number: the model's network with these integers."""

    @cache
    def at(width: int) -> tuple[nn.Module, Cursor]:
        return _network(integers, model, width)

    def of_call(call: int) -> Callable[..., Tensor]:
        net, cursor = at(integers.widths[call])

        def fn(x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
            cursor.call = call
            out: Tensor = net(x_t, model.schedule.time_input(t), condition)
            return out

        return fn

    return of_call


def network_at(integers: Integers, model: Model, call: int) -> nn.Module:
    """The network itself, as it is at one call."""
    net, cursor = _network(integers, model, integers.widths[call])
    cursor.call = call
    return net


def _network(integers: Integers, model: Model, width: int) -> tuple[nn.Module, Cursor]:
    layers = {layer: codes for (of, layer), codes in integers.codes.items() if of == width}
    net, quantised, cursor = with_quantised(model.module(width), layers)
    for layer, module in quantised.items():
        module.set_codes(layers[layer])
        module.ranges = integers.ranges.get((width, layer))
    return net.to(model.device), cursor


def require_times(integers: Integers, times: list[float], where: str) -> None:
    """Raise ConfigError where a plan's conditioning timesteps are not those that the integers were made for."""
    if len(times) != len(integers.times):
        raise ConfigError(
            f"{where} calls the network {len(times)} times, but its integers are for {len(integers.times)} calls; "
            "quantise the plan as it is."
        )
    for k, (t, known) in enumerate(zip(times, integers.times, strict=True)):
        if abs(t - known) > _TIME_TOLERANCE * max(abs(known), 1e-12):
            nearest = min(integers.times, key=lambda other: abs(other - t))
            raise ConfigError(
                f"{where} gives call {k} the timestep {t:.9g}, but its integers are for {known:.9g} there (the nearest "
                f"of all is {nearest:.9g}); quantise the plan as it is."
            )
