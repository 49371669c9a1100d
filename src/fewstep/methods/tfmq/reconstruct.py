"""Quantise a network unit by unit, in one pass through it: weights rounded by reconstruction, ranges of inputs.

The pass takes all that was recorded of a plan twice, once through the units in floats and once through those already
quantised. Where it reaches a unit, the first half is the target, the second what the unit will be given, and it is
quantised there and then: the network is passed once, where reconstruction by blocks as published passes it twice for
every block [huang2024tfmq, Sec. 4.1; the blocks are those of BRECQ, li2021brecq].

Differs: later units see the quantised activations of earlier ones, which they are then fitted to make up for, too.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.diffusion.condition import Condition
from fewstep.methods.tfmq.calibration import Call
from fewstep.methods.tfmq.kept import Kept
from fewstep.methods.tfmq.ranges import Scope, Seen, looking_at, ranges_of
from fewstep.methods.tfmq.rounding import Rounding, learn
from fewstep.nets.quantised import Codes, Cursor, QuantisedLayer
from fewstep.rng import generator

log = logging.getLogger(__name__)
_ROWS = 128  # at once through a unit
_JUDGED = 512  # rows on which learned rounding must be better than the nearest

Unit = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a unit."""


@dataclass(frozen=True)
class Reconstruction:
    """How units are reconstructed; iterations 0 leaves all weights at the nearest integers."""

    weight_bits: int
    activation_bits: int
    iterations: int = 300
    lr: float = 1e-2
    batch_size: int = 32
    scope: Scope = "all"
    seed: int = 0


@dataclass
class Fitted:
    """What became of one unit: mean squared error, channels summed, with nearest and with learned rounding."""

    unit: str
    nearest: float
    learned: float

    @property
    def kept(self) -> bool:
        """Whether the learned rounding is used."""
        return self.learned < self.nearest


