"""A plan's network as integers: from a recipe to integers, and how far they are from floats."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.condition import LABEL
from fewstep.methods.tfmq.calibration import Call, record
from fewstep.methods.tfmq.kept import Kept
from fewstep.methods.tfmq.ranges import Scope
from fewstep.methods.tfmq.reconstruct import Fitted, Pass, Reconstruction
from fewstep.methods.tfmq.rounding import Scheme, Search, weight_codes
from fewstep.methods.tfmq.temporal import (
    Drift,
    reconstruct_temporal,
    set_temporal_ranges,
    temporal_drift,
    times_of,
)
from fewstep.nets.integers import Integers
from fewstep.nets.quantised import SMALLEST_SCALE, Bits, Codes, QuantisedLayer, Ranges, with_quantised
from fewstep.nets.roles import TIME, Role, roles_of
from fewstep.sampling.plan import Plan
from fewstep.sampling.task import Task

Method = Literal["naive", "block", "tfmq", "table"]
"""naive: nearest integers. block: reconstruction, where layers of the time are rounded within their blocks. tfmq: the
temporal information block first, and ranges of each call. table: as tfmq, with the features of the plan's times in
floats, which are a table of as many rows as the plan has calls."""

MOST_COLLAPSED = 0.05  # share of layers whose range may be of no width


@dataclass(frozen=True)
class Recipe:
    """How a plan is quantised; the fields are those of the settings of `fewstep quantize`.

    Attributes:
        scheme: of weights; auto is affine where the difference to the zero point fits into 8 bits, as below 8 bits.
        keep: roles of layers that stay floats.
    """

    bits: Bits
    method: Method = "tfmq"
    scope: Scope = "all"
    scheme: Literal["auto", "symmetric", "affine"] = "auto"
    search: Search = "mse"
    keep: tuple[Role, ...] = ("first", "last")
    iterations: int = 300
    temporal_iterations: int = 500
    lr: float = 1e-2
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scheme == "affine" and self.bits.weights == 8 and self.bits.activations < 32:
            raise ConfigError(
                "weight_scheme must be symmetric or auto for weights of 8 bits with quantised activations, as integer "
                "kernels multiply 8 bits with sign; got affine."
            )

    @property
    def _scheme(self) -> Scheme:
        if self.scheme != "auto":
            return self.scheme
        return "symmetric" if self.bits.weights == 8 else "affine"

    @property
    def _scope(self) -> Scope:
        return "none" if self.method in ("naive", "block") else self.scope

    def names(self, roles: dict[str, Role]) -> list[str]:
        """The layers that become integers."""
        keep = {*self.keep, *(TIME if self.method == "table" else ())}
        return [name for name, role in roles.items() if role not in keep]


@dataclass(frozen=True)
class Report:
    """What a quantisation has to say.

    Attributes:
        drift: of the temporal features, by index of the width; nothing to say of each other beyond one network.
        calls: number of the call of each row of a drift.
        fitted: units that were reconstructed.
        collapsed: layers whose input has no width at some call.
        layers: quantised ones, and all.
    """

    drift: dict[int, Drift]
    calls: dict[int, tuple[int, ...]]
    fitted: tuple[Fitted, ...]
    collapsed: tuple[str, ...]
    layers: tuple[int, int]

    def as_json(self) -> dict[str, Any]:
        """For the plan's provenance."""
        return {
            "temporal": [
                {
                    "width": w,
                    "calls": list(self.calls[w]),
                    "cosine": list(d.cosine),
                    "nearest": list(d.nearest),
                }
                for w, d in self.drift.items()
            ],
            "units": [asdict(fitted) | {"kept": fitted.kept} for fitted in self.fitted],
            "collapsed": list(self.collapsed),
            "layers": list(self.layers),
        }


