"""From a plan to numbers: every step is x_end = A x_start + sum_m c_m f_m with scalars known before sampling.

With h = lambda_end - lambda_start and the prediction f expanded around the start node [liu2024usf]:

    x0 :  x_end = (sigma_end/sigma_start) x_start + alpha_end sum_k h^(k+1) phi_{k+1}(-h) R_k f^(k)
    eps:  x_end = (alpha_end/alpha_start) x_start - sigma_end sum_k h^(k+1) phi_{k+1}( h) R_k f^(k)

Scalars are float64. They are computed by differentiable tensor operations, so that gradients reach the
log-SNRs, the scales and the raw coefficients; they become plain floats where nothing requires a gradient.
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
from fewstep.sampling.plan import Corrector, Derivative, Node, Plan, Raw, Scale, Step

Scalar = float | Tensor
Key = tuple[str, int]
"""Name of a stored tensor: ("x", node), ("x0", node) or ("eps", node)."""

_SERIES_TERMS = 20  # the first term left out of phi_k's series is below 1/21! at |z| = 1
_EXPONENTS = torch.arange(_SERIES_TERMS, dtype=torch.float64)


def phi(k: int, z: Tensor) -> Tensor:
    """phi_k(z) = int_0^1 e^((1-r)z) r^(k-1)/(k-1)! dr for k >= 1, elementwise, to float64 precision.

    The recursion loses all digits near 0, so |z| < 1 is summed as a series.
    """
    near_zero = z.abs() < 1
    near = torch.where(near_zero, z, 0.0)
    inverse_factorials = torch.exp(-torch.lgamma(_EXPONENTS + k + 1)).to(z)
    series = (near.unsqueeze(-1) ** _EXPONENTS.to(z) * inverse_factorials).sum(-1)
    far = torch.where(near_zero, 1.0, z)
    recursion = torch.expm1(far) / far
    for i in range(1, k):
        recursion = (recursion - 1 / math.factorial(i)) / far
    return torch.where(near_zero, series, recursion)


def scale_factor(kind: str, value: Scalar | None, h: Tensor, pred: str) -> Tensor:
    """R_k, the factor on a derivative's term.

    bh1 and bh2 are the two B(h) of UniPC [zhao2023unipc] written as factors on the Taylor term of
    order 2, with z = h for eps and -h for x0; `linear` is 1 + value * h for both.
    """
    z = h if pred == "eps" else -h
    if kind == "none":
        return torch.ones_like(h)
    if kind == "bh1":
        return 0.5 / phi(2, z)
    if kind == "bh2":
        return 0.5 * phi(1, z) / phi(2, z)
    assert value is not None
    given = torch.as_tensor(value, dtype=h.dtype)
    return 1 + given * h if kind == "linear" else given


@dataclass(frozen=True)
class Points:
    """The nodes' log-SNR, amplitudes and times, each (n_nodes,) float64."""

    lambda_: Tensor
    alpha: Tensor
    sigma: Tensor
    t: Tensor

    @classmethod
    def of(cls, schedule: Schedule, lambdas: Tensor) -> "Points":
        """All that follows from the log-SNRs; at an infinite one the point is clean data."""
        # clean data is a fixed point, whose derivatives are not finite
        lambdas = torch.where(lambdas.isinf(), lambdas.detach(), lambdas)
        t = schedule.t_of_lambda(lambdas)
        return cls(lambdas, schedule.alpha(t), schedule.sigma(t), t)


@dataclass(frozen=True)
class Coefficients:
    """One update: x_end = A x_start + sum of c[m] f_m + noise_std z."""

    A: Scalar
    c: dict[int, Scalar]
    noise_std: Scalar = 0.0


def first_order(points: Points, start: int, end: int, pred: str) -> tuple[Tensor, Tensor]:
    """A and the weight of f_start of the order-1 step: DDIM [song2021ddim, Eq. 12] for both predictions."""
    h = points.lambda_[end] - points.lambda_[start]
    if pred == "x0":
        return points.sigma[end] / points.sigma[start], -points.alpha[end] * torch.expm1(-h)
    A = points.alpha[end] / points.alpha[start]
    # sigma_end e^h, which is 0 * infinity at clean data, is alpha_end sigma_start / alpha_start
    return A, -A * points.sigma[start] if bool(h.isinf()) else -points.sigma[end] * torch.expm1(h)


