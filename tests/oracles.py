"""Naive transcriptions of each known sampler, as the papers and their authors' code write them.

They share nothing with the code under test. `f` is called as f(x, t) and gives eps_hat or x0_hat; `schedule`
offers alpha, sigma, lambda_ and t_of_lambda; `ts` are the times of all nodes, falling, the last one included.
"""

import math

import numpy as np
import torch


def _amplitudes(schedule, t):
    t = torch.as_tensor(t, dtype=torch.float64)
    return schedule.alpha(t), schedule.sigma(t), schedule.lambda_(t)


def mixture_flow(weights, means, stds, x, start, end):
    """Where the probability flow takes x from edm_sigma `start` to `end`; a mixture in one dimension, alpha = 1.

    A flow on a line keeps the order of points, and so the share of the probability below each: x goes to the
    quantile of the distribution at `end` that it was of the one at `start`. No solver is needed.
    """

    def below(x, edm_sigma):
        return (weights * torch.special.ndtr((x[:, None] - means) / (stds**2 + edm_sigma**2).sqrt())).sum(1)

    share = below(x, start)
    reach = 40 * (stds.max() ** 2 + end**2).sqrt() + means.abs().max()
    low, high = -reach * torch.ones_like(x), reach * torch.ones_like(x)
    for _ in range(100):  # a float64 has 53 bits
        middle = (low + high) / 2
        is_below = below(middle, end) < share
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return (low + high) / 2


def ddim(x0_of, schedule, x, ts):
    """x_s = alpha_s x0 + sigma_s eps [song2021ddim, Eq. 12]."""
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        (alpha_t, sigma_t, _), (alpha_s, sigma_s, _) = _amplitudes(schedule, t), _amplitudes(schedule, s)
        x0_hat = x0_of(x, t)
        eps_hat = (x - alpha_t * x0_hat) / sigma_t
        x = alpha_s * x0_hat + sigma_s * eps_hat
    return x


def ddim_eta(x0_of, schedule, x, ts, eta, noise):
    """The DDIM family for alpha^2 + sigma^2 = 1 [song2021ddim, Eq. 12 and 16]."""
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        bar_t, bar_s = _amplitudes(schedule, t)[0] ** 2, _amplitudes(schedule, s)[0] ** 2
        std = eta * torch.sqrt((1 - bar_s) / (1 - bar_t)) * torch.sqrt(1 - bar_t / bar_s)
        x0_hat = x0_of(x, t)
        eps_hat = (x - bar_t.sqrt() * x0_hat) / (1 - bar_t).sqrt()
        x = bar_s.sqrt() * x0_hat + (1 - bar_s - std**2).clamp(min=0).sqrt() * eps_hat
        if std > 0:
            x = x + std * noise()
    return x


def ddpm(x0_of, schedule, x, ts, noise):
    """Ancestral sampling from the posterior q(x_s | x_t, x0_hat) [ho2020ddpm, Eq. 6 and 7]."""
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        bar_t, bar_s = _amplitudes(schedule, t)[0] ** 2, _amplitudes(schedule, s)[0] ** 2
        alpha_step = bar_t / bar_s
        beta_step = 1 - alpha_step
        mean = (bar_s.sqrt() * beta_step * x0_of(x, t) + alpha_step.sqrt() * (1 - bar_s) * x) / (1 - bar_t)
        variance = (1 - bar_s) / (1 - bar_t) * beta_step
        x = mean + variance.sqrt() * noise() if variance > 0 else mean
    return x


