"""Ranges of activations: finite-set calibration, one scale per network call [huang2024tfmq, Sec. 4.2].

Differs: the zero point of a layer is one for all calls, so that one integer graph serves them all; the paper has one
per call, which takes a graph per call.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from fewstep.checks import DataError
from fewstep.nets.quantised import SMALLEST_SCALE, Ranges

Scope = Literal["all", "tib", "none"]
SHRINKS = 24  # factors on the range, from 1 to 0.3
SAMPLE = 4096  # values of a call that a range is chosen by, beside the least and the largest
POWER = 2.4
ZEROS = 8  # zero points that are tried, about


class RangeError(DataError):
    """Activations from which no range follows."""


@dataclass(frozen=True)
class Seen:
    """What is kept of the values that enter a layer at one call: the ends, and some of them, (SAMPLE,)."""

    low: float
    high: float
    sample: Tensor

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
        flat = values.flatten()
        rows = torch.linspace(0, len(flat) - 1, SAMPLE, dtype=torch.float64).round().long()
        return cls(low, high, flat[rows.to(flat.device)].float().cpu())

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """What was seen in several looks at one call."""
        if len(parts) == 1:
            return parts[0]
        sample = torch.cat([part.sample for part in parts])
        rows = torch.linspace(0, len(sample) - 1, SAMPLE, dtype=torch.float64).round().long()
        return cls(min(part.low for part in parts), max(part.high for part in parts), sample[rows])


def ranges_of(seen: Sequence[Seen], bits: int, *, per_call: bool, exact: bool) -> Ranges:
    """The ranges of one layer's input.

    Args:
        seen: of each call.
        per_call: one scale each; else one for all.
        exact: from the least to the largest value, where all there can be are given; else by the least error.
    """
    low, high = torch.tensor([one.low for one in seen]), torch.tensor([one.high for one in seen])
    sample, n = torch.stack([one.sample for one in seen]), len(seen)
    if not per_call:
        low, high, sample = low.min()[None], high.max()[None], sample.reshape(1, -1)
    low, high, top = low.clamp(max=0), high.clamp(min=0), 2**bits - 1
    if exact:
        zero = _shared_zero(low, high, top)
        scale = _scales(low, high, zero, top)
    else:
        scale, zero = _searched(sample, low, high, top)
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


def _searched(sample: Tensor, low: Tensor, high: Tensor, top: int) -> tuple[Tensor, int]:
    """Scales and zero point of least error |x - Q(x)|^2.4, relative to each call's own."""
    power = sample.abs().pow(POWER).mean(1).clamp_min(1e-30)
    shares = torch.linspace(1, 0.3, SHRINKS)
    best, chosen = torch.inf, (_scales(low, high, 0, top), 0)
    for zero in _zeros(low, high, top):
        base = _scales(low, high, zero, top)
        errors = torch.stack([_error(sample, base * share, zero, top) for share in shares])  # (shrinks, K)
        least = errors.min(0)
        total = float((least.values / power).sum())
        if total < best:
            best, chosen = total, (base * shares[least.indices], zero)
    return chosen[0].clamp_min(SMALLEST_SCALE), chosen[1]


def _zeros(low: Tensor, high: Tensor, top: int) -> list[int]:
    """Zero points worth trying: those of the calls themselves, the shared one, and some between."""
    own = (-low / (high - low).clamp_min(SMALLEST_SCALE) * top).round().clamp(0, top)
    between = torch.linspace(float(own.min()), float(own.max()), min(ZEROS // 2, len(own))).round()
    found = {*own[:: max(1, 2 * len(own) // ZEROS)].int().tolist(), *between.int().tolist()}
    return sorted({*found, _shared_zero(low, high, top)})


def _error(sample: Tensor, scale: Tensor, zero: int, top: int) -> Tensor:
    """Mean error of each call, (K,)."""
    integers = (sample / scale[:, None]).round_().add_(zero).clamp_(0, top)
    return integers.sub_(zero).mul_(scale[:, None]).sub_(sample).abs_().pow_(POWER).mean(1)
