"""A model is a function of (x_t, t[, condition]) with a schedule; `Denoiser` is the only code that calls it."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.condition import Condition, Conditions, null_of, require_entries, said
from fewstep.diffusion.prediction import PREDICTIONS, input_scale, weights
from fewstep.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Model:
    """Any callable fn(x_t, t[, condition]) -> output, and how its output is to be read.

    Attributes:
        fn: takes x_t (B, *shape), t (B,) or (B, 1, H, W) in the schedule's time and, where there are `conditions`, a
            `Condition` of B images with the names that they declare.
        prediction: a key of `PREDICTIONS`.
        shape: of one image, (C, H, W), or of one vector, (D,).
        conditions: what images are conditioned on, and which of them each seed has; None for nothing.
        fingerprint: sha256 of the weights; None for functions, on which plans cannot be pinned.
        net: the network behind `fn`, where there is one; its dtype is what x_t and floating-point conditions are cast
            to. Times stay float32, in which thousandths remain apart; of float64 networks they are float64.
        decode: of latent models, the image in [-1, 1] of a latent, (B, *shape) -> (B, C, H, W); sampling works on
            latents, of which `shape` speaks.
        encode: of models that are conditioned on images, the condition of some, uint8 (B, C, H, W) of their shape.
        widths: of a slimmable network, the share of its channels that each sub-network has, the full one first.
        at_width: of a slimmable network, what to call instead of `fn`, by index into `widths`.
        net_at_width: the networks behind these.
        quantised: what to call instead of `fn` at each network call of a quantised plan, by its number; for each plan,
            by the hash of the integers that it names.
        most_calls: network calls of a plan for it; 1 for a generator, whose input must be noise; None for any number.
        rows: network calls on one image that a call of `fn` takes: pipelines that guide by themselves need two.
        call: what a pipeline is called with besides, such as guidance and size; plans that are found for it name it.
        pixel_times: whether it was trained with a time of its own for each pixel, 0 where it is clean.
        one_time: whether all images of a call of `fn` have the same time, as in a pipeline that is stepped through.
    """

    fn: Callable[..., Tensor]
    schedule: Schedule
    prediction: str = "eps"
    shape: tuple[int, ...] = ()
    conditions: Conditions | None = None
    fingerprint: str | None = None
    name: str = "function"
    net: nn.Module | None = field(default=None, compare=False)
    decode: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    encode: Callable[[Tensor], Condition] | None = field(default=None, compare=False)
    widths: tuple[float, ...] = (1.0,)
    at_width: Callable[[int], Callable[..., Tensor]] | None = field(default=None, compare=False)
    net_at_width: Callable[[int], nn.Module] | None = field(default=None, compare=False)
    quantised: Mapping[str, Callable[[int], Callable[..., Tensor]]] = field(
        default_factory=dict, compare=False, repr=False
    )
    most_calls: int | None = None
    rows: int = 1
    call: Mapping[str, Any] | None = field(default=None, compare=False)
    pixel_times: bool = False
    one_time: bool = False

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ConfigError(
                f"A model's prediction must be one of {', '.join(PREDICTIONS)}; got {self.prediction!r}."
            )

    def network(self, width: int | None) -> Callable[..., Tensor]:
        """What to call at a width; None is the full one.
        Raises: ConfigError: the model has no such width.
        """
        if not width:
            return self.fn
        if self.at_width is None or not 0 < width < len(self.widths):
            raise ConfigError(
                f"A width must be an index into the model's widths, {list(self.widths)}; got {width}; "
                "train the network with several widths, or set width to null."
            )
        return self.at_width(width)

    def module(self, width: int | None) -> nn.Module:
        """The network behind `network(width)`.
        Raises: ConfigError: the model has no such width, or is a function without a network.
        """
        self.network(width)
        net = self.net_at_width(width) if width and self.net_at_width is not None else self.net
        if net is None:
            raise ConfigError(
                f"The layers of a network are needed, but {self.name} is a function; load a model."
            )
        return net

    def condition_of(self, seeds: Sequence[int]) -> Condition | None:
        """The condition of the image of each seed; None where the model has none."""
        return None if self.conditions is None else self.conditions.of(seeds)

    @property
    def device(self) -> torch.device:
        """That of the network; the CPU for functions."""
        return torch.device("cpu") if self.net is None else next(self.net.parameters()).device

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image; of latent models, what a decoded latent measures."""
        if self.decode is None:
            return self.shape
        return tuple(self.decode(torch.zeros(1, *self.shape, device=self.device)).shape[1:])


