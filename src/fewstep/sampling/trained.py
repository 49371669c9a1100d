"""Samplers whose numbers others train, each as its paper and its code write it, and any of them as a plan.

A sampler is a function (eps, x) -> x. Its states live in a frame, which is a schedule: `EDM`, of states x / alpha whose
time is edm_sigma, or the model's own. It calls eps(x, t) for the noise predicted at a state and a time of the frame,
which need not be the time that the state has. All arithmetic is on tensors, so that gradients reach what is trained.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import Schedule
from fewstep.sampling.plan import MIN_GAP, Node, Plan, Raw, Step
from fewstep.sampling.solver import Values, coefficients

Eps = Callable[[Tensor, Tensor], Tensor]
Sampler = Callable[[Eps, Tensor], Tensor]

EXACT = 1e-12  # relative; what rounding alone leaves between two ways to write a first state


def generalized_solver(
    frame: Schedule, ts: Tensor, told: Tensor, state: Sequence[Tensor], x0: Sequence[Tensor]
) -> Sampler:
    """GS, the solver of GAS: additive corrections of an unlowered DPM-Solver++(3M) [oganov2025gas].

    Its second difference carries half of its Taylor weight, as shipped. x0_hat is made from the noise that the network
    predicts when it is told t + xi.

    Args:
        frame: a variance-preserving schedule.
        ts: times, (n_steps + 1,).
        told: xi, (n_steps,).
        state: corrections of the weights of the latest state, the one before it, ...; `order` times (n_steps,).
        x0: of the weights of x0_hat, of the first and second differences, and of older predictions, in the same form.
    """
    n_steps, order = len(ts) - 1, len(state)
    alpha, sigma, lambdas = frame.alpha(ts), frame.sigma(ts), frame.lambda_(ts)

    def sampler(eps: Eps, x: Tensor) -> Tensor:
        states: list[Tensor] = []
        predicted: list[Tensor] = []
        for k in range(n_steps):
            states.insert(0, x)
            predicted.insert(0, (x - sigma[k] * eps(x, ts[k] + told[k])) / alpha[k])
            del states[order:], predicted[order:]
            h = lambdas[k + 1] - lambdas[k]
            phi_1 = torch.expm1(-h)
            end = alpha[k + 1]
            used = len(predicted)
            x = (sigma[k + 1] / sigma[k] + state[0][k]) * x - (end * phi_1 + x0[0][k]) * predicted[0]
            if used == 2:
                slope = (predicted[0] - predicted[1]) / ((lambdas[k] - lambdas[k - 1]) / h)
                x = x - (0.5 * end * phi_1 + x0[1][k]) * slope
            elif used > 2:
                r0, r1 = (lambdas[k] - lambdas[k - 1]) / h, (lambdas[k - 1] - lambdas[k - 2]) / h
                near, far = (predicted[0] - predicted[1]) / r0, (predicted[1] - predicted[2]) / r1
                phi_2 = phi_1 / h + 1
                phi_3 = phi_2 / h - 0.5
                x = x + (end * phi_2 + x0[1][k]) * (near + r0 / (r0 + r1) * (near - far))
                x = x - (end * phi_3 + x0[2][k]) * (near - far) / (r0 + r1)
            for back in range(3, used):
                x = x + x0[back][k] * predicted[back]
            for back in range(1, used):
                x = x + state[back][k] * states[back]
        return x

    return sampler


def dyweight(ts: Tensor, weights: Tensor, told: Tensor, *, analytic: bool) -> Sampler:
    """DyWeight: free weights on past slopes, whose sum is how far the step goes [zhao2026dyweight].

    Args:
        ts: edm_sigmas, (n_steps + 1,); later steps start where the sum of the weights has led.
        weights: (n_steps, n_steps), of slope j in step i; those with j > i are not read.
        told: factors on the edm_sigma that each network call is told.
        analytic: the first slope is x / sqrt(1 + edm_sigma^2) instead of a call.
    """

    def sampler(eps: Eps, x: Tensor) -> Tensor:
        slopes: list[Tensor] = []
        at = ts[0]
        for i in range(len(ts) - 1):
            if analytic and i == 0:
                slopes.append(x / (1 + at**2).sqrt())
            else:
                level = (told[i - analytic] * at).abs()
                slopes.append(level * eps(x, level) / (at + 1e-8))  # their guard of a division by 0
            step = ts[i + 1] - at
            for j, slope in enumerate(slopes):
                x = x + step * weights[i, j] * slope
            at = at + weights[i, : i + 1].sum() * step
        return x

    return sampler


def parallel_directions(
    ts: Tensor, split: Tensor, direction: Tensor, told: Tensor, weights: Tensor, *, analytic: bool
) -> Sampler:
    """EPD: each step adds K slopes found side by side at K levels between its ends [zhu2025epd].

    With K = 1 it is AMED's step with the same numbers for every image [zhou2024amed].

    Args:
        ts: edm_sigmas, (n_steps + 1,).
        split: r, (n_steps, K); the level between is ts[i]^(1 - r) ts[i + 1]^r.
        direction: factors on the slopes, (n_steps, K).
        told: factors on the edm_sigma that these calls are told, (n_steps, K).
        weights: (n_steps, K).
        analytic: the first slope is x / sqrt(1 + edm_sigma^2) instead of a call.
    """

    def sampler(eps: Eps, x: Tensor) -> Tensor:
        for i in range(len(ts) - 1):
            slope = x / (1 + ts[i] ** 2).sqrt() if analytic and i == 0 else eps(x, ts[i])
            moved = x
            levels = ts[i + 1] ** split[i] * ts[i] ** (1 - split[i])
            # in the order of what the network is told, in which nodes of a plan stand
            for j in (told[i] * levels).detach().argsort(descending=True).tolist():
                level, scale, factor, weight = levels[j], direction[i, j], told[i, j], weights[i, j]
                between = x + (level - ts[i]) * slope
                moved = moved + weight * scale * (ts[i + 1] - ts[i]) * factor * eps(between, factor * level)
            x = moved
        return x

    return sampler


def told_otherwise(plan: Plan, frame: Schedule, told: Tensor, *, lambdas: Tensor | None = None) -> Sampler:
    """A known sampler whose network is conditioned on other timesteps, LD3 [tong2024ld3]: x0_hat is made with those.

    Args: plan: of `frame`, each node but the last calling the network once. told: times, (n_steps,). lambdas: half
        log-SNRs of the nodes to use instead of the plan's, (n_steps + 1,).
    """
    alpha, sigma = frame.alpha(told), frame.sigma(told)
    updates = coefficients(
        plan, frame, None if lambdas is None else replace(Values.of(plan), lambdas=lambdas)
    )

    def sampler(eps: Eps, x: Tensor) -> Tensor:
        read: list[dict[str, Tensor]] = []

        def call(at: Tensor) -> None:
            k = len(read)
            noise = eps(at, told[k])
            read.append({"eps": noise, "x0": (at - sigma[k] * noise) / alpha[k]})

        call(x)
        for step, (update, corrected) in zip(plan.steps, updates, strict=True):
            start = x
            x = update.A * start + sum(weight * read[m][step.pred] for m, weight in update.c.items())
            if step.end < len(plan.steps):
                call(x)
            if corrected is not None:
                x = corrected.A * start + sum(
                    weight * read[m][step.pred] for m, weight in corrected.c.items()
                )
        return x

    return sampler


def linear_multistep(frame: Schedule, ts: Tensor, told: Tensor, weights: Tensor) -> Sampler:
    """S4S: free weights on past x0_hat under the factors of DDIM [frankel2025s4s, App. C.1].

    Args: ts: (n_steps + 1,). told: times that the network is told, (n_steps,). weights: (n_steps, n_steps), of x0_hat j
        in step i; those with j > i are not read.
    """
    alpha, sigma, lambdas = frame.alpha(ts), frame.sigma(ts), frame.lambda_(ts)

    def sampler(eps: Eps, x: Tensor) -> Tensor:
        predicted: list[Tensor] = []
        for k in range(len(ts) - 1):
            predicted.append((x - sigma[k] * eps(x, told[k])) / alpha[k])
            own = -alpha[k + 1] * torch.expm1(lambdas[k] - lambdas[k + 1])
            x = sigma[k + 1] / sigma[k] * x
            for j, x0 in enumerate(predicted):
                x = x + own * weights[k, j] * x0
        return x

    return sampler


def dual_solver(frame: Schedule, ts: Tensor, numbers: Tensor, *, order: int = 1) -> Sampler:
    """Dual-Solver: between predictions of noise and data, between two scales of integration, with a residual term.

    The corrector has order 2 and costs no call; the predictor falls to order 1 at both ends [park2026dualsolver].

    Args: ts: (n_steps + 1,). numbers: (n_steps, 2, 5), of the predictor and the corrector of each step: gamma, the
        logits of tau_x and tau_e, kappa_x, kappa_e. order: of the predictor, 1 or 2.
    """
    alpha, sigma = frame.alpha(ts), frame.sigma(ts)
    n_steps = len(ts) - 1
    small = 1e-8  # their guard of divisions

    def sampler(eps: Eps, x: Tensor) -> Tensor:
        def call(at: Tensor, k: int) -> tuple[Tensor, Tensor]:
            noise = eps(at, ts[k])
            return (at - sigma[k] * noise) / alpha[k], noise

        def moved(k: int, values: Tensor, slopes: tuple[Tensor, Tensor] | None, back: bool) -> Tensor:
            """From node k to the next; `slopes` are differences of x0 and eps to the node before or after."""
            gamma, *rest = values.unbind()
            data = bool(gamma >= 0)
            result: Tensor = x * (
                (sigma[k + 1] / sigma[k]) ** gamma if data else (alpha[k + 1] / alpha[k]) ** -gamma
            )
            outer = sigma[k + 1] ** gamma if data else alpha[k + 1] ** -gamma
            of_x0 = alpha * sigma**-gamma if data else alpha ** (1 + gamma)
            of_eps = sigma ** (1 - gamma) if data else sigma * alpha**gamma
            for scale, value, logit, kappa, which in (
                (of_x0, latest[0], rest[0], rest[2], 0),
                (of_eps, latest[1], rest[1], rest[3], 1),
            ):
                tau = torch.sigmoid(logit)
                result = result + outer * (scale[k + 1] - scale[k]) * value
                if slopes is not None:
                    log_linear = tau * scale.log() + (1 - tau) * scale
                    step = log_linear[k + 1] - log_linear[k]
                    weight = 0.5 * (step / ((1 - tau) + tau / scale[k]) + kappa * step**2)
                    if back:
                        ratio = (log_linear[k] - log_linear[k - 1]) / (step + small)
                        weight = weight / ratio.clamp_min(small)
                    result = result + outer * weight * slopes[which]
            return result

        latest, before = call(x, 0), None
        for k in range(n_steps):
            slopes = None
            if before is not None and min(order, n_steps - k) > 1:
                slopes = (latest[0] - before[0], latest[1] - before[1])
            predicted = moved(k, numbers[k, 0], slopes, back=True)
            if k == n_steps - 1:
                return predicted
            following = call(predicted, k + 1)
            slopes = (following[0] - latest[0], following[1] - latest[1])
            x = moved(k, numbers[k, 1], slopes, back=False)
            latest, before = following, latest
        return x

    return sampler


def plan_of(
    sampler: Sampler,
    schedule: Schedule,
    frame: Schedule,
    *,
    t_start: float,
    t_end: float,
    name: str,
) -> Plan:
    """A deterministic sampler as a plan, by running it on symbols: a state is its weights on x_T and each eps_hat.

    A node lies where the network is told to be; where those times do not fall, it lies as near to it as nodes may, and
    `t_cond` says what the network is told. A first state that is not noise at t_start itself is reached by a step
    without a call.

    Args:
        sampler: linear in the state and in what it calls.
        schedule: of the model.
        frame: in which the sampler's states live.
        t_start: time of the first state, in the frame.
        t_end: of the result.
        name: of the sampler, in tables.

    Raises:
        ConfigError: it makes no call, or tells the network what cannot be a time of the frame.
    """
    calls = 0

    def count(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros_like(x)

    sampler(count, torch.zeros(1, dtype=torch.float64))
    if calls == 0:
        raise ConfigError(f"{name} must call the network at least once, but makes no call.")
    basis = torch.eye(calls + 1, dtype=torch.float64)
    levels: list[float] = []  # half log-SNR that each call is told
    states: list[Tensor] = []  # in the model's own scale

    def record(x: Tensor, t: Tensor) -> Tensor:
        level = float(frame.lambda_(t))
        if not math.isfinite(level):
            raise ConfigError(
                f"Call {len(states)} of {name} must be told a time with noise; got {float(t):.6g}."
            )
        levels.append(level)
        states.append(x * _rescaled(schedule, frame, t))
        return basis[len(states)]

    start, end = torch.tensor([t_start, t_end], dtype=torch.float64)
    unit = basis[0] / _rescaled(schedule, frame, start)
    last = sampler(record, unit) * _rescaled(schedule, frame, end)
    first_level, last_level = float(frame.lambda_(start)), float(frame.lambda_(end))
    begins_with_call = float((states[0] - basis[0]).abs().max()) < EXACT
    told: list[float | None] = [*levels] if begins_with_call else [None, *levels]
    vectors = [*states, last] if begins_with_call else [basis[0], *states, last]
    evaluated: list[int] = list(range(0 if begins_with_call else 1, len(told)))
    nodes = _nodes(schedule, told, first_level, last_level)
    steps = []
    for k in range(len(told)):
        # where noise has vanished from the state before, the step starts at the very first one
        origin = k if abs(float(vectors[k][0])) > MIN_GAP else 0
        A = float(vectors[k + 1][0] / vectors[origin][0])
        rest = vectors[k + 1] - A * vectors[origin]
        weights = ((node, float(rest[1 + i])) for i, node in enumerate(evaluated) if node <= k)
        c = tuple((node, weight) for node, weight in weights if weight != 0)
        steps.append(Step(origin, k + 1, "eps", raw=Raw(A, c)))
    # noise is that of the time that the network is told
    convert_at = "tau" if any(node.t_cond is not None for node in nodes) else "step"
    return Plan(
        schedule.config(),
        nodes,
        tuple(steps),
        name=f"{name}.nfe{calls}",
        convert_at=convert_at,
        provenance={"sampler": name},
    )


def _rescaled(schedule: Schedule, frame: Schedule, t: Tensor) -> Tensor:
    """From a state of the frame to the model's of the same noise level."""
    return schedule.alpha(schedule.t_of_lambda(frame.lambda_(t))) / frame.alpha(t)


