"""A sampling plan as a scheduler of diffusers.

This file needs torch and diffusers, nothing else: `fewstep export` copies it beside the numbers of a plan.
"""

from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput

START_TOLERANCE = 1e-3
"""Pipelines that take unit noise whatever the scheduler says may be this far from its standard deviation."""


_WHOLE = (
    "A plan runs from noise to data, so it is for text-to-image pipelines, not for image-to-image and inpainting, "
    "which start in the middle; got {}; use a scheduler of diffusers there."
)


class PlanScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """One plan: evaluation k gives x0_k = of_x * x + of_output * output, and then x = A * x + sum over m of c_m * x0_m.

    Args:
        timesteps: conditioning timesteps of the network, one for each evaluation; they need not be whole numbers.
        state_sigmas: noise of the states that it is given there, which is what other schedulers call sigmas: of a flow
            its time, otherwise sigma / alpha. It is no function of `timesteps` where these were aligned.
        rows: [of_x, of_output, A, [c_0, ..., c_k]] of each evaluation k.
        init_noise_sigma: standard deviation of the noise to start with.
        clip: bound on the result, None for no bound.
        num_train_timesteps: rows of the model's own table.
        guidance_scale: guidance that the plan was made for; the pipeline applies it, so pass it there.
        plan_name: for people.
        plan_hash: identity of the plan.
        model_fingerprint: sha256 of the weights that the plan was made for.
    """

    order = 1

    def __init__(
        self,
        timesteps: list[float],
        rows: list[list[Any]],
        init_noise_sigma: float = 1.0,
        clip: float | None = None,
        num_train_timesteps: int = 1000,
        guidance_scale: float | None = None,
        plan_name: str = "",
        plan_hash: str = "",
        model_fingerprint: str | None = None,
        state_sigmas: list[float] | None = None,
    ) -> None:
        self.register_to_config(
            timesteps=timesteps,
            rows=rows,
            init_noise_sigma=init_noise_sigma,
            clip=clip,
            num_train_timesteps=num_train_timesteps,
            guidance_scale=guidance_scale,
            plan_name=plan_name,
            plan_hash=plan_hash,
            model_fingerprint=model_fingerprint,
            state_sigmas=state_sigmas,
        )
        self._start_was_scaled = False
        self.set_timesteps()

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise to start with; whoever reads it is taken to scale the noise."""
        self._start_was_scaled = True
        return float(self.config.init_noise_sigma)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Start anew; a plan has one number of evaluations, and times of its own.

        Args:
            num_inference_steps: evaluations of the plan, or None.
            device: of `timesteps`.
            timesteps: taken because pipelines pass them; as many, and of no other effect.
            sigmas: as `timesteps`.
            mu: shift of a pipeline's own times; of no effect.
        """
        n = len(self.config.rows)
        lists = {"timesteps": timesteps, "sigmas": sigmas}
        given = {name: len(values) for name, values in lists.items() if values is not None}
        for name, count in {"num_inference_steps": num_inference_steps, **given}.items():
            if count not in (None, n):
                raise ValueError(
                    f"num_inference_steps must be {n}, the evaluations of the plan {self.config.plan_name!r}; "
                    f"got {f'{count} {name}' if name in given else count}."
                )
        self.num_inference_steps = n
        self.timesteps = torch.tensor(self.config.timesteps, dtype=torch.float32, device=device)
        noise = self.config.state_sigmas or [float("nan")] * n
        self.sigmas = torch.tensor([*noise, 0.0], dtype=torch.float32)
        self._begin_index: int | None = None
        self._x0: list[torch.Tensor] = []

    @property
    def begin_index(self) -> int | None:
        """0 where the pipeline has set it."""
        return self._begin_index

    @property
    def step_index(self) -> int:
        """The next evaluation."""
        return len(self._x0)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """A plan begins with its first evaluation."""
        if begin_index:
            raise ValueError(_WHOLE.format(f"beginning at evaluation {begin_index}"))
        self._begin_index = begin_index

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """Not for plans: image-to-image pipelines start in the middle."""
        raise ValueError(_WHOLE.format("add_noise"))

    def scale_noise(self, sample: torch.Tensor, timestep: Any, noise: Any = None) -> torch.Tensor:
        """Not for plans: image-to-image pipelines start in the middle."""
        raise ValueError(_WHOLE.format("scale_noise"))

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample itself."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Any = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Take the step after one evaluation, in the order of `timesteps`; computed in float32 at least.

        Args:
            model_output: of the network; the second half of twice the channels, a variance, is not used.
            timestep: that of this evaluation; pipelines may round it.
            sample: the network's input.
            eta: must be 0, as the plan draws no noise; `generator` is not used either.
            use_clipped_model_output: must not be set.
            generator: taken because pipelines pass it.
            return_dict: False for a tuple.
        """
        if eta or use_clipped_model_output:
            raise ValueError(
                "A plan draws no noise and clips no output, so eta must be 0 and use_clipped_model_output False; "
                f"got {eta} and {use_clipped_model_output}."
            )
        k = len(self._x0)
        self._check_turn(k, float(timestep))
        of_x, of_output, A, weights = self.config.rows[k]
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        output = model_output[:, : sample.shape[1]].to(x.dtype)
        self._x0.append(of_x * x + of_output * output)
        x = A * x
        for weight, x0 in zip(weights, self._x0, strict=True):
            if weight:
                x = x + weight * x0
        if k + 1 == self.num_inference_steps and self.config.clip is not None:
            x = x.clamp(-self.config.clip, self.config.clip)
        x = x.to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _check_turn(self, k: int, timestep: float) -> None:
        times = self.config.timesteps
        if k == len(times) or abs(timestep - times[k]) >= 1:
            expected = "none more" if k == len(times) else f"{times[k]:.6g}"
            raise ValueError(
                f"step must be called once for each of the timesteps, in order; expected {expected}, "
                f"got {timestep:.6g}; call set_timesteps before each run."
            )
        start, was_scaled = self.config.init_noise_sigma, self._start_was_scaled
        if k == 0:
            self._start_was_scaled = False
            if not was_scaled and abs(start - 1) > START_TOLERANCE:
                raise ValueError(
                    f"The plan starts at noise of standard deviation {start:.6g}, but this pipeline starts at unit "
                    "noise without asking for init_noise_sigma; take a plan that starts at the noisiest time."
                )
