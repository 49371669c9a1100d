"""What a pipeline of diffusers tells its network at N steps, and what is wrong with it: nothing is searched.

The pipeline makes one run of its own, of which the scheduler's lists and the network's arguments are noted.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.interop.asking import PROBE
from fewstep.interop.diffusers_model import _FAILS, require_diffusers
from fewstep.interop.text_model import tokenizers_of

ALIASES = {
    "spacing": "timestep_spacing",
    "karras": "use_karras_sigmas",
    "zero-snr": "rescale_betas_zero_snr",
    "prediction": "prediction_type",
    "final": "final_sigmas_type",
}
"""Short names of `--with` for fields of a scheduler's configuration."""
LISTS = ("timesteps", "sigmas")
TABLES = (
    "UNet2DConditionModel",
    "UNet2DModel",
    "PixArtTransformer2DModel",
    "HunyuanDiT2DModel",
    "Kandinsky3UNet",
)
"""Networks that are trained on tables of noise levels; other text-to-image networks are trained as flows."""
ROUNDED = 0.3  # timesteps of a thousand by which a told time may be off: float32 rounds to 1e-4
EARLY = 0.5  # nats of log-SNR by which a run may begin later than the noisiest time
RESIDUAL = 1e-3  # noise left at the end, in units of the data


@dataclass(frozen=True)
class Call:
    """One evaluation. sigma: noise of the state as the scheduler counts it. told: what the network got. rows: of it."""

    timestep: float
    sigma: float
    told: float
    rows: int


@dataclass(frozen=True)
class Finding:
    """Something that is wrong. trial: what `--with` takes to try the fix, None where it cannot be tried so."""

    kind: str
    sentence: str
    fix: str
    trial: str | None = None


@dataclass(frozen=True)
class Examination:
    """What was seen of a run.

    Attributes:
        flow: whether the scheduler is of a flow, whose sigma is its time; else sigma is noise / signal.
        start, end: noise of the first state, and of the result.
        network: class of the network. dtype: of its weights.
        given: lists that the pipeline, or its caller, handed to set_timesteps, by name; `mu` among them.
        config: of the scheduler.
        row_of: from sigma to the timestep that belongs to it.
        prompts: of each tokenizer, the most tokens that a prompt has and the limit.
    """

    pipeline: str
    scheduler: str
    steps: int
    flow: bool
    calls: tuple[Call, ...]
    start: float
    end: float
    network: str
    dtype: str
    given: Mapping[str, Any]
    config: Mapping[str, Any]
    row_of: Callable[[float], float]
    prompts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    saved_by: str = ""


def examine(
    pipe: Any,
    call: Mapping[str, Any] | None = None,
    *,
    steps: int,
    prompts: Sequence[str] = (PROBE,),
    changes: Mapping[str, Any] | None = None,
) -> Examination:
    """One run of a pipeline, watched; the pipeline is as before.

    Args:
        pipe: of diffusers.
        call: arguments of its call.
        steps: num_inference_steps.
        prompts: whose tokens are counted; the first is used.
        changes: fields of the scheduler's configuration, or lists of timesteps or sigmas, to run with.

    Raises:
        ConfigError: a change that the scheduler does not know, or a run that fails.
    """
    changes = dict(changes or {})
    lists = {name: changes.pop(name) for name in LISTS if name in changes}
    own = pipe.scheduler
    scheduler = _changed(own, changes)
    watched = _Watched(scheduler)
    before = dict(pipe.__dict__)
    pipe.__dict__["scheduler"] = scheduler
    arguments: dict[str, Any] = {"output_type": "latent", **(call or {})}
    arguments |= lists if lists else {"num_inference_steps": steps}
    run = getattr(type(pipe).__call__, "__wrapped__", type(pipe).__call__)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), watched.hooks(pipe):
            pipe.__dict__["_progress_bar_config"] = {"disable": True}
            run(pipe, **({"prompt": prompts[0]} if _takes(pipe, "prompt") else {}), **arguments)
    except _FAILS as error:
        raise ConfigError(
            f"{type(pipe).__name__} must run with {type(scheduler).__name__} at {steps} steps, but: "
            f"{' '.join(str(error).split()):.250}"
        ) from error
    finally:
        pipe.__dict__.clear()
        pipe.__dict__.update(before)
    return _examination(pipe, call or {}, scheduler, watched, steps, prompts)


