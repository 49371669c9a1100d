"""From a plan to numbers: every step is x_end = A x_start + sum_m c_m f_m with scalars known before sampling.

With h = lambda_end - lambda_start and the prediction f expanded around the start node [liu2024usf]:

    x0 :  x_end = (sigma_end/sigma_start) x_start + alpha_end sum_k h^(k+1) phi_{k+1}(-h) R_k f^(k)
    eps:  x_end = (alpha_end/alpha_start) x_start - sigma_end sum_k h^(k+1) phi_{k+1}( h) R_k f^(k)

A scalar is a Python float, or a float64 tensor () where a gradient must reach it: the formulas are the same.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.prediction import weights
from fewstep.diffusion.schedule import Schedule
from fewstep.sampling.plan import Corrector, Derivative, Plan, Raw, Scale, Step

Scalar = float | Tensor
Key = tuple[str, int]
"""Name of a stored tensor: ("x", node), ("x0", node) or ("eps", node)."""

SERIES_TERMS = 18  # at |z| = 1 the first term left out of phi_1's series is 1/19!, below float64's resolution


def _value(z: Scalar) -> float:
    return float(z.detach()) if isinstance(z, Tensor) else z


def _expm1(z: Scalar) -> Scalar:
    return torch.expm1(z) if isinstance(z, Tensor) else math.expm1(z)


def _sqrt(z: Scalar) -> Scalar:
    return torch.sqrt(z) if isinstance(z, Tensor) else math.sqrt(z)


def phi(k: int, z: Scalar) -> Scalar:
    """phi_k(z) = int_0^1 e^((1-r)z) r^(k-1)/(k-1)! dr for k >= 1, to float64 precision.

    The recursion loses all digits near 0, so |z| < 1 is summed as a series.
    """
    if abs(_value(z)) < 1:
        series: Scalar = 0.0
        for j in reversed(range(SERIES_TERMS)):
            series = series * z + 1 / math.factorial(j + k)
        return series
    value = _expm1(z) / z
    for i in range(1, k):
        value = (value - 1 / math.factorial(i)) / z
    return value


def scale_factor(kind: str, value: Scalar | None, h: Scalar, pred: str) -> Scalar:
    """R_k, the factor on a derivative's term.

    bh1 and bh2 are the two B(h) of UniPC [zhao2023unipc] written as factors on the Taylor term of order 2,
    with z = h for eps and -h for x0; `linear` is 1 + value * h for both.
    """
    z = h if pred == "eps" else -h
    if kind == "none":
        return 1.0
    if kind == "bh1":
        return 0.5 / phi(2, z)
    if kind == "bh2":
        return 0.5 * phi(1, z) / phi(2, z)
    assert value is not None
    return 1 + value * h if kind == "linear" else value


@dataclass(frozen=True)
class Points:
    """The nodes' log-SNRs and amplitudes, one scalar each."""

    lambda_: list[Scalar]
    alpha: list[Scalar]
    sigma: list[Scalar]

    @classmethod
    def of(cls, schedule: Schedule, lambdas: Tensor) -> "Points":
        """All that follows from the log-SNRs, (n_nodes,); at an infinite one the point is clean data."""
        # clean data is written out: there, schedules divide 0 by 0, and their derivatives are not finite
        clean = lambdas.isinf()
        t = schedule.t_of_lambda(torch.where(clean, 0.0, lambdas))
        alpha, sigma = torch.where(clean, 1.0, schedule.alpha(t)), torch.where(clean, 0.0, schedule.sigma(t))
        return cls(_scalars(lambdas), _scalars(alpha), _scalars(sigma))


def _scalars(values: Tensor) -> list[Scalar]:
    """Floats, or tensors () where a gradient must flow."""
    return list(values.unbind()) if values.requires_grad else values.tolist()


@dataclass(frozen=True)
class Coefficients:
    """One update: x_end = A x_start + sum of c[m] f_m + noise_std z."""

    A: Scalar
    c: dict[int, Scalar]
    noise_std: Scalar = 0.0


def first_order(points: Points, start: int, end: int, pred: str) -> tuple[Scalar, Scalar]:
    """A and the weight of f_start of the order-1 step: DDIM [song2021ddim, Eq. 12] for both predictions."""
    h = points.lambda_[end] - points.lambda_[start]
    if pred == "x0":
        return points.sigma[end] / points.sigma[start], -points.alpha[end] * _expm1(-h)
    A = points.alpha[end] / points.alpha[start]
    if math.isinf(_value(h)):
        # sigma_end e^h, which is 0 * infinity at clean data, is A sigma_start
        return A, -A * points.sigma[start]
    return A, -points.sigma[end] * _expm1(h)