def taylor(
    points: Points,
    start: int,
    end: int,
    pred: str,
    deriv: Sequence[Derivative],
    values: Iterator[Scalar] | None = None,
) -> Coefficients:
    """The deterministic step of order len(deriv) + 1.
    Args: values: replacements for the value of each `linear` or `const` scale, in order.
    """
    A, base = first_order(points, start, end, pred)
    c = {start: base}
    h = points.lambda_[end] - points.lambda_[start]
    outer = points.alpha[end] if pred == "x0" else -points.sigma[end]
    for k, derivative in enumerate(deriv, start=1):
        value: Scalar | None = derivative.scale.value
        if value is not None and values is not None:
            value = next(values)
        factor = scale_factor(derivative.scale.kind, value, h, pred)
        term = outer * h * phi(k + 1, h if pred == "eps" else -h) * factor
        for point, w in zip(
            derivative.points, _difference_weights(points, start, h, derivative, k), strict=True
        ):
            c[point] = c.get(point, 0.0) + term * w
            c[start] = c[start] - term * w
    return Coefficients(_scalar(A), {m: _scalar(weight) for m, weight in c.items()})


def _difference_weights(points: Points, start: int, h: Tensor, derivative: Derivative, k: int) -> Tensor:
    """Find w: h^k f^(k) ~ sum_j w_j (f_j - f_start), exact for polynomials of degree len(points)."""
    r = (points.lambda_[list(derivative.points)] - points.lambda_[start]) / h
    if len(r) == 1:
        return 1 / r
    powers = torch.arange(1, len(r) + 1, dtype=r.dtype)
    matrix = r ** powers[:, None] * torch.exp(-torch.lgamma(powers + 1))[:, None]
    unit = torch.zeros_like(r)
    unit[k - 1] = 1.0
    solution: Tensor = torch.linalg.solve(matrix, unit)
    return solution


def ancestral(points: Points, start: int, end: int, pred: str, eta: float) -> Coefficients:
    """The order-1 step with noise: DDIM with eta [song2021ddim, Eq. 16]; eta = 1 is DDPM [ho2020ddpm, Eq. 7].

    The noise has std eta sigma_end sqrt(1 - e^(-2h)), and what is left of sigma_end stays on eps_hat.
    """
    h = points.lambda_[end] - points.lambda_[start]
    fresh = -torch.expm1(-2 * h)
    kept = (1 - eta**2 * fresh).sqrt()
    A = kept * points.sigma[end] / points.sigma[start]
    of_x0 = points.alpha[end] - A * points.alpha[start]
    c = of_x0
    if pred == "eps":
        A, c = A + of_x0 / points.alpha[start], -of_x0 * points.sigma[start] / points.alpha[start]
    return Coefficients(_scalar(A), {start: _scalar(c)}, _scalar(eta * points.sigma[end] * fresh.sqrt()))


def _scalar(value: Scalar) -> Scalar:
    """A float, unless a gradient must flow through it."""
    return value if isinstance(value, Tensor) and value.requires_grad else float(value)


# The continuous values of a plan