def quantise(
    task: Task,
    plan: Plan,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    kept: Kept | None = None,
    calls: Sequence[Call] | None = None,
    progress: Callable[[str, Iterable[Any]], Iterable[Any]] = lambda what, steps: steps,
) -> tuple[Integers, Report]:
    """Quantise the network that a plan calls, at every width that it calls it at.

    Args:
        task: model, guidance and batch size; its network stays as it is.
        plan: in floats.
        recipe: how.
        seeds: of the noises along whose trajectories ranges and roundings are chosen.
        kept: where finished parts are left, and read at a later start.
        calls: what `record` gives for these seeds, where it is there already.
        progress: wraps the steps of a part, given what is done.

    Raises:
        ConfigError: the network's layers are unknown, or the plan is quantised already.
        DataError: weights or activations that cannot be quantised.
    """
    if plan.integers is not None or any(node.quant for node in plan.nodes):
        raise ConfigError(
            f"{plan.name or 'The plan'} must be one in floats, but has bits already; give its parent."
        )
    model, kept = task.model, kept or Kept()
    roles_of(model.module(0), model.name)
    calls = record(task, plan, seeds) if calls is None else calls
    codes: dict[tuple[int, str], Codes] = {}
    ranges: dict[tuple[int, str], Ranges] = {}
    drift: dict[int, Drift] = {}
    numbers: dict[int, tuple[int, ...]] = {}
    fitted: list[Fitted] = []
    total = 0
    for width in sorted({call.width for call in calls}):
        here = [(k, call) for k, call in enumerate(calls) if call.width == width]
        work = _Work(task, recipe, width, here, len(calls), kept.of(recipe, width), progress)
        work.run()
        codes |= {(width, name): layer.codes for name, layer in work.layers.items() if layer.codes}
        ranges |= {(width, name): layer.ranges for name, layer in work.layers.items() if layer.ranges}
        drift[width], numbers[width] = work.drift, work.rows
        fitted += work.fitted
        total += len(work.roles)
    integers = Integers(
        recipe.bits,
        tuple(call.t for call in calls),
        tuple(call.width for call in calls),
        codes,
        ranges,
        model.fingerprint,
    )
    collapsed = tuple(
        f"{w}/{name}" for (w, name), own in ranges.items() if float(own.scale.min()) <= SMALLEST_SCALE
    )
    if len(collapsed) > MOST_COLLAPSED * len(ranges):
        raise DataError(
            f"Activations must have a range, but those of {len(collapsed)} of {len(ranges)} layers are constant "
            f"(first: {collapsed[0]}); check the model's weights."
        )
    return integers, Report(drift, numbers, tuple(fitted), collapsed, (len(codes), total))


class _Work:
    """The quantisation of the network at one width."""

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        width: int,
        calls: Sequence[tuple[int, Call]],
        n_calls: int,
        kept: Kept,
        progress: Callable[[str, Iterable[Any]], Iterable[Any]],
    ) -> None:
        self.recipe, self.calls, self.n_calls, self.kept, self.progress = (
            recipe,
            calls,
            n_calls,
            kept,
            progress,
        )
        self.net: nn.Module = task.model.module(width)
        self.roles = roles_of(self.net, task.model.name)
        names = recipe.names(self.roles)
        self.quantised, self.layers, self.cursor = with_quantised(self.net, dict.fromkeys(names))
        conditions = task.model.conditions
        entry = None if conditions is None else conditions.entries.get(LABEL)
        n_classes = None if entry is None else _n_classes(conditions)
        self.times = times_of(calls, n_classes, seed=recipe.seed)
        self.rows = tuple(self.times.call.tolist())
        self.fitted: list[Fitted] = []

    def run(self) -> None:
        recipe = self.recipe
        for name, layer in self.layers.items():
            try:
                layer.set_codes(
                    weight_codes(
                        layer.weight, recipe.bits.weights, scheme=recipe._scheme, search=recipe.search
                    )
                )
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
        frozen = self._temporal() if recipe.method == "tfmq" else frozenset[str]()
        if recipe.bits.activations < 32:
            set_temporal_ranges(
                self.quantised,
                self._temporal_layers,
                self.cursor,
                self.times,
                bits=recipe.bits.activations,
                scope=recipe._scope,
                n_calls=self.n_calls,
            )
        units = Pass(
            self.net,
            self.quantised,
            self.layers,
            self.cursor,
            self.calls,
            self.n_calls,
            Reconstruction(
                recipe.bits.weights,
                recipe.bits.activations,
                0 if recipe.method == "naive" else recipe.iterations,
                recipe.lr,
                recipe.batch_size,
                recipe._scope,
                recipe.seed,
            ),
            self.kept,
            frozen,
        )
        bar = iter(self.progress("reconstruct", range(len(units.units))))
        next(bar, None)
        units.progress = lambda unit: next(bar, None)
        units.run()
        next(bar, None)
        self.fitted = units.fitted
        self.drift = temporal_drift(self.net, self.quantised, self.cursor, self.times)

    @property
    def _temporal_layers(self) -> dict[str, QuantisedLayer]:
        return {name: layer for name, layer in self.layers.items() if self.roles[name] in TIME}

    def _temporal(self) -> frozenset[str]:
        """Round the temporal information block, and freeze it."""
        layers = self._temporal_layers
        nearest = {name: layer.codes for name, layer in layers.items() if layer.codes is not None}
        rounded = self.kept.read("temporal", nearest)
        if rounded is None:
            reconstruct_temporal(
                self.net,
                self.quantised,
                layers,
                self.times,
                bits=self.recipe.bits.weights,
                iterations=self.recipe.temporal_iterations,
                lr=self.recipe.lr,
                progress=lambda steps: self.progress("temporal", steps),
            )
            rounded = {name: layer.codes for name, layer in layers.items() if layer.codes is not None}
            self.kept.write("temporal", rounded)
        for name, layer in layers.items():
            layer.set_codes(rounded[name])
        return frozenset(layers)


def _n_classes(conditions: Any) -> int:
    """Classes of a model's conditions: the null condition has the label after the last."""
    from fewstep.diffusion.condition import null_of

    null = null_of(conditions, 1)
    if null is None:
        raise ConfigError(
            "A model with classes must have a null condition to be quantised; it has none, so that its labels are "
            "unknown."
        )
    return int(null.values[LABEL][0])