def taylor(
    points: Points,
    start: int,
    end: int,
    pred: str,
    deriv: Sequence[Derivative],
    values: Iterator[Scalar],
) -> Coefficients:
    """The deterministic step of order len(deriv) + 1.
    Args: values: the value of each `linear` or `const` scale, in order, instead of the one in `deriv`.
    """
    A, base = first_order(points, start, end, pred)
    c = {start: base}
    h = points.lambda_[end] - points.lambda_[start]
    outer = points.alpha[end] if pred == "x0" else -points.sigma[end]
    for k, derivative in enumerate(deriv, start=1):
        value = None if derivative.scale.value is None else next(values)
        factor = scale_factor(derivative.scale.kind, value, h, pred)
        term = outer * h * phi(k + 1, h if pred == "eps" else -h) * factor
        distances = [(points.lambda_[point] - points.lambda_[start]) / h for point in derivative.points]
        for point, w in zip(derivative.points, difference_weights(distances, k), strict=True):
            c[point] = c.get(point, 0.0) + term * w
            c[start] = c[start] - term * w
    return Coefficients(A, c)


def difference_weights(distances: Sequence[Scalar], k: int) -> list[Scalar]:
    """Find w: f^(k)(0) ~ sum_j w_j (f(r_j) - f(0)), exact for polynomials of degree len(distances).

    w_j is k! times the coefficient of r^k in Lagrange's basis polynomial of r_j over 0, r_1, r_2, ...
    """
    found = []
    for j, r_j in enumerate(distances):
        coefficients: list[Scalar] = [1.0]  # of the product of (r - r_m), lowest power first
        denominator = r_j
        for r_m in (*distances[:j], *distances[j + 1 :]):
            shifted: list[Scalar] = [0.0, *coefficients]
            for power, coefficient in enumerate(coefficients):
                shifted[power] = shifted[power] - r_m * coefficient
            coefficients = shifted
            denominator = denominator * (r_j - r_m)
        # the basis polynomial has one more factor r, so its coefficient of r^k stands at k - 1
        found.append(math.factorial(k) * coefficients[k - 1] / denominator)
    return found


def ancestral(points: Points, start: int, end: int, pred: str, eta: float) -> Coefficients:
    """The order-1 step with noise: DDIM with eta [song2021ddim, Eq. 16]; eta = 1 is DDPM [ho2020ddpm, Eq. 7].

    The noise has std eta sigma_end sqrt(1 - e^(-2h)), and what is left of sigma_end stays on eps_hat.
    """
    h = points.lambda_[end] - points.lambda_[start]
    fresh = -_expm1(-2 * h)
    A = _sqrt(1 - eta**2 * fresh) * points.sigma[end] / points.sigma[start]
    of_x0 = points.alpha[end] - A * points.alpha[start]
    noise_std = eta * points.sigma[end] * _sqrt(fresh)
    if pred == "x0":
        return Coefficients(A, {start: of_x0}, noise_std)
    of_eps = -of_x0 * points.sigma[start] / points.alpha[start]
    return Coefficients(points.alpha[end] / points.alpha[start], {start: of_eps}, noise_std)


# The continuous values of a plan


