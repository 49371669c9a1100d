"""The sampling plan: which network calls to make, and how to combine them, as one value and one JSON file.

Nodes are the points where the state is known, steps go from an earlier node to a later one. Every
deterministic multistep sampler is such a plan [liu2024usf]; a stochastic step adds one noise amplitude.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from fewstep.checks import ConfigError
from fewstep.files import canonical_json, read_json, sha256_text

SCHEMA = "fewstep.plan/1"
"""Of what a plan is made of, of which its identity is the hash."""
SCHEMA_2 = "fewstep.plan/2"
"""Of its file, which has the compiled rows, too: `fewstep.sampling.document`."""
EVALS = ("net", "afs_zero", "afs_mean", "none")
PREDS = ("eps", "x0")
SCALES = ("none", "bh1", "bh2", "linear", "const")
MODES = ("pseudo", "implicit")
CONVERT_AT = ("step", "tau")
MIN_GAP = 1e-3  # nats of log-SNR; closer nodes make the derivative estimates ill-conditioned

Json = dict[str, Any]
T = TypeVar("T")


def _one_of(value: object, allowed: Sequence[str], where: str) -> None:
    if value not in allowed:
        raise ConfigError(f"{where} must be one of {', '.join(allowed)}; got {value!r}.")


@dataclass(frozen=True)
class Scale:
    """Factor R on a derivative's term: 1, bh1 or bh2 [zhao2023unipc], 1 + value*h, or value itself."""

    kind: str = "none"
    value: float | None = None

    def __post_init__(self) -> None:
        _one_of(self.kind, SCALES, "scale.kind")
        if (self.kind in ("linear", "const")) != (self.value is not None):
            raise ConfigError(
                f"scale.value must be a number for the kinds linear and const and absent for the others; "
                f"got kind {self.kind} with value {self.value}."
            )


@dataclass(frozen=True)
class Derivative:
    """Estimate of one derivative of the prediction in log-SNR, from the start node and `points`."""

    points: tuple[int, ...]
    scale: Scale = Scale()


@dataclass(frozen=True)
class Raw:
    """The step written out: x_end = A * x_start + sum of weight * f_node over `c` = ((node, weight), ...)."""

    A: float
    c: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Corrector:
    """Redo the step with the new node's prediction; `implicit` then calls the network once more."""

    mode: str
    deriv: tuple[Derivative, ...]

    def __post_init__(self) -> None:
        _one_of(self.mode, MODES, "corr.mode")

    @property
    def order(self) -> int:
        """Terms of the Taylor expansion."""
        return len(self.deriv) + 1


@dataclass(frozen=True)
class Step:
    """One update from node `start` to node `end`; `deriv` holds the estimates of f', f'', ...

    Attributes:
        pred: the prediction whose Taylor expansion is integrated, eps or x0.
        raw: the coefficients themselves, instead of `deriv`.
        eta: 0 deterministic; up to 1 (ancestral) for stochastic steps, which have order 1.
    """

    start: int
    end: int
    pred: str
    deriv: tuple[Derivative, ...] = ()
    raw: Raw | None = None
    corr: Corrector | None = None
    eta: float = 0.0

    def __post_init__(self) -> None:
        _one_of(self.pred, PREDS, f"pred of step {self.start}->{self.end}")

    @property
    def order(self) -> int:
        """Terms of the Taylor expansion (of a raw step: predictions combined)."""
        return len(self.deriv) + 1 if self.raw is None else len(self.raw.c)


@dataclass(frozen=True)
class Node:
    """A point of the grid.

    Attributes:
        t: time in the schedule's unit (EDM: sigma).
        lambda_: log(alpha/sigma) in nats, the authority on where the node is; infinite at clean data.
        eval: net, afs_zero or afs_mean (an analytic first step, no network call), none (no call).
        t_cond: conditioning timestep of the network instead of t, None for t itself.
        eps_scale: factor on the predicted noise.
        width: index of the sub-network, None for the full network.
        quant: bit setting such as w4a8, None for floats.
    """

    t: float
    lambda_: float
    eval: str = "net"
    t_cond: float | None = None
    eps_scale: float = 1.0
    width: int | None = None
    quant: str | None = None

    def __post_init__(self) -> None:
        _one_of(self.eval, EVALS, f"eval of the node at t={self.t}")