@dataclass
class Pass:
    """One pass through a network, in which its units are quantised as they are reached.

    Attributes:
        net: in floats, which stays as it is.
        quantised: its copy, whose `layers` have codes, and those of the time ranges.
        calls: number and inputs of each call of this network.
        n_calls: of the whole plan.
        frozen: layers whose codes stay.
        kept: where finished units are left for a later start.
        fitted: what became of the units that were reconstructed.
    """

    net: nn.Module
    quantised: nn.Module
    layers: Mapping[str, QuantisedLayer]
    cursor: Cursor
    calls: Sequence[tuple[int, Call]]
    n_calls: int
    how: Reconstruction
    kept: Kept
    frozen: frozenset[str] = frozenset()
    progress: Callable[[str], None] = lambda unit: None
    fitted: list[Fitted] = field(default_factory=list)

    def __post_init__(self) -> None:
        inside = tuple(self.net.units())  # type: ignore[operator]
        lone = [name for name in self.layers if not any(name.startswith(f"{unit}.") for unit in inside)]
        self.units = [unit for unit in (*inside, *lone) if self._layers_in(unit)]
        ends = torch.tensor([len(call.x) for _, call in self.calls]).cumsum(0).tolist()
        self.rows = [range(end - len(call.x), end) for end, (_, call) in zip(ends, self.calls, strict=True)]
        self.size = ends[-1]

    def run(self) -> None:
        """Quantise all units.
        Raises: RangeError: an activation is not finite.
        """
        x = torch.cat([call.x for _, call in self.calls])
        time = torch.cat([call.time for _, call in self.calls])
        conditions = [call.condition for _, call in self.calls]
        condition = None
        if conditions[0] is not None:
            condition = Condition.cat([c for c in conditions if c is not None] * 2)
        with torch.no_grad(), self._reached():
            self.quantised(torch.cat([x, x]), torch.cat([time, time]), condition)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Let the units call `_quantise` when the pass comes to them."""
        modules = [(name, self.quantised.get_submodule(name)) for name in self.units]
        for name, module in modules:
            module.forward = self._on_reaching(name, module)
        try:
            yield
        finally:
            for _, module in modules:
                del module.forward

    def _on_reaching(self, name: str, module: nn.Module) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            del module.forward  # the unit itself, while it is worked on
            try:
                return self._quantise(name, module, args, kwargs)
            finally:
                module.forward = forward

        return forward

    def _quantise(self, name: str, unit: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Quantise a unit from what has reached it, both halves; and let both go on, each its way."""
        exact, given = (self._half(args, kwargs, half) for half in (0, 1))
        target = self._outputs(self.net.get_submodule(name), exact)
        layers = self._layers_in(name)
        learns = {layer: path for layer, path in layers.items() if path not in self.frozen}
        if self.how.iterations and learns:
            with self._without_ranges(layers.values()):  # rows of all calls are mixed
                self._round(name, unit, learns, given, target)
        if self.how.activation_bits < 32:
            self._set_ranges(unit, layers, given)
        self.progress(name)
        return torch.cat([target, self._outputs(unit, given)])

    def _half(self, args: tuple[Any, ...], kwargs: dict[str, Any], half: int) -> Unit:
        part = slice(half * self.size, (half + 1) * self.size)

        def cut(value: Any) -> Any:
            is_batch = isinstance(value, Tensor) and value.ndim and len(value) == 2 * self.size
            return value[part] if is_batch else value

        return tuple(map(cut, args)), {key: cut(value) for key, value in kwargs.items()}

    def _of_rows(self, given: Unit, rows: slice | Tensor) -> Unit:
        def cut(value: Any) -> Any:
            return (
                value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == self.size else value
            )

        return tuple(map(cut, given[0])), {key: cut(value) for key, value in given[1].items()}

    def _parts(self) -> Iterator[tuple[int, slice]]:
        """Number of the call and rows of each part of the batch, in order."""
        for rows, (k, _) in zip(self.rows, self.calls, strict=True):
            for start in range(rows.start, rows.stop, _ROWS):
                yield k, slice(start, min(start + _ROWS, rows.stop))

    def _outputs(self, unit: nn.Module, given: Unit) -> Tensor:
        made = []
        for k, rows in self._parts():
            self.cursor.call = k
            args, kwargs = self._of_rows(given, rows)
            made.append(unit(*args, **kwargs))
        return torch.cat(made)

    def _layers_in(self, unit: str) -> dict[str, str]:
        """Quantised layers of a unit: name within it -> name in the network; of a lone layer itself "" -> its name."""
        if unit in self.layers:
            return {"": unit}
        return {name.removeprefix(f"{unit}."): name for name in self.layers if name.startswith(f"{unit}.")}

    @contextmanager
    def _without_ranges(self, paths: Iterable[str]) -> Iterator[None]:
        ranges = {path: self.layers[path].ranges for path in paths}
        for path in ranges:
            self.layers[path].ranges = None
        try:
            yield
        finally:
            for path, own in ranges.items():
                self.layers[path].ranges = own

    def _round(
        self, name: str, unit: nn.Module, learns: Mapping[str, str], given: Unit, target: Tensor
    ) -> None:
        """Learn which weights are rounded up, and keep that where it is better than the nearest integers."""
        nearest = {path: cast(Codes, self.layers[path].codes) for path in learns.values()}
        rounded = self.kept.read(name, nearest)
        if rounded is None:
            rounded = self._learned(name, unit, learns, given, target)
            self.kept.write(name, rounded)
        rows = torch.linspace(0, self.size - 1, min(_JUDGED, self.size), dtype=torch.float64).round().long()
        errors = []
        for codes in (nearest, rounded):
            for path, own in codes.items():
                self.layers[path].set_codes(own)
            errors.append(self._error(unit, given, target, rows))
        fitted = Fitted(name, *errors)
        if not fitted.kept:  # also where it is not a number
            log.warning("%s keeps its weights at the nearest integers: learned rounding is no better", name)
            for path, own in nearest.items():
                self.layers[path].set_codes(own)
        self.fitted.append(fitted)

    def _learned(
        self, name: str, unit: nn.Module, learns: Mapping[str, str], given: Unit, target: Tensor
    ) -> dict[str, Codes]:
        how, roundings = self.how, nn.ModuleDict()
        for path in learns.values():
            weight = cast(Tensor, self.net.get_submodule(path).weight)
            codes = cast(Codes, self.layers[path].codes)
            roundings[path.replace(".", "/")] = Rounding(weight, codes, how.weight_bits)

        def soft(path: str) -> Tensor:
            weight = cast(Rounding, roundings[path.replace(".", "/")]).soft()
            return weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight

        def losses(rows: Tensor) -> Tensor:
            weights = {f"{layer}.weight".lstrip("."): soft(path) for layer, path in learns.items()}
            args, kwargs = self._of_rows(given, rows)
            made = torch.func.functional_call(unit, weights, args, kwargs)
            return squared(made, target[rows])

        rng = generator(how.seed, "reconstruct", name)
        rows = [
            torch.randint(self.size, (min(how.batch_size, self.size),), generator=rng)
            for _ in range(how.iterations)
        ]
        with torch.enable_grad():
            learn(roundings, losses, rows, lr=how.lr)
        return {path: cast(Rounding, roundings[path.replace(".", "/")]).hard() for path in learns.values()}

    def _error(self, unit: nn.Module, given: Unit, target: Tensor, rows: Tensor) -> float:
        parts = []
        for part in torch.split(rows, _ROWS):
            args, kwargs = self._of_rows(given, part)
            parts.append(squared(unit(*args, **kwargs), target[part]))
        return float(torch.cat(parts).mean())

    def _set_ranges(self, unit: nn.Module, layers: Mapping[str, str], given: Unit) -> None:
        """Look at what enters each layer of a unit at each call, and choose its ranges, where it has none."""
        mine = {path: self.layers[path] for path in layers.values() if self.layers[path].ranges is None}
        with looking_at(mine, self.cursor) as seen:
            self._outputs(unit, given)
        for path, by_call in seen.items():
            looks = [Seen.joined(parts) for parts in by_call.values()]
            ranges = ranges_of(looks, self.how.activation_bits, per_call=self.how.scope == "all", exact=False)
            mine[path].ranges = ranges.among(list(by_call), self.n_calls)


def squared(made: Tensor, target: Tensor) -> Tensor:
    """Squared distance of each row, channels summed and places averaged, (B,)."""
    off = (made - target).pow(2)
    if off.ndim == 4:
        return off.sum(1).flatten(1).mean(1)
    return off.sum(-1).flatten(1).mean(1) if off.ndim > 2 else off.sum(1)