class Denoiser:
    """Call a model and read its output as x0_hat or eps_hat; counts what it costs.

    Attributes:
        nfe: evaluations so far, per image.
        calls: network calls so far, per image; guidance needs two an evaluation.
        network_seconds: wall time inside the network so far.
    """

    def __init__(
        self,
        model: Model,
        *,
        condition: Condition | None = None,
        guidance: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Fix what does not change between evaluations.

        Args:
            model: what to call.
            condition: of each image; None for the null condition, or for a model that has none.
            guidance: weight of classifier-free guidance [ho2022cfg, Eq. 6, w + 1]; 1 means none.
            dtype: of autocast around the network call; None means the network's own dtype.

        Raises:
            ConfigError: a condition or guidance that the model does not take. DataError: a condition that it does not.
        """
        conditions = model.conditions
        if conditions is None and condition is not None:
            raise ConfigError(
                f"A condition needs a model that takes one; {model.name} has none, so leave it out."
            )
        null = None
        if conditions is not None:
            if condition is not None:
                require_entries(condition, conditions.entries)
            null = null_of(conditions, 1) if condition is None else conditions.null(condition)
            if condition is None and null is None:
                raise ConfigError(
                    f"{model.name} must be given a condition, {said(conditions.entries)}, as it has no null condition."
                )
        if guidance != 1.0 and (condition is None or null is None):
            lacks = "takes no condition" if conditions is None else "has no null condition"
            raise ConfigError(
                f"Guidance {guidance} needs a condition of each image and a model with a null condition; "
                f"{f'{model.name} {lacks}' if null is None else 'no condition is given'}."
            )
        self.model, self.guidance, self.dtype = model, guidance, dtype
        self._condition, self._null = condition, null
        self.nfe = self.calls = 0
        self.network_seconds = 0.0

    def output(
        self,
        x_t: Tensor,
        t: Tensor | float,
        *,
        t_cond: Tensor | float | None = None,
        width: int | None = None,
        network: Callable[..., Tensor] | None = None,
        together: int = 1,
    ) -> Tensor:
        """The model's raw output at time t, in the shape and dtype of x_t.

        Args:
            x_t: (B, *shape).
            t: scalar, (B,) or (B, 1, H, W).
            t_cond: the conditioning timestep, where it differs from t, in its forms; the scale of x_t stays that of t.
            width: which sub-network to call, see `Model.network`.
            network: what to call instead of that.
            together: evaluations of every image in this one call: `x_t` has all images of the first, then those of
                the second, ...; t is (B,).
        """
        model = self.model
        network = model.network(width) if network is None else network
        t = torch.as_tensor(t, dtype=torch.float64, device=x_t.device)
        t_in = t if t_cond is None else torch.as_tensor(t_cond, dtype=torch.float64, device=x_t.device)
        scale = input_scale(model.prediction, model.schedule, t)
        x_in = x_t if scale is None else x_t * _over(scale, x_t).to(x_t.dtype)
        dtype = next(model.net.parameters()).dtype if model.net is not None else x_t.dtype
        # bfloat16 would round 997.5 thousandths to 1000
        time_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        x_in, t_in = x_in.to(dtype), (t_in.expand(len(x_t)) if t_in.ndim == 0 else t_in).to(time_dtype)
        if model.conditions is None:
            result = self._call(network, x_in, t_in)
        else:
            condition, null = self._conditions(len(x_t), x_t.device, dtype, together)
            result = self._call(network, x_in, t_in, condition)
            if self.guidance != 1.0:
                unguided = self._call(network, x_in, t_in, null)
                result = unguided + self.guidance * (result - unguided)
        self.nfe += together
        self.calls += (together - 1) * self.model.rows * (1 if self.guidance == 1.0 else 2)
        return result.to(x_t.dtype)

    def _conditions(
        self, n: int, device: torch.device, dtype: torch.dtype, together: int
    ) -> tuple[Condition, Condition | None]:
        """The condition to give the network for n images, and the null one."""
        if self._condition is None:
            null = null_of(self.model.conditions, n) if self.model.conditions is not None else None
            assert null is not None
            return null.to(device, dtype), None
        if together * len(self._condition) != n:
            raise DataError(
                f"There must be a condition of each of the {n // together} images; got {len(self._condition)}."
            )
        self._condition = self._condition.to(device, dtype)
        self._null = None if self._null is None else self._null.to(device, dtype)
        if together == 1:
            return self._condition, self._null
        null = None if self._null is None else Condition.cat([self._null] * together)
        return Condition.cat([self._condition] * together), null

    def _call(
        self, network: Callable[..., Tensor], x_t: Tensor, *arguments: Tensor | Condition | None
    ) -> Tensor:
        autocast = torch.autocast(x_t.device.type, self.dtype) if self.dtype is not None else nullcontext()
        started = time.perf_counter()
        with autocast:
            result = network(x_t, *arguments)
        if x_t.is_cuda:
            torch.cuda.synchronize(x_t.device)
        self.network_seconds += time.perf_counter() - started
        self.calls += self.model.rows
        if result.shape != x_t.shape:
            raise DataError(
                f"A model's output must have the shape of its input, {tuple(x_t.shape)}; "
                f"got {tuple(result.shape)}; models that also predict a variance need its half dropped."
            )
        return result

    def x0(self, x_t: Tensor, t: Tensor | float) -> Tensor:
        """x0_hat, in the shape and dtype of x_t."""
        read = weights(self.model.prediction, self.model.schedule, torch.as_tensor(t, dtype=torch.float64))
        output = self.output(x_t, t)
        return _over(read.x0_of_x, x_t).to(x_t) * x_t + _over(read.x0_of_output, x_t).to(x_t) * output

    def eps(self, x_t: Tensor, t: Tensor | float) -> Tensor:
        """eps_hat, in the shape and dtype of x_t."""
        read = weights(self.model.prediction, self.model.schedule, torch.as_tensor(t, dtype=torch.float64))
        output = self.output(x_t, t)
        return _over(read.eps_of_x, x_t).to(x_t) * x_t + _over(read.eps_of_output, x_t).to(x_t) * output


def _over(value: Tensor, x: Tensor) -> Tensor:
    """Give a per-image value (B,) the trailing axes that broadcast over x (B, ...)."""
    return value.reshape(-1, *[1] * (x.ndim - 1)) if value.ndim == 1 else value