@dataclass(frozen=True)
class Plan:
    """A sampler for one noise schedule, checked when it is made: a plan that exists can be executed.

    Attributes:
        schedule: configuration of the noise schedule that the grid lives on.
        name: for people, and of its file; no part of its identity.
        clip: bound on |x0| applied to the result, None for no bound.
        skip_scale: factors on the U-Net's skip connections.
        guidance: classifier-free guidance scale the plan was made for.
        fingerprint: sha256 of the weights the plan was made for, None for any model.
        integers: sha256 of the integers that calls with `quant` are made with (`fewstep.nets.integers`), None without.
        inverse: nodes go from data to noise, as `fewstep.sampling.inverse` makes them; such plans have no file.
        convert_at: with t_cond, whether an output is converted at the node's time (step) or at t_cond (tau).
        provenance: where the plan came from, no part of its identity; keys and their meaning are below.

    Provenance is JSON with these keys, of which a known sampler has `preset` and a plan derived from others `parents`;
    more may be added:

        preset: name of the known sampler, a key of `fewstep.sampling.presets.PRESETS`; aligned ones keep it.
        grid: its spacing, or how tables call the grid.
        sampler: how tables call the plan, where that is not the preset: `searched`, `ddim+aligned`, ...
        generator: name of the generator that it samples in one call.
        parents: hashes of the plans that it was derived from; none where a search built it from the space alone.
        call: of a text-to-image pipeline, what it was called with besides: guidance, size, ...
        prompts: digests of the prompts that had a part in finding it, refused when images are judged.
        seeds: purpose -> first and last seed of images that had a part in finding it; refused when images are judged.
        found, objective: of a searched plan, the candidate that won, and what it was chosen by, with its value.
        stepaware: of a plan with searched widths, these, their cost, and their error.
        align: of a plan that an alignment has tried, whether or not it moved: the record of the alignment.
        composed: what the final comparison measured.
        quantize: of a quantised plan, how it was quantised, and how far features and images are from those in floats.
    """

    schedule: Mapping[str, Any] = field(hash=False)
    nodes: tuple[Node, ...]
    steps: tuple[Step, ...]
    name: str = ""
    clip: float | None = None
    skip_scale: tuple[float, ...] | None = None
    guidance: float | None = None
    fingerprint: str | None = None
    convert_at: str = "step"
    integers: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)
    inverse: bool = False

    def __post_init__(self) -> None:
        _one_of(self.convert_at, CONVERT_AT, "model.convert_at")
        _check_nodes(self.nodes, self.inverse)
        _check_steps(self.nodes, self.steps)
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"final.clip must be positive or null; got {self.clip}.")
        _check_name(self.name)

    @property
    def to_zero(self) -> bool:
        """Whether the last node is clean data, sigma = 0."""
        return math.isinf(self.nodes[-1].lambda_)

    @property
    def stochastic(self) -> bool:
        """Whether any step draws noise."""
        return any(step.eta > 0 for step in self.steps)

    @property
    def sampler(self) -> str:
        """What the plan is called in tables: how it was made, and not from how many steps or on which grid."""
        return str(self.provenance.get("sampler") or self.provenance.get("preset") or self.name)

    @property
    def uses_sub_networks(self) -> bool:
        """Whether any call uses the network at less than its full width."""
        return any(node.width for node in self.nodes)

    @property
    def changes_network(self) -> bool:
        """Whether any call needs the network in other bits or with scaled skip connections."""
        return self.skip_scale is not None or any(node.quant is not None for node in self.nodes)

    @property
    def quant_bits(self) -> str | None:
        """Bits of its calls, such as w8a8; None for floats. Those of the first call with some."""
        return next((node.quant for node in self.nodes if node.quant is not None), None)

    @property
    def nfe(self) -> int:
        """Network evaluations per image: one per `net` node, and one per implicit re-evaluation."""
        implicit = sum(step.corr is not None and step.corr.mode == "implicit" for step in self.steps)
        return sum(node.eval == "net" for node in self.nodes) + implicit

    @property
    def depth(self) -> int:
        """Network evaluations of the longest chain in which each waits for the one before.

        It is less than `nfe` where some can be made side by side, as in EPD [zhu2025epd].
        """
        state, seen = {0: 0}, {0: int(self.nodes[0].eval == "net")}
        for step in self.steps:
            used = {step.start} if step.raw is None else {m for m, weight in step.raw.c if weight != 0}
            used |= {m for derivative in step.deriv for m in derivative.points}
            end = step.end
            state[end] = max(state[step.start], *(seen[m] for m in used), 0)
            seen[end] = state[end] + (self.nodes[end].eval == "net")
            if step.corr is not None:
                state[end] = seen[end]
                seen[end] += step.corr.mode == "implicit"
        return state[len(self.nodes) - 1]

    @property
    def hash(self) -> str:
        """Identity: sha256 of the canonical JSON without name, provenance and compiled coefficients."""
        document = self.to_json()
        for key in ("name", "provenance"):
            del document[key]
        return sha256_text(canonical_json(document))

    def to_json(self) -> Json:
        """What the plan is made of, the document of schema `fewstep.plan/1`."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "nfe": self.nfe,
            "model": {
                "fingerprint": self.fingerprint,
                "convert_at": self.convert_at,
                **({} if self.integers is None else {"integers": self.integers}),
            },
            "noise_schedule": dict(self.schedule),
            "nodes": [_node_to_json(node) for node in self.nodes],
            "steps": [_step_to_json(step) for step in self.steps],
            "final": {"to_zero": self.to_zero, "clip": self.clip},
            "skip_scale": None if self.skip_scale is None else list(self.skip_scale),
            "guidance": self.guidance,
            "provenance": dict(self.provenance),
            **({"inverse": True} if self.inverse else {}),
        }

    def with_node(self, index: int, **changes: Any) -> "Plan":
        """A copy with fields of one node changed, such as `with_node(0, eval="afs_mean")`."""
        return replace(self, nodes=_replaced(self.nodes, index, **changes))

    def with_step(self, index: int, **changes: Any) -> "Plan":
        """A copy with fields of one step changed."""
        return replace(self, steps=_replaced(self.steps, index, **changes))


def load_plan(path: str | Path) -> Plan:
    """Read a plan file.
    Raises: DataError: not a JSON file. ConfigError: a field is unknown, missing or wrong.
    """
    try:
        return plan_from_json(read_json(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def plan_from_json(document: Any) -> Plan:
    """The plan of a document of schema `fewstep.plan/1` or 2; `compiled` is derived, so it is not read.
    Raises: ConfigError: a field is unknown, missing or wrong, or the plan cannot be executed.
    """
    optional = ("name", "nfe", "depth", "model", "final", "skip_scale", "guidance", "provenance", "compiled")
    top = _object(document, "plan", ("schema", "noise_schedule", "nodes", "steps"), optional)
    _one_of(top["schema"], (SCHEMA, SCHEMA_2), "schema")
    model = _object(top.get("model") or {}, "model", (), ("fingerprint", "convert_at", "integers"))
    final = _object(top.get("final") or {}, "final", (), ("to_zero", "clip"))
    skip = top.get("skip_scale")
    plan = Plan(
        schedule=_mapping(top["noise_schedule"], "noise_schedule"),
        nodes=tuple(_node_from_json(v, f"nodes[{i}]") for i, v in enumerate(_list(top["nodes"], "nodes"))),
        steps=tuple(_step_from_json(v, f"steps[{i}]") for i, v in enumerate(_list(top["steps"], "steps"))),
        name=_text(top.get("name", ""), "name"),
        clip=_optional_number(final.get("clip"), "final.clip"),
        skip_scale=None
        if skip is None
        else tuple(_number(v, "skip_scale") for v in _list(skip, "skip_scale")),
        guidance=_optional_number(top.get("guidance"), "guidance"),
        fingerprint=_optional_text(model.get("fingerprint"), "model.fingerprint"),
        convert_at=_text(model.get("convert_at", "step"), "model.convert_at"),
        integers=_optional_text(model.get("integers"), "model.integers"),
        provenance=_provenance(top.get("provenance") or {}),
    )
    for where, said, is_so in (
        ("nfe", top.get("nfe"), plan.nfe),
        ("depth", top.get("depth"), plan.depth),
        ("final.to_zero", final.get("to_zero"), plan.to_zero),
    ):
        if said is not None and said != is_so:
            raise ConfigError(f"{where} must agree with nodes and steps, which give {is_so}; got {said}.")
    return plan


def network_nodes(plan: Plan) -> list[int]:
    """Indices of the nodes at which the network is called, in order."""
    return [i for i, node in enumerate(plan.nodes) if node.eval == "net"]


def require_no_parallel_calls(plan: Plan, where: str) -> None:
    """Raise ConfigError where a plan has calls to be made side by side, which `where` cannot."""
    if plan.depth < plan.nfe:
        raise ConfigError(
            f"{where} makes one call after another, so depth must be nfe; {plan.name or 'the plan'} has {plan.nfe} "
            f"calls of depth {plan.depth}; sample it here, or take a plan without calls side by side."
        )


def widths_of(plan: Plan) -> tuple[int, ...]:
    """Index of the network's width at each call, 0 for the full one."""
    return tuple(plan.nodes[i].width or 0 for i in network_nodes(plan))