@dataclass(frozen=True)
class Values:
    """The numbers of a plan as float64 tensors, to be tuned by gradients.

    Attributes:
        lambdas: log-SNR of the nodes, (n_nodes,).
        scales: value of each `linear` and `const` scale; in a step the predictor's come first.
        raw: A and then the weights of each raw step, step by step.
        t_cond: conditioning timestep at each node that has one of its own, node by node.
        eps_scale: factor on the predicted noise of each node, (n_nodes,).
    """

    lambdas: Tensor
    scales: Tensor
    raw: Tensor
    t_cond: Tensor
    eps_scale: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.lambdas, self.scales, self.raw, self.t_cond, self.eps_scale))

    @classmethod
    def of(cls, plan: Plan) -> "Values":
        """The values a plan has."""
        scales = [d.scale.value for d in _derivatives(plan) if d.scale.value is not None]
        raw = [v for step in plan.steps if step.raw for v in (step.raw.A, *(w for _, w in step.raw.c))]
        numbers = (
            [node.lambda_ for node in plan.nodes],
            scales,
            raw,
            [node.t_cond for node in plan.nodes if node.t_cond is not None],
            [node.eps_scale for node in plan.nodes],
        )
        return cls(*(torch.tensor(values, dtype=torch.float64) for values in numbers))

    def put_into(self, plan: Plan, schedule: Schedule) -> Plan:
        """The plan with these values, its times moved along; the inverse of `of`.
        Raises: ConfigError: the moved nodes are out of order or too close.
        """
        times = schedule.t_of_lambda(self.lambdas.detach()).tolist()
        t_cond = iter(self.t_cond.tolist())
        nodes = tuple(
            replace(
                node if lam == node.lambda_ else replace(node, t=t, lambda_=lam),
                t_cond=None if node.t_cond is None else next(t_cond),
                eps_scale=scale,
            )
            for node, t, lam, scale in zip(
                plan.nodes, times, self.lambdas.tolist(), self.eps_scale.tolist(), strict=True
            )
        )
        scales, raw = iter(self.scales.tolist()), iter(self.raw.tolist())
        steps = tuple(_with_values(step, scales, raw) for step in plan.steps)
        return replace(plan, nodes=nodes, steps=steps)


def _derivatives(plan: Plan) -> Iterator[Derivative]:
    for step in plan.steps:
        yield from step.deriv
        if step.corr:
            yield from step.corr.deriv


def _with_values(step: Step, scales: Iterator[float], raw: Iterator[float]) -> Step:
    if step.raw:
        return replace(step, raw=Raw(next(raw), tuple((m, next(raw)) for m, _ in step.raw.c)))
    deriv = _with_scales(step.deriv, scales)
    corr = Corrector(step.corr.mode, _with_scales(step.corr.deriv, scales)) if step.corr else None
    return replace(step, deriv=deriv, corr=corr)


def _with_scales(deriv: tuple[Derivative, ...], scales: Iterator[float]) -> tuple[Derivative, ...]:
    return tuple(
        d if d.scale.value is None else replace(d, scale=Scale(d.scale.kind, next(scales))) for d in deriv
    )


def coefficients(
    plan: Plan, schedule: Schedule, values: Values | None = None
) -> list[tuple[Coefficients, Coefficients | None]]:
    """Each step's update and, where it has a corrector, the update that replaces it.
    Args: values: numbers to use instead of the plan's own, for which gradients may be computed.
    """
    values = Values.of(plan) if values is None else values
    points = Points.of(schedule, values.lambdas)
    scales, raw = iter(_scalars(values.scales)), iter(_scalars(values.raw))
    result = []
    for step in plan.steps:
        corrected = None
        if step.raw:
            update = Coefficients(next(raw), {m: next(raw) for m, _ in step.raw.c})
        elif step.eta > 0:
            update = ancestral(points, step.start, step.end, step.pred, step.eta)
        else:
            update = taylor(points, step.start, step.end, step.pred, step.deriv, scales)
        if step.corr:
            corrected = taylor(points, step.start, step.end, step.pred, step.corr.deriv, scales)
        result.append((update, corrected))
    return result


# The program that the loop executes


@dataclass(frozen=True)
class Read:
    """Keep of_x * x + of_output * output under `key`; constant factors are folded into the updates."""

    key: Key
    of_x: Scalar
    of_output: Scalar


@dataclass(frozen=True)
class Evaluate:
    """Call the network (or the analytic first step) at the state of `node`, keep what later updates use.

    Attributes: t: the node's time. t_cond: the conditioning timestep.
    """

    node: int
    kind: str
    t: Scalar
    t_cond: Scalar
    reads: tuple[Read, ...]
    release: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Update:
    """x of node `end` = sum of weight * stored tensor over `terms`, + noise_std * fresh noise."""

    step: int
    end: int
    terms: tuple[tuple[Key, Scalar], ...]
    noise_std: Scalar = 0.0
    release: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Compiled:
    """A plan as a flat list of operations on named tensors, each freed after its last use."""

    plan: Plan
    operations: tuple[Evaluate | Update, ...]
    coefficients: tuple[tuple[Coefficients, Coefficients | None], ...]

    def to_json(self) -> dict[str, Any]:
        """The `compiled` field of a plan file: A and c per step, and those of the corrector."""
        return {
            "dtype": "float64",
            "steps": [
                _coefficients_to_json(update) | {"corr": corr and _coefficients_to_json(corr)}
                for update, corr in self.coefficients
            ],
        }


