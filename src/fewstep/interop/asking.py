"""A pipeline of diffusers as a function of (x_t, timestep, prompts): its own code between two calls of its scheduler.

The scheduler is the interface that text-to-image pipelines share: guidance, rescaling, signs, packing and units of
time are settled before `scheduler.step` is called. So the pipeline runs with a stand-in that names one timestep and
breaks the run off at `step`; what it was handed there is the function's value. Three attributes are put on the
pipeline's instance meanwhile, and its class is untouched:

    scheduler        the stand-in
    prepare_latents  hands out the state that is asked about
    encode_prompt    remembers what it said of each prompt
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.checks import ConfigError, DataError

PROBE = "a photo of a red house by the sea"
_EACH = re.compile(r"(negative_)?prompt(_\d)?")
"""Arguments of `encode_prompt` that hold a text for each image; other lists of texts belong to all of them."""
_PROBED = (1.0, 999.0, 500.0)
"""Timesteps at which it is observed what the parts are told."""
_BENT = 5e-3
"""Share by which the told time may leave a straight line: bfloat16 rounds it to two or three digits."""


class Answered(Exception):
    """Carries what a pipeline hands to its scheduler: (output, sample)."""


class StandIn:
    """A scheduler that names the timesteps it was given, passes states on, and raises `Answered` at a step.

    Everything else is that of the pipeline's own scheduler.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, own: Any) -> None:
        self._own = own
        self.times = torch.zeros(0)
        self.passing: list[Tensor] = []  # states to continue with before the step that is asked about
        self.timesteps, self.num_inference_steps = self.times, 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_own":
            raise AttributeError(name)
        return getattr(self._own, name)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        **_: Any,
    ) -> None:
        """Name the timesteps that are asked about, whatever the pipeline wants."""
        self.timesteps = self.times.to(device) if device is not None else self.times
        self.num_inference_steps = len(self.times)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Nothing: there is one step."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state itself: it is of unit variance."""
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, **__: Any) -> Any:
        """Pass a state on, or break the run off."""
        if self.passing:
            return (self.passing.pop(0),)
        raise Answered(model_output, sample)


class Told(NamedTuple):
    """The argument in which a part is told the time, and the slope of it in the scheduler's timestep."""

    argument: int | str
    slope: float