def require_distinct_plans(plans: Iterable[Plan]) -> None:
    """Raise ConfigError where plans could not stand in one folder, by name."""
    names = [one.name for one in plans]
    if len(set(names)) < len(names):
        raise ConfigError(f"Plans must differ in name, got {', '.join(names)}; rename one.")


# Validation


def _check_name(name: str) -> None:
    """Plans are written to folders as files of their names, which must not lead elsewhere."""
    if not name.isprintable() or name.startswith(".") or len(name) > 200 or set(name) & set("/\\"):
        raise ConfigError(
            "name must do as the name of a file: at most 200 printable characters, no slash, no dot in front; "
            f"got {name!r:.60}."
        )


def _check_nodes(nodes: tuple[Node, ...], inverse: bool) -> None:
    if len(nodes) < 2:
        raise ConfigError(f"nodes must hold at least a start and an end; got {len(nodes)}.")
    if math.isinf(nodes[0].lambda_):
        raise ConfigError(
            f"nodes[0].lambda must be finite; got {nodes[0].lambda_}; start at a time with noise."
        )
    for i, (node, following) in enumerate(zip(nodes[:-1], nodes[1:], strict=True)):
        gap = following.lambda_ - node.lambda_
        if not (-gap if inverse else gap) >= MIN_GAP:
            raise ConfigError(
                f"nodes[{i + 1}].lambda must exceed that of nodes[{i}] by at least {MIN_GAP}; "
                f"got {node.lambda_:.6g} then {following.lambda_:.6g}; order the grid from noise to data."
                if not inverse
                else f"nodes[{i + 1}].lambda of an inverse plan must be {MIN_GAP} or more below that of nodes[{i}]; "
                f"got {node.lambda_:.6g} then {following.lambda_:.6g}."
            )
        if node.eval.startswith("afs") and i > 0:
            raise ConfigError(f"nodes[{i}].eval may be {node.eval} at node 0 only; use net or none.")
    if nodes[-1].eval != "none":
        raise ConfigError(
            f"nodes[{len(nodes) - 1}].eval must be none, as no step uses the last node; got {nodes[-1].eval}."
        )