def _nodes(schedule: Schedule, told: Sequence[float | None], start: float, end: float) -> tuple[Node, ...]:
    """One for each evaluation and one for the end: where the network is told to be, as far as nodes can."""
    gap = 1.01 * MIN_GAP
    lambdas = [start]
    for k, level in enumerate(told[1:], start=1):
        assert level is not None
        highest = end - gap * (len(told) - k)
        lambdas.append(min(max(level, lambdas[-1] + gap), highest))
    lambdas.append(end)
    if not all(b - a >= MIN_GAP for a, b in zip(lambdas[:-1], lambdas[1:], strict=True)):
        raise ConfigError(
            f"The noise levels of {len(told)} calls must fit between half log-SNRs {start:.4g} and {end:.4g}."
        )
    nodes = []
    for k, lam in enumerate(lambdas):
        level = told[k] if k < len(told) else None
        t = float(schedule.t_of_lambda(lam))
        kind = "none" if k == len(told) else "afs_zero" if level is None else "net"
        elsewhere = level is not None and abs(level - lam) > EXACT * max(1.0, abs(lam))
        t_cond = float(schedule.t_of_lambda(level)) if elsewhere and level is not None else None
        nodes.append(Node(t, lam, eval=kind, t_cond=t_cond))
    return tuple(nodes)