def _coefficients_to_json(update: Coefficients) -> dict[str, Any]:
    c = {str(m): _value(weight) for m, weight in update.c.items()}
    return {"A": _value(update.A), "c": c, "noise_std": _value(update.noise_std)}


def compile_plan(
    plan: Plan,
    schedule: Schedule,
    prediction: str = "eps",
    *,
    values: Values | None = None,
    force: bool = False,
) -> Compiled:
    """Compute all scalars of a plan.

    Args:
        plan: what to compile.
        schedule: that of the model.
        prediction: how the model's output is read, a key of PREDICTIONS.
        values: numbers to use instead of the plan's own, for which gradients may be computed.
        force: accept a plan made on another schedule; its log-SNRs are kept and its times recomputed.

    Raises:
        ConfigError: the plan is for another schedule, or a node lies outside the range of the network.
    """
    if dict(plan.schedule) != schedule.config() and not force:
        raise ConfigError(
            f"The plan is for the schedule {dict(plan.schedule)}, but the model has {schedule.config()}; "
            "make the plan for this model, or pass force."
        )
    updates = coefficients(plan, schedule, values)
    t, t_cond = _network_times(plan, schedule, values)
    times, conditioning = _scalars(t), _scalars(t_cond)
    readings = {
        i: {pred: _reading((pred, i), *factors) for pred, factors in both.items()}
        for i, both in _predictions(plan, schedule, prediction, t, t_cond, values).items()
    }
    operations: list[Evaluate | Update] = []

    def evaluate(node: int) -> None:
        if plan.nodes[node].eval != "none":
            reads = tuple(reading.read for reading in readings[node].values())
            operations.append(Evaluate(node, plan.nodes[node].eval, times[node], conditioning[node], reads))

    def update(k: int, numbers: Coefficients) -> None:
        step = plan.steps[k]
        terms: list[tuple[Key, Scalar]] = [(("x", step.start), numbers.A)]
        terms += [((step.pred, m), weight * readings[m][step.pred].scale) for m, weight in numbers.c.items()]
        kept = tuple((key, weight) for key, weight in terms if isinstance(weight, Tensor) or weight != 0)
        operations.append(Update(k, step.end, kept, numbers.noise_std))

    evaluate(0)
    for k, (predicted, corrected) in enumerate(updates):
        update(k, predicted)
        evaluate(plan.steps[k].end)
        corrector = plan.steps[k].corr
        if corrector is not None and corrected is not None:
            update(k, corrected)
            if corrector.mode == "implicit":
                evaluate(plan.steps[k].end)
    last_state: Key = ("x", len(plan.nodes) - 1)
    return Compiled(plan, tuple(_with_releases(_side_by_side(operations), last_state)), tuple(updates))


def _side_by_side(operations: Sequence[Evaluate | Update]) -> list[Evaluate | Update]:
    """The same with each evaluation as late as may be: those that do not wait for each other follow one another."""
    done: list[Evaluate | Update] = []
    waiting: list[Evaluate] = []
    for operation in operations:
        if isinstance(operation, Evaluate):
            waiting.append(operation)
            continue
        read = {key for key, _ in operation.terms}
        given = {made.key for evaluation in waiting for made in evaluation.reads}
        if read & given or any(evaluation.node == operation.end for evaluation in waiting):
            done += waiting
            waiting = []
        done.append(operation)
    return [*done, *waiting]


def _network_times(plan: Plan, schedule: Schedule, values: Values | None) -> tuple[Tensor, Tensor]:
    """The nodes' own times, and the conditioning timesteps, (n_nodes,) each."""
    numbers = Values.of(plan) if values is None else values
    given = numbers.lambdas
    clean = given.isinf()
    ts = torch.where(clean, 0.0, schedule.t_of_lambda(torch.where(clean, 0.0, given)))
    same_schedule = dict(plan.schedule) == schedule.config()
    for i, (node, t) in enumerate(zip(plan.nodes, ts.tolist(), strict=True)):
        if node.eval == "net":
            _check_range(i, t, schedule)
        if same_schedule and values is None and abs(t - node.t) > 1e-6 * max(abs(t), schedule.t_min):
            raise ConfigError(
                f"nodes[{i}].t must be the time of its lambda {node.lambda_:.9g}, {t:.9g}; got {node.t:.9g}."
            )
        if node.t_cond is not None and not same_schedule:
            raise ConfigError(
                f"nodes[{i}].t_cond belongs to another schedule; set it to null before forcing the plan."
            )
    if same_schedule and values is None:
        # the written times are free of the rounding of the inverse
        ts = torch.tensor([node.t for node in plan.nodes], dtype=torch.float64)
    conditioned = [i for i, node in enumerate(plan.nodes) if node.t_cond is not None]
    for i, t in zip(conditioned, numbers.t_cond.tolist(), strict=True):
        _check_range(i, t, schedule, field="t_cond")
    return ts, ts.index_put((torch.tensor(conditioned, dtype=torch.long),), numbers.t_cond)