def _check_steps(nodes: tuple[Node, ...], steps: tuple[Step, ...]) -> None:
    if len(steps) != len(nodes) - 1:
        raise ConfigError(f"steps must be one fewer than nodes ({len(nodes) - 1}); got {len(steps)}.")
    for i, step in enumerate(steps):
        if step.end != i + 1 or not 0 <= step.start < step.end:
            raise ConfigError(
                f"steps[{i}] must go from an earlier node to node {i + 1}; got {step.start} -> {step.end}."
            )
        known = {m for m in range(i + 1) if nodes[m].eval != "none"}
        _check_step(step, known, f"steps[{i}]")
        if math.isinf(nodes[step.end].lambda_) and step.deriv:
            raise ConfigError(f"steps[{i}] ends at sigma = 0, so its order must be 1; got {step.order}.")
        if step.corr is not None:
            if i == len(steps) - 1:
                raise ConfigError(
                    f"steps[{i}].corr must be null: the last node is not evaluated and cannot correct it."
                )
            if nodes[step.end].eval != "net":
                raise ConfigError(f"steps[{i}].corr needs nodes[{step.end}].eval to be net.")
            _check_derivatives(step.corr.deriv, step.start, known | {step.end}, f"steps[{i}].corr")


def _check_step(step: Step, known: set[int], where: str) -> None:
    if not 0 <= step.eta <= 1:
        raise ConfigError(f"{where}.eta must lie in [0, 1]; got {step.eta}.")
    if step.eta > 0 and (step.deriv or step.raw or step.corr):
        raise ConfigError(
            f"{where}.eta may be positive on plain order-1 steps only; drop deriv, raw and corr."
        )
    if step.raw is None:
        _check_derivatives(step.deriv, step.start, known, where)
        return
    if step.deriv or step.corr:
        raise ConfigError(f"{where} must have either raw or deriv and corr; got both.")
    nodes = [node for node, _ in step.raw.c]
    if len(set(nodes)) != len(nodes) or not set(nodes) <= known:
        raise ConfigError(
            f"{where}.raw.c must name evaluated nodes once each ({sorted(known)}); got {nodes}."
        )