def dpm_solver_single_step(eps_of, schedule, x, ts, orders):
    """DPM-Solver-1, -2 and -3 in their `dpmsolver` form [lu2022dpmsolver, Alg. 1 and 2]."""
    first = 0
    for order in orders:
        nodes = ts[first : first + order + 1]
        first += order
        s, t = nodes[0], nodes[-1]
        (alpha_s, _, lambda_s), (alpha_t, sigma_t, lambda_t) = (
            _amplitudes(schedule, s),
            _amplitudes(schedule, t),
        )
        h = lambda_t - lambda_s
        model_s = eps_of(x, s)
        phi_1 = torch.expm1(h)
        if order == 1:
            x = alpha_t / alpha_s * x - sigma_t * phi_1 * model_s
            continue
        alpha_1, sigma_1, lambda_1 = _amplitudes(schedule, nodes[1])
        r1 = (lambda_1 - lambda_s) / h
        x_1 = alpha_1 / alpha_s * x - sigma_1 * torch.expm1(r1 * h) * model_s
        model_1 = eps_of(x_1, nodes[1])
        if order == 2:
            x = (
                alpha_t / alpha_s * x
                - sigma_t * phi_1 * model_s
                - 0.5 / r1 * sigma_t * phi_1 * (model_1 - model_s)
            )
            continue
        alpha_2, sigma_2, lambda_2 = _amplitudes(schedule, nodes[2])
        r2 = (lambda_2 - lambda_s) / h
        phi_22 = torch.expm1(r2 * h) / (r2 * h) - 1
        x_2 = (
            alpha_2 / alpha_s * x
            - sigma_2 * torch.expm1(r2 * h) * model_s
            - r2 / r1 * sigma_2 * phi_22 * (model_1 - model_s)
        )
        model_2 = eps_of(x_2, nodes[2])
        phi_2 = phi_1 / h - 1
        x = alpha_t / alpha_s * x - sigma_t * phi_1 * model_s - 1 / r2 * sigma_t * phi_2 * (model_2 - model_s)
    return x


