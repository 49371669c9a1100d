"""Planes between images with an attribute and others: linear support vector machines, and the move across them.

Differs: planes have an offset, so that distance 0 is the boundary itself; the official code leaves the intercept out,
and 0 is the parallel plane through the origin. Normals have unit length in both spaces.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.checks import ConfigError, DataError

FEWEST, FEW = 10, 50
"""Images a side without which there is no fit, and without which there is a warning."""


@dataclass(frozen=True)
class Plane:
    """The points x with normal . x + offset = 0; those with the attribute are on the side of the normal.

    Attributes:
        normal: of unit length, in the shape of a latent.
        offset: of the plane from the origin, against the normal.
        scale: mean of |distance| over the latents that it was fitted to, the unit of edits.
        c: of the fit.
    """

    normal: Tensor
    offset: float
    scale: float
    c: float

    def distance(self, x: Tensor) -> Tensor:
        """Signed distance of latents (N, ...), float64 (N,)."""
        return x.double().flatten(1).cpu() @ self.normal.double().flatten() + self.offset

    def accuracy(self, x: Tensor, positive: NDArray[np.bool_]) -> float:
        """Share of latents (N, ...) that are on their side, positive (N,)."""
        return float(((self.distance(x) > 0).numpy() == positive).mean())

    def moves(self, x: Tensor, zeta: float) -> Tensor:
        """How far each latent (N, ...) moves along the normal to be at zeta times the scale, float64 (N,).
        Raises: ConfigError: zeta is not finite.
        """
        if not np.isfinite(zeta):
            raise ConfigError(
                f"--zeta must be finite, a multiple of the mean distance to the plane; got {zeta}."
            )
        return zeta * self.scale - self.distance(x)

    def to(self, x: Tensor, zeta: float) -> Tensor:
        """Latents (N, ...) moved along the normal to a distance of zeta times the scale."""
        return along(x, self.normal, self.moves(x, zeta))


def along(x: Tensor, direction: Tensor, by: Tensor) -> Tensor:
    """Latents (N, ...) moved along a direction by (N,), in the dtype of x."""
    moved: Tensor = x.double() + by.reshape(-1, *[1] * (x.ndim - 1)) * direction.double()
    return moved.to(x.dtype)


def fit_plane(x: Tensor, positive: NDArray[np.bool_], c: float) -> Plane:
    """The plane of a linear support vector machine with intercept.

    There are more dimensions than latents, mostly: the machine sees their inner products alone.

    Args: x: latents (N, ...). positive: bool (N,). c: weight of errors against the width of the margin.
    Raises: DataError: one side has fewer than 10 latents, or they are the same on both.
    """
    from sklearn.svm import SVC

    require_both(positive)
    rows = x.double().flatten(1).cpu().numpy()
    centre = rows.mean(0)
    centred = rows - centre  # the plane is the same; the products lose fewer digits
    machine = SVC(kernel="precomputed", C=c).fit(centred @ centred.T, positive)
    weight = machine.dual_coef_[0] @ centred[machine.support_]
    length = float(np.linalg.norm(weight))
    if not length > 0:
        raise DataError("Latents of the two sides must differ for a plane between them; they are the same.")
    normal = weight / length
    offset = float(machine.intercept_[0]) / length - float(normal @ centre)
    scale = float(np.abs(rows @ normal + offset).mean())
    return Plane(torch.from_numpy(normal).reshape(x.shape[1:]), offset, scale, c)


def require_both(positive: NDArray[np.bool_], what: str = "A plane") -> None:
    """Raise DataError where there are too few images with an attribute, or without."""
    with_it, without = int(positive.sum()), int((~positive).sum())
    if min(with_it, without) < FEWEST:
        raise DataError(
            f"{what} needs {FEWEST} images or more on each side; got {with_it} with the attribute and {without} "
            "without."
        )