def _check_derivatives(deriv: tuple[Derivative, ...], start: int, known: set[int], where: str) -> None:
    if start not in known:
        raise ConfigError(f"{where} starts at node {start}, which must be evaluated (eval net or afs).")
    usable = known - {start}
    for k, derivative in enumerate(deriv, start=1):
        points = derivative.points
        if len(set(points)) != len(points) or not set(points) <= usable:
            raise ConfigError(
                f"{where}.deriv[{k - 1}].points must be different evaluated nodes other than the start "
                f"({sorted(usable)}); got {list(points)}."
            )
        if len(points) < k:
            raise ConfigError(
                f"{where}.deriv[{k - 1}].points must be {k} nodes or more for derivative {k}; "
                f"got {len(points)}."
            )


# JSON, one pair of functions per record


def _node_to_json(node: Node) -> Json:
    return {
        "t": float(node.t),
        "lambda": None if math.isinf(node.lambda_) else float(node.lambda_),
        "eval": node.eval,
        "t_cond": None if node.t_cond is None else float(node.t_cond),
        "eps_scale": float(node.eps_scale),
        "width": node.width,
        "quant": node.quant,
    }


def _node_from_json(value: Any, where: str) -> Node:
    found = _object(value, where, ("t", "lambda"), ("eval", "t_cond", "eps_scale", "width", "quant"))
    width = found.get("width")
    return Node(
        t=_number(found["t"], f"{where}.t"),
        lambda_=math.inf if found["lambda"] is None else _number(found["lambda"], f"{where}.lambda"),
        eval=_text(found.get("eval", "net"), f"{where}.eval"),
        t_cond=_optional_number(found.get("t_cond"), f"{where}.t_cond"),
        eps_scale=_number(found.get("eps_scale", 1.0), f"{where}.eps_scale"),
        width=None if width is None else _integer(width, f"{where}.width"),
        quant=_optional_text(found.get("quant"), f"{where}.quant"),
    )


def _step_to_json(step: Step) -> Json:
    document: Json = {"from": step.start, "to": step.end, "pred": step.pred, "eta": float(step.eta)}
    if step.raw is not None:
        weights = {str(node): float(weight) for node, weight in step.raw.c}
        return document | {"raw": {"A": float(step.raw.A), "c": weights}}
    corr = step.corr and {
        "mode": step.corr.mode,
        "order": step.corr.order,
        "deriv": [_derivative_to_json(d) for d in step.corr.deriv],
    }
    return document | {
        "order": step.order,
        "deriv": [_derivative_to_json(d) for d in step.deriv],
        "corr": corr,
    }


def _step_from_json(value: Any, where: str) -> Step:
    is_raw = isinstance(value, dict) and "raw" in value
    kind = ("raw",) if is_raw else ("order", "deriv")
    found = _object(value, where, ("from", "to", "pred", *kind), ("eta",) if is_raw else ("eta", "corr"))
    corr = found.get("corr")
    return Step(
        start=_integer(found["from"], f"{where}.from"),
        end=_integer(found["to"], f"{where}.to"),
        pred=_text(found["pred"], f"{where}.pred"),
        deriv=() if is_raw else _derivatives_from_json(found, where),
        raw=_raw_from_json(found["raw"], f"{where}.raw") if is_raw else None,
        corr=None if corr is None else _corrector_from_json(corr, f"{where}.corr"),
        eta=_number(found.get("eta", 0.0), f"{where}.eta"),
    )