def dpm_solver_fast_orders(order, nfe):
    """Orders of the single-step blocks, as the authors' code has them."""
    if order == 2:
        return [2] * (nfe // 2) if nfe % 2 == 0 else [2] * (nfe // 2) + [1]
    blocks = nfe // 3 + 1
    if nfe % 3 == 0:
        return [3] * (blocks - 2) + [2, 1]
    return [3] * (blocks - 1) + [nfe % 3]


def dpmpp_multistep(x0_of, schedule, x, ts, order, lower_final, taylor=False):
    """DPM-Solver++(2M) and (3M) as their authors' code has them [lu2022dpmsolverpp, Alg. 2]."""
    n = len(ts) - 1
    models, lambdas = [], []
    for i in range(n):
        t, s = ts[i], ts[i + 1]
        models.append(x0_of(x, t))
        (_, sigma_t, lambda_t), (alpha_s, sigma_s, lambda_s) = (
            _amplitudes(schedule, t),
            _amplitudes(schedule, s),
        )
        lambdas.append(lambda_t)
        step_order = min(order, i + 1)
        if lower_final:
            step_order = min(step_order, n - i)
        h = lambda_s - lambda_t
        phi_1 = torch.expm1(-h)
        x = sigma_s / sigma_t * x - alpha_s * phi_1 * models[-1]
        if step_order == 2:
            r0 = (lambdas[-1] - lambdas[-2]) / h
            d1 = (models[-1] - models[-2]) / r0
            x = x + alpha_s * (phi_1 / h + 1) * d1 if taylor else x - 0.5 * alpha_s * phi_1 * d1
        if step_order == 3:
            r0, r1 = (lambdas[-1] - lambdas[-2]) / h, (lambdas[-2] - lambdas[-3]) / h
            d1_0, d1_1 = (models[-1] - models[-2]) / r0, (models[-2] - models[-3]) / r1
            d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            phi_2 = phi_1 / h + 1
            phi_3 = phi_2 / h - 0.5
            x = x + alpha_s * phi_2 * d1 - alpha_s * phi_3 * d2
    return x


def unipc(f, schedule, x, ts, order, variant, pred, lower_final=True):
    """UniPC with B(h), as its authors' code has it [zhao2023unipc, Alg. 1 and 2]."""
    n = len(ts) - 1
    models, times = [f(x, ts[0])], [ts[0]]
    for i in range(n):
        t = ts[i + 1]
        step_order = min(order, i + 1)
        if lower_final:
            step_order = min(step_order, n - i)
        correct = i < n - 1
        x, model_t = _unipc_update(f, schedule, x, models, times, t, step_order, variant, pred, correct)
        models.append(model_t)
        times.append(t)
    return x


def _unipc_update(f, schedule, x, models, times, t, order, variant, pred, correct):
    (alpha_s, sigma_s, lambda_s), (alpha_t, sigma_t, lambda_t) = (
        _amplitudes(schedule, times[-1]),
        _amplitudes(schedule, t),
    )
    h = lambda_t - lambda_s
    ratios, differences = [], []
    for back in range(1, order):
        ratio = (_amplitudes(schedule, times[-1 - back])[2] - lambda_s) / h
        ratios.append(ratio)
        differences.append((models[-1 - back] - models[-1]) / ratio)
    ratios = torch.stack([*ratios, torch.ones_like(h)])
    z = -h if pred == "x0" else h
    b_h = z if variant == "bh1" else torch.expm1(z)
    h_phi_k, factorial = torch.expm1(z) / z - 1, 1
    matrix, right = [], []
    for k in range(1, order + 1):
        matrix.append(ratios ** (k - 1))
        right.append(h_phi_k * factorial / b_h)
        factorial *= k + 1
        h_phi_k = h_phi_k / z - 1 / factorial
    matrix, right = torch.stack(matrix), torch.stack(right)
    predictor = []
    if order > 1:
        # the official code takes 1/2 for order 2 instead of solving its 1 x 1 system
        predictor = [0.5] if order == 2 else torch.linalg.solve(matrix[:-1, :-1], right[:-1])
    corrector = [0.5] if order == 1 else torch.linalg.solve(matrix, right)
    if pred == "x0":
        base = sigma_t / sigma_s * x - alpha_t * torch.expm1(z) * models[-1]
        outer = alpha_t * b_h
    else:
        base = alpha_t / alpha_s * x - sigma_t * torch.expm1(z) * models[-1]
        outer = sigma_t * b_h
    predicted = base - outer * sum(w * d for w, d in zip(predictor, differences, strict=True))
    if not correct:
        return predicted, None
    model_t = f(predicted, t)
    past = sum(w * d for w, d in zip(corrector[:-1], differences, strict=True))
    return base - outer * (past + corrector[-1] * (model_t - models[-1])), model_t


def deis(eps_of, schedule, x, ts, points):
    """tAB-DEIS; Simpson's rule over log-SNR for alpha_s int L_j(t) d(sigma / alpha) [zhang2023deis]."""
    history = []
    for i, (t, s) in enumerate(zip(ts[:-1], ts[1:], strict=True)):
        history.insert(0, (t, eps_of(x, t)))
        history = history[:points]
        (alpha_t, _, lambda_t), (alpha_s, _, lambda_s) = _amplitudes(schedule, t), _amplitudes(schedule, s)
        lambdas = torch.linspace(float(lambda_t), float(lambda_s), 4001, dtype=torch.float64)
        simpson = torch.tensor([1.0] + [4.0, 2.0] * 1999 + [4.0, 1.0], dtype=torch.float64)
        simpson *= (lambda_s - lambda_t) / 4000 / 3
        tau = schedule.t_of_lambda(lambdas)
        x = alpha_s / alpha_t * x
        for j, (t_j, eps_j) in enumerate(history):
            lagrange = torch.ones_like(tau)
            for m, (t_m, _) in enumerate(history):
                if m != j:
                    lagrange = lagrange * (tau - t_m) / (t_j - t_m)
            x = x + alpha_s * (simpson * lagrange * -torch.exp(-lambdas)).sum() * eps_j
        assert len(history) == min(points, i + 1)
    return x


def ipndm(eps_of, schedule, x, ts, order):
    """iPNDM in x / alpha and sigma / alpha, as in diff-sampler [zhang2023deis]."""
    past = []
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        (alpha_t, sigma_t, _), (alpha_s, sigma_s, _) = _amplitudes(schedule, t), _amplitudes(schedule, s)
        d = eps_of(x, t)
        used = min(order, len(past) + 1)
        if used == 1:
            mean = d
        elif used == 2:
            mean = (3 * d - past[-1]) / 2
        elif used == 3:
            mean = (23 * d - 16 * past[-1] + 5 * past[-2]) / 12
        else:
            mean = (55 * d - 59 * past[-1] + 37 * past[-2] - 9 * past[-3]) / 24
        past.append(d)
        x = alpha_s * (x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * mean)
    return x


def heun(x0_of, schedule, x, ts):
    """EDM's deterministic sampler in x / alpha and sigma / alpha, Euler last [karras2022edm, Alg. 1]."""
    n = len(ts) - 1
    for i in range(n):
        (alpha_t, sigma_t, _), (alpha_s, sigma_s, _) = (
            _amplitudes(schedule, ts[i]),
            _amplitudes(schedule, ts[i + 1]),
        )
        level, next_level = sigma_t / alpha_t, sigma_s / alpha_s
        y = x / alpha_t
        d = (y - x0_of(x, ts[i])) / level
        y_next = y + (next_level - level) * d
        if i < n - 1:
            d_next = (y_next - x0_of(alpha_s * y_next, ts[i + 1])) / next_level
            y_next = y + (next_level - level) * (d + d_next) / 2
        x = alpha_s * y_next
    return x


# A plan file, step by step


def phi(k, z):
    """phi_k by its integral, 40-point Gauss-Legendre."""
    roots, w = np.polynomial.legendre.leggauss(40)
    r = (roots + 1) / 2
    return float(np.sum(w / 2 * np.exp((1 - r) * z) * r ** (k - 1)) / math.factorial(k - 1))


def _scale(scale, h, pred):
    z = h if pred == "eps" else -h
    if scale["kind"] == "bh1":
        return 0.5 * z**2 / (math.exp(z) - 1 - z)
    if scale["kind"] == "bh2":
        return 0.5 * z * (math.exp(z) - 1) / (math.exp(z) - 1 - z)
    return {"none": 1.0, "linear": 1 + scale.get("value", 0) * h, "const": scale.get("value")}[scale["kind"]]


def _taylor_step(document, schedule, x_start, step, deriv, f):
    nodes = document["nodes"]
    lambdas = [node["lambda"] for node in nodes]
    start, end = step["from"], step["to"]
    alpha, sigma = (
        [float(amplitude(schedule.t_of_lambda(v))) for v in lambdas]
        for amplitude in (schedule.alpha, schedule.sigma)
    )
    h = lambdas[end] - lambdas[start]
    z = h if step["pred"] == "eps" else -h
    series = h * phi(1, z) * f[start]
    for k, d in enumerate(deriv, start=1):
        delta = np.array([lambdas[j] - lambdas[start] for j in d["points"]])
        matrix = np.array([delta**r / math.factorial(r) for r in range(1, len(delta) + 1)])
        w = np.linalg.solve(matrix, np.eye(len(delta))[k - 1])
        estimate = sum(float(w_j) * (f[j] - f[start]) for w_j, j in zip(w, d["points"], strict=True))
        series = series + h ** (k + 1) * phi(k + 1, z) * _scale(d["scale"], h, step["pred"]) * estimate
    if step["pred"] == "eps":
        return alpha[end] / alpha[start] * x_start - sigma[end] * series
    return sigma[end] / sigma[start] * x_start + alpha[end] * series


def run_plan(document, eps_of, schedule, x, data_mean=None):
    """Execute the JSON of a plan of Taylor steps literally; returns the result and the number of calls."""
    nodes, states, history, calls = document["nodes"], {0: x}, {"eps": {}, "x0": {}}, 0

    def evaluate(i):
        nonlocal calls
        x_i = states[i]
        alpha, sigma, _ = _amplitudes(schedule, nodes[i]["t"])
        if nodes[i]["eval"] == "net":
            eps = nodes[i]["eps_scale"] * eps_of(x_i, nodes[i]["t"])
            calls += 1
            x0 = (x_i - sigma * eps) / alpha
        else:
            x0 = torch.zeros_like(x_i) if nodes[i]["eval"] == "afs_zero" else data_mean.expand_as(x_i)
            eps = (x_i - alpha * x0) / sigma
        history["eps"][i], history["x0"][i] = eps, x0

    evaluate(0)
    for k, step in enumerate(document["steps"]):
        f = history[step["pred"]]
        states[step["to"]] = _taylor_step(document, schedule, states[step["from"]], step, step["deriv"], f)
        if k == len(document["steps"]) - 1:
            break
        evaluate(step["to"])
        if step["corr"]:
            states[step["to"]] = _taylor_step(
                document, schedule, states[step["from"]], step, step["corr"]["deriv"], f
            )
            if step["corr"]["mode"] == "implicit":
                evaluate(step["to"])
    return states[len(nodes) - 1], calls


# Samplers whose numbers are trained, as their authors' code has them; `denoise(x, edm_sigma)` is x0_hat of x / alpha


def dyweight(denoise, x, ts, weights, told, analytic):
    """DyWeight's sampler in x / alpha and edm_sigma [zhao2026dyweight]."""
    slopes, t_true = [], ts[0]
    for i in range(len(ts) - 1):
        t_cur = t_true
        if analytic and i == 0:
            slopes.append(x / (1 + t_cur**2).sqrt())
        else:
            denoised = denoise(x, (told[i - 1 if analytic else i] * t_cur).abs())
            slopes.append((x - denoised) / (t_cur + 1e-8))
        x = x + (ts[i + 1] - t_cur) * sum(weights[i, j] * slopes[j] for j in range(i + 1))
        t_true = t_cur + weights[i, : i + 1].sum() * (ts[i + 1] - t_cur)
    return x


def epd(denoise, x, ts, split, direction, told, weights, analytic):
    """EPD's sampler in x / alpha and edm_sigma [zhu2025epd]."""
    for i, (t_cur, t_next) in enumerate(zip(ts[:-1], ts[1:], strict=True)):
        slope = x / (1 + t_cur**2).sqrt() if analytic and i == 0 else (x - denoise(x, t_cur)) / t_cur
        following = x
        for r, o, a, w in zip(split[i], direction[i], told[i], weights[i], strict=True):
            t_mid = t_next**r * t_cur ** (1 - r)
            x_mid = x + (t_mid - t_cur) * slope
            slope_mid = (x_mid - denoise(x_mid, a * t_mid)) / t_mid
            following = following + w * o * (t_next - t_cur) * slope_mid
        x = following
    return x


def generalized_solver(eps_of, schedule, x, ts, told, state, x0):
    """GAS's GeneralizedSolver with theoretical coefficients, its lists of the last `order` entries [oganov2025gas]."""
    order, n = len(state), len(ts) - 1

    def predict(x, k):
        alpha, sigma, _ = _amplitudes(schedule, ts[k])
        return (x - sigma * eps_of(x, ts[k] + told[k])) / alpha

    models, times, states = [predict(x, 0)], [ts[0]], [x]
    for step in range(1, n + 1):
        k, t = step - 1, ts[step]
        (_, sigma_s, lambda_s), (alpha_t, sigma_t, lambda_t) = (
            _amplitudes(schedule, times[-1]),
            _amplitudes(schedule, t),
        )
        h = lambda_t - lambda_s
        phi_1 = torch.expm1(-h)
        used = min(step, order)
        x_t = (sigma_t / sigma_s + state[0][k]) * x - (alpha_t * phi_1 + x0[0][k]) * models[-1]
        if used >= 2:
            r0 = (lambda_s - _amplitudes(schedule, times[-2])[2]) / h
            d1_0 = (models[-1] - models[-2]) / r0
            if used == 2:
                x_t = x_t - (0.5 * (alpha_t * phi_1) + x0[1][k]) * d1_0
        if used >= 3:
            before = [_amplitudes(schedule, s)[2] for s in times[-3:-1]]
            r1 = (before[1] - before[0]) / h
            d1_1 = (models[-2] - models[-3]) / r1
            phi_2 = phi_1 / h + 1
            phi_3 = phi_2 / h - 0.5
            x_t = x_t + (alpha_t * phi_2 + x0[1][k]) * (d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1))
            x_t = x_t - (alpha_t * phi_3 + x0[2][k]) * (d1_0 - d1_1) / (r0 + r1)
        for i in range(4, len(models) + 1):
            x_t = x_t + x0[i - 1][k] * models[-i]
        for i in range(2, len(states) + 1):
            x_t = x_t + state[i - 1][k] * states[-i]
        x = x_t
        if step == n:
            return x
        models, times, states = models[-order + 1 :], times[-order + 1 :], states[-order + 1 :]
        if order == 1:
            models, times, states = [], [], []
        models.append(predict(x, step))
        times.append(t)
        states.append(x)