class Asked:
    """The function. Stateless between calls, so that an evaluation can be made again for its gradient.

    Attributes:
        pipe: the pipeline.
        call: arguments of its call.
        shape: of one state.
        net_name: the part that is called last before the scheduler.
        rows: rows that the network gets for each image, with guidance; parts of a call add up.
        checkpointed: whether the inside of an evaluation is computed again for its gradient rather than kept.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        require_interface(pipe)
        self.pipe, self.call, self.checkpointed = pipe, dict(call), True
        self._kind = type(pipe)
        run = self._kind.__call__
        self._run = getattr(run, "__wrapped__", run)  # the decorator would forbid gradients
        self._encode, self._latents = pipe.encode_prompt, pipe.prepare_latents
        self._stand_in = StandIn(pipe.scheduler)
        self._remembered: dict[tuple[str, str], Any] = {}
        self._prepared: dict[str, Any] = {}
        self._state: Tensor | None = None
        self._timestep: Tensor | None = None
        self._size = 1
        self._told: dict[str, Told] | None = None
        self.alone = False
        with torch.no_grad():
            self.alone = not self._encodings_stack()
            self.shape, self.net_name, self.rows = self._first_look()

    @property
    def net(self) -> nn.Module:
        """The part that predicts."""
        net: nn.Module = self.pipe.components[self.net_name]
        return net

    def __call__(self, x: Tensor, timestep: Tensor, texts: Sequence[str]) -> Tensor:
        """What the pipeline hands to its scheduler, (B, *shape), at the state x and one timestep, ().

        With gradients in x and in the timestep, of which the inside of the network is computed again.
        """
        if self.alone and len(texts) > 1:
            parts = zip(torch.split(x, 1), texts, strict=True)
            return torch.cat([self(part, timestep, [text]) for part, text in parts])
        if not torch.is_grad_enabled():
            return self._once(x, timestep, texts)
        if self._told is None:
            with torch.no_grad():
                self._told = self._clocks()
        if not self.checkpointed:
            return self._once(x, timestep, texts)
        output: Tensor = checkpoint(
            self._once, x, timestep, texts, use_reentrant=False, preserve_rng_state=False
        )
        return output

    def decode(self, x0: Tensor) -> Tensor:
        """Images in [-1, 1], (B, C, H, W): those of a run without timesteps."""
        vae = getattr(self.pipe, "vae", None)
        if vae is not None:  # few pipelines cast before they decode
            x0 = x0.to(next(vae.parameters()).dtype)
        made = self._asked(x0, torch.zeros(0), [PROBE] * len(x0), output_type="pt")
        images: Tensor = made.images
        return 2 * images - 1

    def remember(self, texts: Sequence[str]) -> None:
        """Run the text encoders on texts, which the function is asked about later."""
        for text in dict.fromkeys([PROBE, *texts]):
            with torch.no_grad():
                self._asked(self._blank(), torch.zeros(0), [text])

    def drop_encoders(self) -> None:
        """Take the text encoders out of memory; only remembered texts may be asked about from here on."""
        for name, part in list(self.pipe.components.items()):
            if name.startswith("text_encoder") and part is not None:
                self.pipe.__dict__[name] = None

    def counts_steps(self, x: Tensor, texts: Sequence[str]) -> float:
        """How far the output at a later step is from that at the first, in standard deviations.

        0 unless the pipeline's guidance goes by the number of the step, which no function of the time is.
        """
        times = torch.tensor([900.0, 600.0, 300.0, 100.0])
        worst = 0.0
        with torch.no_grad():
            for k in (1, 3):
                first = self._once(x, times[k], texts)
                later = self._once(x, times, texts, passing=[x] * k)
                worst = max(worst, float((later - first).abs().max() / first.std()))
        return worst

    # One run

    def _blank(self) -> Tensor:
        return torch.zeros(1, *self.shape).to(next(self.net.parameters()))

    def _once(
        self, x: Tensor, timesteps: Tensor, texts: Sequence[str], *, passing: Sequence[Tensor] = ()
    ) -> Tensor:
        try:
            self._asked(x, timesteps.reshape(-1), texts, passing=passing, output_type="latent")
        except Answered as answer:
            output: Tensor = answer.args[0]
            return output
        raise ConfigError(
            f"{self._kind.__name__} must call scheduler.step at each timestep, but its run ended without; "
            "it cannot be sampled here."
        )

    def _asked(
        self,
        x: Tensor | None,
        times: Tensor,
        texts: Sequence[str],
        *,
        passing: Sequence[Tensor] = (),
        **more: Any,
    ) -> Any:
        with self._in_place():
            self._state, self._size = x, len(texts)
            self._timestep = times if times.requires_grad else None
            self._stand_in.times, self._stand_in.passing = times.detach(), list(passing)
            arguments = {"output_type": "latent", **self.call, **more}
            return self._run(
                self.pipe, prompt=list(texts), num_inference_steps=max(len(times), 1), **arguments
            )

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The pipeline with the three attributes, and its hooks, as long as the body runs."""
        own = self.pipe.__dict__
        before = dict(own)  # a run also leaves numbers of its own there
        own.update(
            scheduler=self._stand_in, prepare_latents=self._hand_out, encode_prompt=self._said_of,
            _progress_bar_config={"disable": True},
        )  # fmt: skip
        told = self._told if torch.is_grad_enabled() else None
        hooks = [
            self.pipe.components[name].register_forward_pre_hook(self._with_slope(at), with_kwargs=True)
            for name, at in (told or {}).items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            own.clear()
            own.update(before)
            self._state = self._timestep = None

    def _hand_out(self, *args: Any, **kwargs: Any) -> Any:
        """In place of noise the state; what comes with it, such as positions, is made once for a form of call."""
        plain = [repr(a) for a in args if not isinstance(a, Tensor)]
        named = sorted((name, repr(value)) for name, value in kwargs.items() if not isinstance(value, Tensor))
        key = repr((plain, named))
        if key not in self._prepared:
            with torch.random.fork_rng(devices=[]):  # it draws noise that nobody needs
                self._prepared[key] = self._latents(*args, **kwargs)
        made = self._prepared[key]
        if self._state is None:
            return made
        first = made[0] if isinstance(made, tuple) else made
        if first.shape[1:] != self._state.shape[1:]:
            raise DataError(
                f"A state of {self._kind.__name__} must be {tuple(first.shape[1:])} for its call; "
                f"got {tuple(self._state.shape[1:])}."
            )
        return (self._state, *made[1:]) if isinstance(made, tuple) else self._state

    def _said_of(self, *args: Any, **kwargs: Any) -> Any:
        """What `encode_prompt` says of the texts, from what it said of each before."""
        bound = inspect.signature(self._encode).bind(*args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        for extra in [
            n for n, p in inspect.signature(self._encode).parameters.items() if p.kind is p.VAR_KEYWORD
        ]:
            given.update(given.pop(extra, {}))
        each = {n: v for n, v in given.items() if _EACH.fullmatch(n) and isinstance(v, list)}
        rest = {n: v for n, v in given.items() if n not in each}
        if any(isinstance(value, Tensor) for value in rest.values()):
            return self._encode(*args, **kwargs)
        of_all = repr(sorted((name, repr(value)) for name, value in rest.items()))
        rows = []
        for i in range(self._size):
            own = {name: [values[i]] for name, values in each.items()}
            key = (of_all, repr(own))
            if key not in self._remembered:
                with torch.no_grad():
                    self._remembered[key] = self._encode(**rest, **own)
            rows.append(self._remembered[key])
        return _stacked(rows)

    # Probes

    def _encodings_stack(self) -> bool:
        """Whether the encodings of single prompts, put together, are those of all: else images go one by one."""
        seen: list[Any] = []

        def keep(*args: Any, **kwargs: Any) -> Any:
            seen.append((self._said_of(*args, **kwargs), self._encode(*args, **kwargs)))
            raise Answered

        texts = [PROBE, "two cats"]
        own = self.pipe.__dict__
        try:
            with self._in_place():
                own["encode_prompt"], self._size = keep, len(texts)
                self._run(
                    self.pipe, prompt=texts, num_inference_steps=1, **{"output_type": "latent", **self.call}
                )
        except Answered:
            pass
        except RuntimeError:  # of lengths that differ
            return False
        single, both = seen[0]
        require_heard(single, self._kind.__name__)
        return _close(single, both)

    def _first_look(self) -> tuple[tuple[int, ...], str, int]:
        """Shape of a state, the network's name, and the rows it gets for one image."""
        called: list[tuple[str, int]] = []

        def note(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                called.append((name, _rows(args, kwargs)))

            return hook

        with self._watched(note):
            try:
                self._asked(None, torch.tensor([500.0]), [PROBE])
            except Answered as answer:
                state = answer.args[1]
        name = called[-1][0]
        return tuple(state.shape[1:]), name, sum(rows for part, rows in called if part == name)

    def _clocks(self) -> dict[str, Told]:
        """Of each part that is told the time: in which argument, and how it moves with the timestep.

        Pipelines build that argument anew, where the slope is lost for autograd; so it is put back.

        Raises:
            ConfigError: a part is told what is not affine in the timestep.
        """
        heard: list[dict[str, dict[Any, Any]]] = []
        for k in _PROBED:
            said: dict[str, dict[Any, Any]] = {}

            def note(name: str, said: dict[str, dict[Any, Any]] = said) -> Callable[..., None]:
                def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                    said.setdefault(name, {**dict(enumerate(args)), **kwargs})

                return hook

            with self._watched(note):
                self._once(self._blank(), torch.tensor(k), [PROBE])
            heard.append(said)
        return {
            name: told
            for name in heard[0]
            if (told := _told_of(name, [said.get(name, {}) for said in heard])) is not None
        }

    @contextmanager
    def _watched(self, hook_of: Callable[[str], Callable[..., None]]) -> Iterator[None]:
        hooks = [
            part.register_forward_pre_hook(hook_of(name), with_kwargs=True)
            for name, part in self.pipe.components.items()
            if isinstance(part, nn.Module)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _with_slope(self, at: Told) -> Callable[..., Any]:
        """A hook that makes the told time depend on the timestep again."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            k = self._timestep
            if k is None:
                return None
            given = args[at.argument] if isinstance(at.argument, int) else kwargs[at.argument]
            floating = given if given.is_floating_point() else given.float()
            moved = floating.detach() + (at.slope * (k - k.detach())).to(floating)
            if isinstance(at.argument, int):
                return tuple(moved if i == at.argument else a for i, a in enumerate(args)), kwargs
            return args, {**kwargs, at.argument: moved}

        return hook


def require_interface(pipe: Any) -> None:
    """Raise ConfigError where a pipeline does not go through the three attributes."""
    needed = ("prepare_latents", "encode_prompt")
    missing = [name for name in needed if not callable(getattr(pipe, name, None))]
    if not callable(getattr(getattr(pipe, "scheduler", None), "step", None)):
        missing.append("scheduler")
    run = inspect.signature(type(pipe).__call__).parameters
    missing += [name for name in ("prompt", "num_inference_steps", "output_type") if name not in run]
    if missing:
        raise ConfigError(
            f"A text-to-image pipeline must have prepare_latents, encode_prompt and one scheduler, and take prompt, "
            f"num_inference_steps and output_type; {type(pipe).__name__} lacks {', '.join(missing)}, so it cannot be "
            "sampled here."
        )


def require_heard(encodings: Any, kind: str) -> None:
    """Raise DataError where two different prompts have the same encodings: the tokenizer knows no words."""
    tensors = [t for t in _tensors(encodings) if t.is_floating_point() and t.ndim > 1 and len(t) >= 2]
    if tensors and all(torch.equal(t[0], t[1]) for t in tensors):
        raise DataError(
            f"The encodings of two prompts must differ, but {kind} gives the same for both, as a tokenizer without "
            "its vocabulary does; copy the files of its tokenizer folders again."
        )


def _told_of(name: str, said: Sequence[Mapping[Any, Any]]) -> Told | None:
    """The argument of at most one dimension that moved with the timestep."""
    for argument, value in said[0].items():
        if not isinstance(value, Tensor) or value.ndim > 1 or any(argument not in other for other in said):
            continue
        first, last, middle = (float(other[argument].double().flatten()[0]) for other in said)
        if first == last:
            continue
        slope = (last - first) / (_PROBED[1] - _PROBED[0])
        if abs(middle - first - slope * (_PROBED[2] - _PROBED[0])) > _BENT * abs(last - first):
            raise ConfigError(
                f"A part must be told a time that is affine in the scheduler's timestep, but {name} is told "
                f"{first:.6g}, {middle:.6g} and {last:.6g} at 1, 500 and 999; it cannot be searched by gradients."
            )
        return Told(argument, slope)
    return None


def _rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Rows of the batch that a network is called with."""
    first = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), ()))
    return len(first)


def _stacked(rows: Sequence[Any]) -> Any:
    """What was said of single prompts as what is said of all: tensors with a row a prompt are put together."""
    first = rows[0]
    if isinstance(first, Tensor):
        return torch.cat(list(rows)) if first.ndim and first.shape[0] == 1 else first
    if isinstance(first, list):
        return [item for row in rows for item in row]
    if isinstance(first, tuple):
        return tuple(_stacked(parts) for parts in zip(*rows, strict=True))
    return first


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _close(a: Any, b: Any) -> bool:
    """Whether encodings agree to the rounding of another batch size."""
    pairs = list(zip(_tensors(a), _tensors(b), strict=False))
    return len(list(_tensors(a))) == len(list(_tensors(b))) and all(
        one.shape == other.shape
        and bool((one.double() - other.double()).abs().max() <= 1e-2 * other.double().abs().max())
        for one, other in pairs
    )