def _raw_from_json(value: Any, where: str) -> Raw:
    found = _object(value, where, ("A", "c"))
    weights = []
    for key, weight in _mapping(found["c"], f"{where}.c").items():
        if not key.isdecimal():
            raise ConfigError(f"{where}.c must be keyed by node numbers such as 0; got {key!r}.")
        weights.append((int(key), _number(weight, f"{where}.c[{key}]")))
    return Raw(A=_number(found["A"], f"{where}.A"), c=tuple(sorted(weights)))


def _corrector_from_json(value: Any, where: str) -> Corrector:
    found = _object(value, where, ("mode", "order", "deriv"))
    return Corrector(mode=_text(found["mode"], f"{where}.mode"), deriv=_derivatives_from_json(found, where))


def _derivative_to_json(derivative: Derivative) -> Json:
    scale: Json = {"kind": derivative.scale.kind}
    if derivative.scale.value is not None:
        scale["value"] = float(derivative.scale.value)
    return {"points": list(derivative.points), "scale": scale}


def _derivatives_from_json(owner: Json, where: str) -> tuple[Derivative, ...]:
    """The estimates listed in `owner`, whose stated order must be one more than their number."""
    listed = _list(owner["deriv"], f"{where}.deriv")
    if _integer(owner["order"], f"{where}.order") != len(listed) + 1:
        raise ConfigError(
            f"{where}.order must be 1 + the number of derivatives ({len(listed)}); got {owner['order']}."
        )
    return tuple(_derivative_from_json(value, f"{where}.deriv[{k}]") for k, value in enumerate(listed))


def _derivative_from_json(value: Any, where: str) -> Derivative:
    found = _object(value, where, ("points",), ("scale",))
    points = tuple(_integer(p, f"{where}.points") for p in _list(found["points"], f"{where}.points"))
    if found.get("scale") is None:
        return Derivative(points)
    scale = _object(found["scale"], f"{where}.scale", ("kind",), ("value",))
    kind = _text(scale["kind"], f"{where}.scale.kind")
    return Derivative(points, Scale(kind, _optional_number(scale.get("value"), f"{where}.scale.value")))


# Typed reading


def _object(value: Any, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> Json:
    found = _mapping(value, where)
    allowed = (*required, *optional)
    for name in found:
        if name not in allowed:
            raise ConfigError(f"{where} must have no field but {', '.join(allowed)}; got {name!r}.")
    for name in required:
        if name not in found:
            raise ConfigError(f"{where}.{name} must be there, but it is missing; add it.")
    return found


def _mapping(value: Any, where: str) -> Json:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be an object; got {value!r:.60}.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{where} must be a list; got {value!r:.60}.")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number; got {value!r:.60}.")
    return float(value)


def _integer(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{where} must be a whole number; got {value!r:.60}.")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where} must be text; got {value!r:.60}.")
    return value


def _provenance(value: Any) -> Json:
    """An object whose `seeds` and `conditions`, where it has them, say what each purpose has used.

    Seeds are a first and a last one; conditions the hash of the stored rows, and ranges of a first and a last of them.
    """
    found = _mapping(value, "provenance")
    for purpose, ends in _mapping(found.get("seeds", {}), "provenance.seeds").items():
        where = f"provenance.seeds.{purpose}"
        if len([_integer(end, where) for end in _list(ends, where)]) != 2:
            raise ConfigError(f"{where} must be the first seed and the last; got {ends!r:.60}.")
    for purpose, used in _mapping(found.get("conditions", {}), "provenance.conditions").items():
        where = f"provenance.conditions.{purpose}"
        of = _mapping(used, where)
        _text(of.get("sha256"), f"{where}.sha256")
        for ends in _list(of.get("rows"), f"{where}.rows"):
            if len([_integer(end, where) for end in _list(ends, f"{where}.rows")]) != 2:
                raise ConfigError(f"{where}.rows must be first and last rows; got {ends!r:.60}.")
    return found


def _optional_number(value: Any, where: str) -> float | None:
    return None if value is None else _number(value, where)


def _optional_text(value: Any, where: str) -> str | None:
    return None if value is None else _text(value, where)


def _replaced(items: tuple[T, ...], index: int, **changes: Any) -> tuple[T, ...]:
    index = range(len(items))[index]
    changed: T = replace(items[index], **changes)  # type: ignore[type-var]
    return (*items[:index], changed, *items[index + 1 :])