def _check_range(i: int, t: float, schedule: Schedule, *, field: str = "t") -> None:
    slack = 1e-6 * schedule.t_max
    if not schedule.t_min - slack <= t <= schedule.t_max + slack:
        raise ConfigError(
            f"nodes[{i}].{field} must lie within the model's range [{schedule.t_min:.6g}, {schedule.t_max:.6g}]; "
            f"got {t:.6g}."
        )


@dataclass(frozen=True)
class _Reading:
    """f = scale * stored, and how the stored tensor is made; a scale of 0 means that f is zero."""

    scale: Scalar
    read: Read


def predictions(
    plan: Plan, schedule: Schedule, prediction: str, values: Values | None = None
) -> dict[int, dict[str, tuple[Scalar, Scalar]]]:
    """How a plan reads x0 and eps at each evaluated node: (of_x, of_output), f = of_x * x + of_output * output.

    At a node with an analytic first step the output is the data mean, and with `afs_zero` nothing.
    """
    return _predictions(plan, schedule, prediction, *_network_times(plan, schedule, values), values)


def _predictions(
    plan: Plan, schedule: Schedule, prediction: str, t: Tensor, t_cond: Tensor, values: Values | None
) -> dict[int, dict[str, tuple[Scalar, Scalar]]]:
    evaluated = [i for i, node in enumerate(plan.nodes) if node.eval != "none"]
    own, converted_at = t[evaluated], (t_cond if plan.convert_at == "tau" else t)[evaluated]
    alpha, sigma = _scalars(schedule.alpha(own)), _scalars(schedule.sigma(own))
    converted = [_scalars(values) for values in weights(prediction, schedule, converted_at)]
    scales = _scalars((Values.of(plan) if values is None else values).eps_scale)
    found = {}
    for i, a, s, x0_of_x, x0_of_output, eps_of_x, eps_of_output in zip(
        evaluated, alpha, sigma, *converted, strict=True
    ):
        node = plan.nodes[i]
        eps, x0 = (eps_of_x, eps_of_output), (x0_of_x, x0_of_output)
        if node.eval != "net":
            has_mean = 1.0 if node.eval == "afs_mean" else 0.0
            eps, x0 = (1 / s, -has_mean * a / s), (0.0, has_mean)
        elif isinstance(scales[i], Tensor) or scales[i] != 1 or plan.convert_at == "tau":
            eps = (scales[i] * eps_of_x, scales[i] * eps_of_output)
            x0 = ((1 - s * eps[0]) / a, -s * eps[1] / a)
        found[i] = {"eps": eps, "x0": x0}
    return found


def _reading(key: Key, of_x: Scalar, of_output: Scalar) -> _Reading:
    """Divide by one of the two factors, so that reading costs one operation at most."""
    scale = of_output if _value(of_output) != 0 else of_x
    if _value(scale) == 0:
        return _Reading(0.0, Read(key, 0.0, 0.0))
    return _Reading(scale, Read(key, of_x / scale, of_output / scale))


def _with_releases(operations: list[Evaluate | Update], result: Key) -> list[Evaluate | Update]:
    """Drop readings that nobody uses, and free each stored tensor after the last operation that needs it."""
    done: list[Evaluate | Update] = []
    needed = {result}
    for operation in reversed(operations):
        if isinstance(operation, Evaluate):
            reads = tuple(read for read in operation.reads if read.key in needed)
            operation = replace(operation, reads=reads)
            inputs: set[Key] = {("x", operation.node)}
            outputs = {read.key for read in reads}
        else:
            inputs, outputs = {key for key, _ in operation.terms}, {("x", operation.end)}
        # what an operation makes anew was not needed before it, unless the operation itself reads it
        release = tuple(sorted(inputs - needed))
        needed = (needed - outputs) | inputs
        done.append(replace(operation, release=release))
    return done[::-1]