@dataclass(frozen=True)
class Values:
    """The numbers of a plan as float64 tensors, to be tuned by gradients.

    Attributes:
        lambdas: log-SNR of the nodes, (n_nodes,).
        scales: value of each `linear` and `const` scale; in a step the predictor's come first.
        raw: A and then the weights of each raw step, step by step.
    """

    lambdas: Tensor
    scales: Tensor
    raw: Tensor

    @classmethod
    def of(cls, plan: Plan) -> "Values":
        """The values a plan has."""
        scales = [d.scale.value for d in _derivatives(plan) if d.scale.value is not None]
        raw = [v for step in plan.steps if step.raw for v in (step.raw.A, *(w for _, w in step.raw.c))]
        lambdas = [node.lambda_ for node in plan.nodes]
        return cls(*(torch.tensor(values, dtype=torch.float64) for values in (lambdas, scales, raw)))

    def put_into(self, plan: Plan, schedule: Schedule) -> Plan:
        """The plan with these values, its times moved along; the inverse of `of`.
        Raises: ConfigError: the moved nodes are out of order or too close.
        """
        times = schedule.t_of_lambda(self.lambdas.detach()).tolist()
        nodes = tuple(
            node if lam == node.lambda_ else replace(node, t=t, lambda_=lam)
            for node, t, lam in zip(plan.nodes, times, self.lambdas.tolist(), strict=True)
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
    Args: values: numbers to use instead of the plan's own, from which gradients may be asked.
    """
    values = Values.of(plan) if values is None else values
    points = Points.of(schedule, values.lambdas)
    scales: Iterator[Tensor] = iter(values.scales)
    raw: Iterator[Tensor] = iter(values.raw)
    result = []
    for step in plan.steps:
        corrected = None
        if step.raw:
            A = _scalar(next(raw))
            update = Coefficients(A, {m: _scalar(next(raw)) for m, _ in step.raw.c})
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
    """Ask the network (or the analytic first step) at the state of `node`, keep what later updates use."""

    node: int
    kind: str
    t: Scalar
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
    c = {str(m): float(weight) for m, weight in update.c.items()}
    return {"A": float(update.A), "c": c, "noise_std": float(update.noise_std)}


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
        values: numbers to use instead of the plan's own, from which gradients may be asked.
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
    times = _network_times(plan, schedule, values)
    readings = [_readings(plan, i, schedule, prediction, t) for i, t in enumerate(times)]
    operations: list[Evaluate | Update] = []

    def evaluate(node: int) -> None:
        if plan.nodes[node].eval != "none":
            reads = tuple(reading.read for reading in readings[node].values())
            operations.append(Evaluate(node, plan.nodes[node].eval, _scalar(times[node][1]), reads))

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
    return Compiled(plan, tuple(_with_releases(operations, last_state)), tuple(updates))


@dataclass(frozen=True)
class _Reading:
    """f = scale * stored, and how the stored tensor is made; a scale of 0 means that f is zero."""

    scale: Scalar
    read: Read


def _network_times(plan: Plan, schedule: Schedule, values: Values | None) -> list[tuple[Tensor, Tensor]]:
    """Per node its own time and the time fed to the network, scalar tensors."""
    lambdas = Values.of(plan).lambdas if values is None else values.lambdas
    ts = schedule.t_of_lambda(lambdas)
    same_schedule = dict(plan.schedule) == schedule.config()
    times = []
    for i, node in enumerate(plan.nodes):
        t = ts[i]
        if node.eval == "net":
            _check_time(i, node, float(t), schedule, same_schedule)
        if same_schedule and values is None:
            if abs(float(t) - node.t) > 1e-6 * max(abs(node.t), schedule.t_min):
                raise ConfigError(
                    f"nodes[{i}].t must be the time of its lambda {node.lambda_:.9g}, {float(t):.9g}; "
                    f"got {node.t:.9g}."
                )
            # the written time, free of the rounding of the inverse
            t = torch.tensor(node.t, dtype=torch.float64)
        times.append((t, t if node.t_cond is None else torch.tensor(node.t_cond, dtype=torch.float64)))
    return times


def _check_time(i: int, node: Node, t: float, schedule: Schedule, same_schedule: bool) -> None:
    slack = 1e-6 * schedule.t_max
    if not schedule.t_min - slack <= t <= schedule.t_max + slack:
        raise ConfigError(
            f"nodes[{i}].t must lie within the model's range [{schedule.t_min:.6g}, {schedule.t_max:.6g}]; "
            f"got {t:.6g}."
        )
    if node.t_cond is not None and not same_schedule:
        raise ConfigError(
            f"nodes[{i}].t_cond belongs to another schedule; set it to null before forcing the plan."
        )


def _readings(
    plan: Plan, index: int, schedule: Schedule, prediction: str, times: tuple[Tensor, Tensor]
) -> dict[str, _Reading]:
    """How f of each prediction type follows from the state and the output (AFS: the data mean) at a node."""
    node, (t, t_fed) = plan.nodes[index], times
    if node.eval == "none":
        return {}
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if node.eval == "net":
        converted = weights(prediction, schedule, t_fed if plan.convert_at == "tau" else t)
        eps = (node.eps_scale * converted.eps_of_x, node.eps_scale * converted.eps_of_output)
        x0 = (converted.x0_of_x, converted.x0_of_output)
        if node.eps_scale != 1 or plan.convert_at == "tau":
            x0 = ((1 - sigma * eps[0]) / alpha, -sigma * eps[1] / alpha)
    else:
        one = torch.ones_like(sigma)
        has_mean = one if node.eval == "afs_mean" else 0 * one
        eps, x0 = (1 / sigma, -has_mean * alpha / sigma), (0 * one, has_mean)
    return {"eps": _reading(("eps", index), *eps), "x0": _reading(("x0", index), *x0)}


def _reading(key: Key, of_x: Tensor, of_output: Tensor) -> _Reading:
    """Divide by one of the two factors, so that reading costs one operation at most."""
    scale = of_output if bool(of_output != 0) else of_x
    if not bool(scale != 0):
        return _Reading(0.0, Read(key, 0.0, 0.0))
    return _Reading(_scalar(scale), Read(key, _scalar(of_x / scale), _scalar(of_output / scale)))


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