def ld3_unipc(x0_of, schedule, x, ts, told, order, variant):
    """LD3's UniPC: steps between ts, while the network is told other times [tong2024ld3]."""
    n = len(ts) - 1

    def f(x, t):
        return x0_of(x, told[ts.index(t)])

    models, times = [f(x, ts[0])], [ts[0]]
    for i in range(n):
        step_order = min(order, i + 1, n - i)
        x, model_t = _unipc_update(
            f, schedule, x, models, times, ts[i + 1], step_order, variant, "x0", i < n - 1
        )
        models.append(model_t)
        times.append(ts[i + 1])
    return x


def ld3_ipndm(eps_of, schedule, x, ts, told, order):
    """LD3's iPNDM [tong2024ld3]."""
    return ipndm(lambda x, t: eps_of(x, told[ts.index(t)]), schedule, x, ts, order)


def s4s(x0_of, schedule, x, ts, told, weights):
    """S4S: weights of the data predictions under the factors of DDIM [frankel2025s4s]."""
    models = []
    for i in range(len(ts) - 1):
        models.append(x0_of(x, told[i], ts[i]))
        (_, sigma_s, lambda_s), (alpha_t, sigma_t, lambda_t) = (
            _amplitudes(schedule, ts[i]),
            _amplitudes(schedule, ts[i + 1]),
        )
        scale = alpha_t * (1 - torch.exp(lambda_s - lambda_t))
        x = sigma_t / sigma_s * x + scale * sum(w * m for w, m in zip(weights[i], models, strict=False))
    return x


