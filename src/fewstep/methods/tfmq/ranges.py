"""Ranges of activations: finite-set calibration, one scale per network call [huang2024tfmq, Sec. 4.2].

Differs: the zero point of a layer is one for all calls, so that one integer graph serves them all; the paper has one
per call, which takes a graph per call.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.checks import DataError
from fewstep.nets.quantised import SMALLEST_SCALE, Cursor, QuantisedLayer, Ranges

Scope = Literal["all", "tib", "none"]
SHRINKS, LEAST = 24, 0.3  # factors on the range, from 1 to the least
BINS = 1024  # of the histograms that ranges are chosen by: a sample would miss the rare large values
POWER = 2.4
ZEROS = 8  # zero points that are tried, about


class RangeError(DataError):
    """Activations from which no range follows."""


@dataclass(frozen=True)
class Seen:
    """What is kept of the values that enter a layer at one call: the ends, and a histogram.

    Attributes: values: middles of the bins, (n,). counts: float32 (n,).
    """

    low: float
    high: float
    values: Tensor
    counts: Tensor

    @classmethod
    def of(cls, values: Tensor, *, where: str, call: int) -> Self:
        """Look at some values.
        Raises: RangeError: one of them is not finite. `where` and `call` say in the message which ones.
        """
        low, high = float(values.min()), float(values.max())
        if not math.isfinite(low) or not math.isfinite(high):
            bad = int((~values.isfinite()).sum())
            raise RangeError(
                f"Activations must be finite to be quantised, but {bad} of {values.numel()} that enter {where} at call "
                f"{call} are not; check the model in floats with fewstep sample."
            )
        if low == high:
            return cls(low, high, torch.full((BINS,), low), torch.full((BINS,), values.numel() / BINS))
        counts = torch.histc(values.float(), BINS, low, high).cpu()
        middles = low + (torch.arange(BINS) + 0.5) * ((high - low) / BINS)
        return cls(low, high, middles, counts)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """What was seen in several looks at one call."""
        return cls(
            min(part.low for part in parts),
            max(part.high for part in parts),
            torch.cat([part.values for part in parts]),
            torch.cat([part.counts for part in parts]),
        )


@contextmanager
def looking_at(
    layers: Mapping[str, QuantisedLayer], cursor: Cursor
) -> Iterator[dict[str, dict[int, list[Seen]]]]:
    """Note what enters layers while the network is called: layer -> number of the call -> looks."""
    seen: dict[str, dict[int, list[Seen]]] = {path: {} for path in layers}

    def look(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            looks = seen[path].setdefault(cursor.call, [])
            looks.append(Seen.of(inputs[0], where=path, call=cursor.call))

        return hook

    handles = [layer.register_forward_pre_hook(look(path)) for path, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def ranges_of(seen: Sequence[Seen], bits: int, *, per_call: bool, exact: bool) -> Ranges:
    """The ranges of one layer's input.

    Args:
        seen: of each call.
        bits: of the integers.
        per_call: one scale each; else one for all.
        exact: from the least to the largest value, where all there can be are given; else by the least error.
    """
    low, high = torch.tensor([one.low for one in seen]), torch.tensor([one.high for one in seen])
    n = len(seen)
    if per_call:
        length = max(len(one.values) for one in seen)
        values, counts = (
            torch.stack([F.pad(v, (0, length - len(v))) for v in of])
            for of in ([one.values for one in seen], [one.counts for one in seen])
        )
    else:
        low, high = low.min()[None], high.max()[None]
        values, counts = (
            torch.cat(of)[None] for of in zip(*((s.values, s.counts) for s in seen), strict=True)
        )
    low, high, top = low.clamp(max=0), high.clamp(min=0), 2**bits - 1
    if exact:
        zero = _shared_zero(low, high, top)
        scale = _scales(low, high, zero, top)
    else:
        scale, zero = _searched(values, counts / counts.sum(1, keepdim=True), low, high, top)
    return Ranges(scale.expand(n).clone(), zero, bits)


def _scales(low: Tensor, high: Tensor, zero: int, top: int) -> Tensor:
    """The least scale of each call with which its range fits; at an end without levels, with which one level does."""
    below, above = -low / max(zero, 1), high / max(top - zero, 1)
    return torch.maximum(below, above).clamp_min(SMALLEST_SCALE).float()


def _shared_zero(low: Tensor, high: Tensor, top: int) -> int:
    """The zero point with which the scales have to grow least, on the whole."""
    span = (high - low).clamp_min(SMALLEST_SCALE)
    return min(
        range(top + 1), key=lambda zero: float((_scales(low, high, zero, top) * top / span).log().sum())
    )


def _searched(values: Tensor, share: Tensor, low: Tensor, high: Tensor, top: int) -> tuple[Tensor, int]:
    """Scales and zero point of least error |x - Q(x)|^2.4, relative to each call's own mean of |x|^2.4.

    Args: values: (K, n). share: of all values that each stands for, (K, n).
    """
    power = (values.abs().pow(POWER) * share).sum(1).clamp_min(1e-30)
    factors = torch.linspace(1, LEAST, SHRINKS)
    best, chosen = torch.inf, (_scales(low, high, 0, top), 0)
    for zero in _zeros(low, high, top):
        base = _scales(low, high, zero, top)
        errors = torch.stack([_error(values, share, base * factor, zero, top) for factor in factors])
        least = errors.min(0)
        total = float((least.values / power).sum())
        if total < best:
            best, chosen = total, (base * factors[least.indices], zero)
    return chosen[0].clamp_min(SMALLEST_SCALE), chosen[1]


def _zeros(low: Tensor, high: Tensor, top: int) -> list[int]:
    """Zero points worth trying: those of the calls themselves, the shared one, and some between."""
    own = (-low / (high - low).clamp_min(SMALLEST_SCALE) * top).round().clamp(0, top)
    between = torch.linspace(float(own.min()), float(own.max()), min(ZEROS // 2, len(own))).round()
    found = {*own[:: max(1, 2 * len(own) // ZEROS)].int().tolist(), *between.int().tolist()}
    return sorted({*found, _shared_zero(low, high, top)})


def _error(values: Tensor, share: Tensor, scale: Tensor, zero: int, top: int) -> Tensor:
    """Mean error of each call, (K,)."""
    integers = (values / scale[:, None]).round_().add_(zero).clamp_(0, top)
    off = integers.sub_(zero).mul_(scale[:, None]).sub_(values).abs_()
    return off.pow_(POWER).mul_(share).sum(1)
