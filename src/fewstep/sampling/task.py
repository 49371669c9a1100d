"""What a sampler is searched for: a model and how it is called, solved from seeds, with its cost counted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.diffusion.denoiser import Model
from fewstep.rng import ImageNoise
from fewstep.sampling.plan import Plan
from fewstep.sampling.sample import Costs, Select, solve
from fewstep.sampling.solver import Values


@dataclass
class Task:
    """What a sampler is searched for: a model, and how it is called.

    Attributes:
        guidance: classifier-free guidance scale; each image has the condition that its seed has in the model.
        batch_size: images at once.
        calls: network calls on one image so far.
    """

    model: Model
    guidance: float = 1.0
    batch_size: int = 250
    calls: int = field(default=0, compare=False)

    def solve(
        self,
        plan: Plan,
        seeds: Sequence[int],
        *,
        values: Values | None = None,
        select: Select | None = None,
    ) -> Tensor:
        """x0 of each seed, (len(seeds), *shape); with `values` all at once and with the autograd graph.

        Args: select: as in `fewstep.sampling.sample.solve`.
        """
        size = len(seeds) if values is not None else self.batch_size
        return torch.cat([self._solve(plan, part, values, select) for part in batches(seeds, size)])

    def _solve(
        self, plan: Plan, seeds: Sequence[int], values: Values | None, select: Select | None
    ) -> Tensor:
        model = self.model
        noise = ImageNoise(seeds, model.shape)
        costs = Costs()
        x0 = solve(
            model,
            plan,
            model.schedule.prior_std * noise().to(model.device),
            condition=model.condition_of(seeds),
            guidance=self.guidance,
            noise=noise if plan.stochastic else None,
            select=select,
            values=values,
            costs=costs,
        )
        self.calls += costs.network_calls * len(seeds)
        return x0

    def images(self, x0: Tensor) -> Tensor:
        """What `solve` made, as images in [-1, 1]: latents decoded."""
        decoded: Tensor = x0 if self.model.decode is None else self.model.decode(x0)
        return decoded


def batches(seeds: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The seeds in order, `size` at a time."""
    return (seeds[start : start + size] for start in range(0, len(seeds), size))


def distances(x0: Tensor, solution: Tensor) -> Tensor:
    """Euclidean distance of each image to the fine solution of its noise, (B,) float64."""
    off = x0.double() - solution.double()
    norms: Tensor = torch.linalg.vector_norm(off.flatten(1), dim=1)
    return norms