class _Watched:
    """Notes what a scheduler is asked for and what a network is told."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.given: dict[str, Any] = {}
        self.timesteps: list[float] = []
        self.heard: list[list[tuple[str, dict[Any, float], int]]] = [[]]

    @contextmanager
    def hooks(self, pipe: Any) -> Iterator[None]:
        own_set, own_step = self.scheduler.set_timesteps, self.scheduler.step

        @functools.wraps(own_set)
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self.given = {
                name: value for name, value in kwargs.items() if value is not None and name != "device"
            }
            return own_set(*args, **kwargs)

        @functools.wraps(own_step)
        def step(output: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
            self.timesteps.append(float(timestep))
            self.heard.append([])
            return own_step(output, timestep, *args, **kwargs)

        parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        handles = [
            part.register_forward_pre_hook(self._hear(name), with_kwargs=True) for name, part in parts.items()
        ]
        self.scheduler.set_timesteps, self.scheduler.step = set_timesteps, step
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            del self.scheduler.__dict__["set_timesteps"], self.scheduler.__dict__["step"]

    def _hear(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            said: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
            numbers = {
                key: float(value.flatten()[0])
                for key, value in said.items()
                if isinstance(value, Tensor) and value.ndim <= 1 and value.numel()
            }
            first = args[0] if args else said.get("hidden_states", next(iter(said.values()), ()))
            self.heard[-1].append((name, numbers, len(first)))

        return hook


def _examination(
    pipe: Any, call: Mapping[str, Any], scheduler: Any, watched: _Watched, steps: int, prompts: Sequence[str]
) -> Examination:
    heard = [calls for calls in watched.heard[: len(watched.timesteps)] if calls]
    if not heard:
        raise ConfigError(
            f"{type(pipe).__name__} must call its network before each step; it has called none."
        )
    name = heard[0][-1][0]
    numbers = [next(n for part, n, _ in reversed(calls) if part == name) for calls in heard]
    moving = [key for key in numbers[0] if len({n.get(key) for n in numbers}) > 1] or [*numbers[0]][:1]
    told = [n[moving[0]] if moving else math.nan for n in numbers]
    rows = [sum(count for part, _, count in calls if part == name) for calls in heard]
    flow = is_flow(scheduler)
    sigmas, end = _sigmas(scheduler, watched.timesteps, flow)
    net = pipe.components[name]
    calls = tuple(Call(*numbers) for numbers in zip(watched.timesteps, sigmas, told, rows, strict=False))
    counts = {
        tokenizer: (max(len(part(prompt).input_ids) for prompt in prompts), limit)
        for tokenizer, (part, limit) in tokenizers_of(pipe, call).items()
    }
    return Examination(
        type(pipe).__name__, type(scheduler).__name__, steps, flow, calls, sigmas[0], end, type(net).__name__,
        str(next(net.parameters()).dtype).removeprefix("torch."), watched.given, dict(scheduler.config),
        functools.partial(_row_of, scheduler, flow), counts, str(pipe.config.get("_diffusers_version", "")),
    )  # fmt: skip


def is_flow(scheduler: Any) -> bool:
    """Whether sigmas are times of a flow."""
    names = [kind.__name__ for kind in type(scheduler).__mro__]
    return any(name.startswith("FlowMatch") for name in names) or bool(
        scheduler.config.get("use_flow_sigmas")
    )


def _changed(own: Any, changes: Mapping[str, Any]) -> Any:
    if not changes:
        return own
    fields = {ALIASES.get(name, name.replace("-", "_")): value for name, value in changes.items()}
    known = inspect.signature(type(own).__init__).parameters
    for name in fields:
        if name not in known:
            allowed = ", ".join([*ALIASES, *LISTS, *sorted(set(known) - {"self"})])
            raise ConfigError(f"--with must name a field of {type(own).__name__} ({allowed}); got {name!r}.")
    try:
        return type(own).from_config(own.config, **fields)
    except _FAILS as error:
        raise ConfigError(
            f"{type(own).__name__} does not take {fields}: {' '.join(str(error).split()):.200}"
        ) from None


def _sigmas(scheduler: Any, timesteps: Sequence[float], flow: bool) -> tuple[list[float], float]:
    """Noise of the states at the timesteps of a run, and of its result."""
    listed = getattr(scheduler, "sigmas", None)
    if listed is not None and len(listed) >= len(timesteps):
        values = [float(s) for s in listed]
        return values[: len(timesteps)], values[len(timesteps)] if len(values) > len(timesteps) else 0.0
    table = _table(scheduler)
    end = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    return [float(np.interp(t, np.arange(len(table)), table)) for t in timesteps], _edm(end)


def _edm(alpha_bar: float) -> float:
    return math.sqrt((1 - alpha_bar) / alpha_bar) if alpha_bar > 0 else math.inf


def _table(scheduler: Any) -> list[float]:
    return [_edm(float(a)) for a in scheduler.alphas_cumprod]


def _row_of(scheduler: Any, flow: bool, sigma: float) -> float:
    """The timestep that belongs to a state's noise; log sigma is linear between rows, as schedulers have it."""
    if flow:
        return sigma * float(scheduler.config.num_train_timesteps)
    table = np.array(_table(scheduler))
    finite = np.isfinite(table) & (table > 0)
    if sigma <= 0 or not math.isfinite(sigma):
        return 0.0 if sigma <= 0 else float(len(table) - 1)
    return float(np.interp(math.log(sigma), np.log(table[finite]), np.arange(len(table))[finite]))