def dual_solver(both_of, schedule, x, ts, numbers, order):
    """Dual-Solver's predictor and corrector, in its variables u, v and L [park2026dualsolver]."""
    alpha, sigma, _ = _amplitudes(schedule, ts)
    n = len(ts) - 1

    def u(i, gamma):
        return alpha[i] * sigma[i] ** -gamma if gamma >= 0 else alpha[i] ** (1 + gamma)

    def v(i, gamma):
        return sigma[i] ** (1 - gamma) if gamma >= 0 else sigma[i] * alpha[i] ** gamma

    def term(g, i, gamma, logit, kappa, current, other, corrects, second):
        tau = 1 / (1 + math.exp(-logit))
        L = lambda y: tau * torch.log(y) + (1 - tau) * y  # noqa: E731
        c, following = g(i, gamma), g(i + 1, gamma)
        integral = current * (following - c)
        if second:
            delta = L(following) - L(c)
            weight = 0.5 * (delta / ((1 - tau) + tau / c) + kappa * delta**2)
            if corrects:
                return integral + weight * (other - current)
            ratio = (L(c) - L(g(i - 1, gamma))) / (delta + 1e-8)
            return integral + weight * (current - other) / ratio.clamp_min(1e-8)
        return integral

    corrected, before, (xc, ec), (xn, en) = x, None, both_of(x, ts[0]), (None, None)
    for i in range(n):
        for corrects in (False, True):
            gamma, tau_x, tau_e, kappa_x, kappa_e = numbers[i, int(corrects)].tolist()
            second = corrects or (min(order, n - i) == 2 and i > 0)
            ox, oe = (xn, en) if corrects else before or (None, None)
            X = term(u, i, gamma, tau_x, kappa_x, xc, ox, corrects, second)
            E = term(v, i, gamma, tau_e, kappa_e, ec, oe, corrects, second)
            if gamma >= 0:
                moved = (sigma[i + 1] / sigma[i]) ** gamma * corrected + sigma[i + 1] ** gamma * (X + E)
            else:
                moved = (alpha[i + 1] / alpha[i]) ** -gamma * corrected + alpha[i + 1] ** -gamma * (X + E)
            if not corrects:
                if i == n - 1:
                    return moved
                xn, en = both_of(moved, ts[i + 1])
        corrected, before, xc, ec = moved, (xc, ec), xn, en
