"""The Fréchet distance as a loss, with gradients to the features."""

import torch
from torch import Tensor

from fewstep.metrics.statistics import Statistics

ROOT_FLOOR = (
    1e-12  # of the largest eigenvalue: keeps the slope of the root finite where the batch has no spread
)


class FrechetLoss:
    """Fréchet distance of a batch's features to a reference, differentiable [dowson1982frechet].

    A batch of n images is farther from the reference than infinitely many, by about c/n: as a number
    that is not to be reported. As a loss it does little harm while images outnumber features; with fewer, it also
    favours sets of less spread.
    """

    def __init__(self, reference: Statistics) -> None:
        self.mu, self.cov = torch.from_numpy(reference.mu), torch.from_numpy(reference.cov)
        self.factor = torch.from_numpy(reference.factor)

    def __call__(self, features: Tensor) -> Tensor:
        """Args: features: (n, D). Returns: the squared distance, () float64."""
        rows = features.double().cpu()
        mean = rows.mean(0)
        centred = (rows - mean) / (len(rows) - 1) ** 0.5
        projected = centred @ self.factor
        small = projected @ projected.T if len(rows) < projected.shape[1] else projected.T @ projected
        eigenvalues = torch.linalg.eigvalsh(small)
        floor = ROOT_FLOOR * float(eigenvalues.detach()[-1])
        roots = eigenvalues.clamp_min(floor).sqrt().sum()
        distance: Tensor = (
            (mean - self.mu).square().sum() + centred.square().sum() + self.cov.trace() - 2 * roots
        )
        return distance
