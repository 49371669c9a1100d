"""Temporal-information-aware reconstruction, and how far the features of the time are from those of floats.

The temporal information block, the time's embedding with every block's projection of it, maps finitely many times to
features; its weights are rounded jointly, on all of them at once [huang2024tfmq, Eq. 10 and 11].
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import LABEL, Condition
from fewstep.methods.tfmq.calibration import Call
from fewstep.methods.tfmq.ranges import Scope, Seen, looking_at, ranges_of
from fewstep.methods.tfmq.rounding import Rounding, learn
from fewstep.nets.quantised import Cursor, QuantisedLayer
from fewstep.nets.roles import HasRoles
from fewstep.rng import generator

MOST_ROWS = 4096  # pairs of time and class; of more a part is drawn


@dataclass(frozen=True)
class Times:
    """Everything that the temporal information block is ever given.

    Attributes: time: (R,). condition: of each, with class labels. call: number of the call that each belongs to, (R,).
    """

    time: Tensor
    condition: Condition | None
    call: Tensor


def times_of(calls: Sequence[tuple[int, Call]], n_classes: int | None, *, seed: int) -> Times:
    """Each call's time, with every class and no class where the network has classes.

    Args: calls: number and inputs of each. n_classes: None for a network without a class embedding. seed: of the draw
        where there are more than `MOST_ROWS`.
    """
    numbers = torch.tensor([k for k, _ in calls])
    time = torch.stack([call.time[0] for _, call in calls])
    if n_classes is None:
        return Times(time, None, numbers)
    labels = torch.arange(n_classes + 1, device=time.device)
    rows = torch.cartesian_prod(torch.arange(len(calls)), labels.cpu())
    if len(rows) > MOST_ROWS:
        rows = rows[torch.randperm(len(rows), generator=generator(seed, "classes"))[:MOST_ROWS].sort().values]
    condition = Condition({LABEL: rows[:, 1].to(time.device)})
    return Times(time[rows[:, 0]], condition, numbers[rows[:, 0]])


class Temporal(nn.Module):
    """The features of times alone, as a module whose weights can be exchanged."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        if not isinstance(net, HasRoles):
            raise ConfigError(f"{type(net).__name__} must have the methods of fewstep.nets.roles.HasRoles.")
        self.net = net

    def forward(self, time: Tensor, condition: Condition | None) -> list[Tensor]:
        """Of every block, (R, D_i)."""
        return cast(HasRoles, self.net).temporal(time, condition)


def reconstruct_temporal(
    net: nn.Module,
    quantised: nn.Module,
    layers: dict[str, QuantisedLayer],
    times: Times,
    *,
    bits: int,
    iterations: int,
    lr: float,
    progress: Callable[[Iterable[Tensor]], Iterable[Tensor]] = iter,
) -> None:
    """Round the weights of the temporal information block so that the features of all blocks stay as they are.

    Loss: sum over blocks of the squared distance, channels summed, averaged over times; full batch.

    Args: net: in floats. quantised: whose `layers`, those of the block, have codes, which are replaced.
    """
    with torch.no_grad():
        targets = Temporal(net)(times.time, times.condition)
    block = Temporal(quantised)
    weights = {name: net.get_submodule(name).weight for name in layers}
    roundings = nn.ModuleDict()
    for name, layer in layers.items():
        assert layer.codes is not None
        roundings[name.replace(".", "/")] = Rounding(cast(Tensor, weights[name]), layer.codes, bits)

    def losses(rows: Tensor) -> Tensor:
        soft = {f"net.{n.replace('/', '.')}.weight": cast(Rounding, r).soft() for n, r in roundings.items()}
        condition = None if times.condition is None else times.condition[rows]
        made = torch.func.functional_call(block, soft, (times.time[rows], condition))
        terms = [(a - b[rows]).pow(2).sum(1) for a, b in zip(made, targets, strict=True)]
        return torch.stack(terms).sum(0)

    everything = torch.arange(len(times.time))
    learn(roundings, losses, [everything] * iterations, lr=lr, progress=progress)
    for name, layer in layers.items():
        layer.set_codes(cast(Rounding, roundings[name.replace(".", "/")]).hard())


def set_temporal_ranges(
    quantised: nn.Module,
    layers: dict[str, QuantisedLayer],
    cursor: Cursor,
    times: Times,
    *,
    bits: int,
    scope: Scope,
    n_calls: int,
) -> None:
    """Choose the ranges of the temporal information block from everything that it is ever given.

    With ranges of each call, its own are from the least to the largest value: there are no others.
    """
    block, calls = Temporal(quantised), sorted(set(times.call.tolist()))
    with torch.no_grad(), looking_at(layers, cursor) as seen:
        for call in calls:
            cursor.call = call
            rows = times.call == call
            block(times.time[rows], None if times.condition is None else times.condition[rows])
    for path, by_call in seen.items():
        looks = [Seen.joined(by_call[call]) for call in calls]
        each = scope != "none"
        layers[path].ranges = ranges_of(looks, bits, per_call=each, exact=each).among(calls, n_calls)


@dataclass(frozen=True)
class Drift:
    """How far the features of each call are from those in floats.

    Attributes: cosine: mean over blocks of 1 - cos, of each row of times. nearest: row whose features in floats are
        nearest to each row's quantised ones, by the mean cosine.
    """

    cosine: tuple[float, ...]
    nearest: tuple[int, ...]


def temporal_drift(net: nn.Module, quantised: nn.Module, cursor: Cursor, times: Times) -> Drift:
    """Compare the features of times in floats and in integers, each with the ranges of its own call."""
    with torch.no_grad():
        exact = Temporal(net)(times.time, times.condition)
        block, rows = Temporal(quantised), []
        for i, call in enumerate(times.call.tolist()):
            cursor.call = call
            condition = None if times.condition is None else times.condition[i : i + 1]
            rows.append(block(times.time[i : i + 1], condition))
        made = [torch.cat([row[j] for row in rows]) for j in range(len(exact))]
        # (R, R): of integers by row, of floats by column
        similar = torch.stack(
            [
                F.normalize(a.double(), dim=1) @ F.normalize(b.double(), dim=1).T
                for a, b in zip(made, exact, strict=True)
            ]
        ).mean(0)
    return Drift(tuple((1 - similar.diagonal()).tolist()), tuple(similar.argmax(1).tolist()))
