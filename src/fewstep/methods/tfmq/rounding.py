"""Scales of weights, and the learned rounding of AdaRound [nagel2020adaround] as [huang2024tfmq] uses it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fewstep.checks import DataError
from fewstep.nets.quantised import SMALLEST_SCALE, Codes, per_channel
from fewstep.train.descent import descend
from fewstep.train.world import World

Search = Literal["mse", "minmax"]
Scheme = Literal["symmetric", "affine"]

SHRINKS = 80  # factors 1, 0.99, ..., 0.21 on the range, of which the best is taken: the authors' code
POWER = 2.4  # of the error that scales are chosen by: the authors' code
STRETCH = (-0.1, 1.1)
FRACTION = 1e-4  # from 0 and 1, where the inverse of the stretched sigmoid would be steep
LAMBDA = 0.01  # weight of the regulariser: the authors' code
SOFT = 0.2  # share of the iterations without regulariser
BETA = (20.0, 2.0)


def weight_codes(weight: Tensor, bits: int, *, scheme: Scheme, search: Search = "mse") -> Codes:
    """Weights rounded to the nearest integers, by the scale of each output channel that loses least.

    Args: weight: float (out, ...). scheme: affine has a zero point of its own for each channel.
    Raises: DataError: a weight is not finite.
    """
    if not bool(weight.isfinite().all()):
        raise DataError("Weights to be quantised must be finite; they are not: train the model again.")
    flat, top = weight.detach().float().flatten(1), 2**bits - 1
    low, high = flat.amin(1).clamp(max=0), flat.amax(1).clamp(min=0)
    best, error = _codes(flat, low, high, top, scheme), torch.full_like(low, torch.inf)
    for i in range(SHRINKS if search == "mse" else 1):
        share = 1 - 0.01 * i
        codes = _codes(flat, share * low, share * high, top, scheme)
        off = (codes.weight() - flat).abs().pow(POWER).mean(1)
        better = off < error
        error = torch.where(better, off, error)
        best = Codes(
            *(
                torch.where(per_channel(better, new), new, old)
                for new, old in zip(_all(codes), _all(best), strict=True)
            )
        )
    return Codes(best.integers.reshape(weight.shape), best.scale, best.zero)


def _all(codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    return codes.integers, codes.scale, codes.zero


def _codes(flat: Tensor, low: Tensor, high: Tensor, top: int, scheme: Scheme) -> Codes:
    if scheme == "symmetric":
        scale = (torch.maximum(-low, high) / (top // 2)).clamp_min(SMALLEST_SCALE)
        zero = torch.full_like(scale, (top + 1) // 2)
    else:
        scale = ((high - low) / top).clamp_min(SMALLEST_SCALE)
        zero = (-low / scale).round().clamp(0, top)
    integers = ((flat / scale[:, None]).round() + zero[:, None]).clamp(0, top)
    return Codes(integers.to(torch.uint8), scale, zero.to(torch.uint8))


class Rounding(nn.Module):
    """Whether each weight is rounded down or up, as a number that can be learned.

    w = s (clamp(floor(w / s) + h(alpha) + z, 0, 2^bits - 1) - z), h(alpha) = clamp(1.2 sigmoid(alpha) - 0.1, 0, 1).
    """

    def __init__(self, weight: Tensor, codes: Codes, bits: int) -> None:
        super().__init__()
        self.top, self.codes = 2**bits - 1, codes
        self.scale = per_channel(codes.scale, weight)
        self.zero = per_channel(codes.zero.float(), weight)
        units = weight.detach().float() / self.scale
        self.floor = units.floor()
        low, high = STRETCH
        fraction = (units - self.floor).clamp(FRACTION, 1 - FRACTION)
        self.alpha = nn.Parameter(torch.logit((fraction - low) / (high - low)))

    def share(self) -> Tensor:
        """h(alpha): how far up each weight is rounded, in [0, 1]."""
        low, high = STRETCH
        return (self.alpha.sigmoid() * (high - low) + low).clamp(0, 1)

    def soft(self) -> Tensor:
        """The weights as they are by now, with gradients."""
        integers = (self.floor + self.share() + self.zero).clamp(0, self.top)
        return self.scale * (integers - self.zero)

    def hard(self) -> Codes:
        """The weights, each rounded to its nearer side."""
        up = (self.alpha.detach() >= 0).float()
        integers = (self.floor + up + self.zero).clamp(0, self.top)
        return Codes(integers.to(torch.uint8), self.codes.scale, self.codes.zero)

    def undecided(self, beta: float) -> Tensor:
        """The regulariser sum(1 - |2h - 1|^beta): 0 where every weight is decided."""
        return (1 - (2 * self.share() - 1).abs().pow(beta)).sum()


def beta_at(iteration: int, iterations: int) -> float | None:
    """Exponent of the regulariser at an iteration: none at first, then falling on a line, as in the authors' code."""
    done = (iteration / iterations - SOFT) / (1 - SOFT)
    return None if done < 0 else BETA[0] + (BETA[1] - BETA[0]) * done


def learn(
    roundings: nn.ModuleDict,
    losses: Callable[[Tensor], Tensor],
    rows: Sequence[Tensor],
    *,
    lr: float,
    progress: Callable[[Iterable[Tensor]], Iterable[Tensor]] = iter,
) -> None:
    """Descend in the roundings.

    Args: roundings: `Rounding`s, changed in place. losses: of rows (b,) to the loss of each, (b,). rows: of each
        iteration. lr: of Adam. progress: wraps the iterations.
    """
    optimiser: Optimizer = torch.optim.Adam(roundings.parameters(), lr=lr)
    for i, batch in enumerate(progress(rows)):
        beta = beta_at(i, len(rows))

        def loss(part: slice, batch: Tensor = batch, beta: float | None = beta) -> Tensor:
            found = losses(batch[part])
            if beta is None:
                return found
            terms = [one.undecided(beta) for one in roundings.values() if isinstance(one, Rounding)]
            return found + LAMBDA * torch.stack(terms).sum()

        descend(loss, roundings, optimiser, size=len(batch), world=World())