def _takes(pipe: Any, name: str) -> bool:
    return name in inspect.signature(type(pipe).__call__).parameters


# What is wrong


def findings(seen: Examination) -> list[Finding]:
    """All that is wrong with a run, in the order of `CHECKS`."""
    return [finding for check in CHECKS for finding in check(seen)]


def _family(seen: Examination) -> Iterator[Finding]:
    table = seen.network in TABLES
    if table == seen.flow:
        kind = "a table of noise levels" if table else "a flow"
        yield Finding(
            "family",
            f"{seen.scheduler} is a scheduler of {'flows' if seen.flow else 'tables'}, but {seen.network} is trained "
            f"on {kind}: states and times mean other things to it.",
            "put the model's own scheduler back, such as "
            f"{'DDIMScheduler' if table else 'FlowMatchEulerDiscreteScheduler'}",
        )


def _prediction(seen: Examination) -> Iterator[Finding]:
    alpha_bar = 1 / (1 + seen.start**2) if math.isfinite(seen.start) else 0.0
    if not seen.flow and alpha_bar < 1e-5 and seen.config.get("prediction_type") == "epsilon":
        yield Finding(
            "zero-snr-eps",
            f"The first state has no signal (alpha_bar {alpha_bar:.1g}), and noise predicted there says nothing of the "
            "image: x0 is 0/0.",
            "take rescale_betas_zero_snr back, or a model that predicts v",
            "zero-snr=false",
        )


def _shift(seen: Examination) -> Iterator[Finding]:
    shift, n = float(seen.config.get("shift") or 1.0), len(seen.calls)
    if not seen.flow or n < 2 or shift == 1.0 or seen.config.get("use_dynamic_shifting"):
        return
    sigmas = [call.sigma for call in seen.calls]
    between = [_unshifted(sigma, shift) for sigma in sigmas]
    again = [_unshifted(u, shift) for u in between]
    # a pipeline's own sigmas are an even line down to 1/n or 1/1000, before the shift
    if _bend(again) < 0.2 * _bend(between) or ("sigmas" not in seen.given and _is_twice(seen, between)):
        yield Finding(
            "shifted-twice",
            f"The shift {shift:g} acts twice: sigmas are {_listed(sigmas)}, where once gives "
            f"{_listed([_shifted(1 - i / n, shift) for i in range(n)])}.",
            "give the sigmas 1, 1 - 1/n, ... unshifted",
            f"sigmas={','.join(f'{1 - i / n:.6g}' for i in range(n))}",
        )


def _is_twice(seen: Examination, between: Sequence[float]) -> bool:
    """Whether what was shifted already went from the shifted 1 to the shifted 1/1000, as the default list does."""
    n_rows = float(seen.config.get("num_train_timesteps") or 1000)
    line = np.linspace(1, _shifted(1 / n_rows, float(seen.config["shift"])), len(between))
    return bool(np.abs(line - np.array(between)).max() < 1e-3)


def _shifted(u: float, shift: float) -> float:
    return shift * u / (1 + (shift - 1) * u)


def _unshifted(sigma: float, shift: float) -> float:
    return sigma / (shift - (shift - 1) * sigma)


def _bend(values: Sequence[float]) -> float:
    """How far a list is from an even line."""
    line = np.linspace(values[0], values[-1], len(values))
    return float(np.abs(np.array(values) - line).max()) + 1e-6


def _disagreement(seen: Examination) -> Iterator[Finding]:
    rows = [seen.row_of(call.sigma) for call in seen.calls]
    off = [abs(call.timestep - row) for call, row in zip(seen.calls, rows, strict=True)]
    worst = int(np.argmax(off))
    wanted = seen.given.get("timesteps")
    if wanted is not None and any(
        abs(float(a) - call.timestep) > 1 for a, call in zip(wanted, seen.calls, strict=False)
    ):
        yield Finding(
            "timesteps-ignored",
            f"The timesteps that were given, {_listed(list(map(float, wanted)))}, are not those that are used, "
            f"{_listed([call.timestep for call in seen.calls])}.",
            "give sigmas, which the scheduler keeps to, instead of timesteps",
        )
    if off[worst] > 1 + 1e-3:
        yield Finding(
            "timesteps-disagree",
            f"At step {worst + 1} the state has the noise of timestep {rows[worst]:.4g}, but the network is told "
            f"{seen.calls[worst].timestep:.4g}.",
            "give timesteps or sigmas alone, and let the scheduler derive the others",
        )
    elif off[worst] > ROUNDED and all(call.timestep == round(call.timestep) for call in seen.calls):
        yield Finding(
            "integer-times",
            f"Times are rounded to whole timesteps: at step {worst + 1} the state has the noise of "
            f"{rows[worst]:.5g}, but the network is told {seen.calls[worst].timestep:.5g}.",
            "take a scheduler that tells times between rows, such as EulerDiscreteScheduler, or a plan of fewstep",
        )


def _told(seen: Examination) -> Iterator[Finding]:
    told = np.array([call.told for call in seen.calls])
    k = np.array([call.timestep for call in seen.calls])
    forms = {"k": k, "k/1000": k / 1000, "1-k/1000": 1 - k / 1000}
    scale = {"k": 1.0, "k/1000": 1000.0, "1-k/1000": 1000.0}
    nearest = min(forms, key=lambda name: float(np.abs(told - forms[name]).max()) * scale[name])
    off = np.abs(told - forms[nearest]) * scale[nearest]
    worst = int(np.argmax(off))
    if ROUNDED < off[worst] < 20:
        yield Finding(
            "bf16-times",
            f"Times are rounded on their way to the network ({seen.dtype}): at step {worst + 1} it is told "
            f"{told[worst] * scale[nearest]:.6g} of 1000 in the place of {forms[nearest][worst] * scale[nearest]:.6g}.",
            "run the pipeline in float32, or sample with fewstep and search in the dtype of use",
            "dtype=float32",
        )


def _start(seen: Examination) -> Iterator[Finding]:
    if seen.flow:
        if seen.start < 0.98:
            yield Finding(
                "late-start",
                f"The run begins at sigma {seen.start:.4g}, but with pure noise, which belongs to 1.",
                "begin at sigma 1",
            )
        return
    noisiest = seen.config.get("num_train_timesteps", 1000) - 1
    first = seen.calls[0].timestep
    if noisiest - first > 1 and _lambda_gap(seen, first, noisiest) > EARLY:
        yield Finding(
            "leading",
            f"The run begins at timestep {first:.4g} of {noisiest}, but with pure noise: the noisiest steps are never "
            f"made ({seen.config.get('timestep_spacing', 'leading')} spacing).",
            "take trailing spacing",
            "spacing=trailing",
        )


def _lambda_gap(seen: Examination, first: float, noisiest: float) -> float:
    """Nats of half log-SNR between two timesteps of a table, found by the inverse of `row_of`."""

    def log_sigma(row: float) -> float:
        low, high = -12.0, 12.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if seen.row_of(math.exp(middle)) < row else (low, middle)
        return low

    return log_sigma(noisiest) - log_sigma(first)


def _end(seen: Examination) -> Iterator[Finding]:
    if seen.end > RESIDUAL:
        keys = {"final_sigmas_type": "final=zero", "set_alpha_to_one": "set-alpha-to-one=true"}
        trial = next((value for key, value in keys.items() if key in seen.config), None)
        yield Finding(
            "residual-noise",
            f"The result keeps noise of standard deviation {seen.end:.2g}: the last step does not end at 0.",
            "end at zero noise",
            trial,
        )


def _cost(seen: Examination) -> Iterator[Finding]:
    if len(seen.calls) != seen.steps and not set(LISTS) & seen.given.keys():
        yield Finding(
            "calls",
            f"{seen.steps} steps take {len(seen.calls)} network calls with {seen.scheduler}.",
            "count network calls, not steps, where samplers are compared",
        )


def _prompts(seen: Examination) -> Iterator[Finding]:
    for name, (count, limit) in seen.prompts.items():
        if count > limit:
            yield Finding(
                "prompt-cut",
                f"{name} reads {limit} tokens, but a prompt has {count}: its end is cut off without an error.",
                "shorten it, or raise max_sequence_length in --call",
            )


def _versions(seen: Examination) -> Iterator[Finding]:
    here = str(require_diffusers().__version__)
    if _version(seen.saved_by) > _version(here):
        yield Finding(
            "versions",
            f"The pipeline was saved by diffusers {seen.saved_by}, but {here} is installed: fields that it does not "
            "know are passed over.",
            f"install diffusers {seen.saved_by}",
        )


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


CHECKS: tuple[Callable[[Examination], Iterator[Finding]], ...] = (
    _family, _prediction, _shift, _disagreement, _told, _start, _end, _cost, _prompts, _versions,
)  # fmt: skip


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
