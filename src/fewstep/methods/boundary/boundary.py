"""A boundary: the planes of an attribute at a step of a model, as a file that says which.

The file is a numpy archive without objects: nothing in it is run when it is read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.denoiser import Model
from fewstep.files import atomic_file
from fewstep.methods.boundary.edit import Start
from fewstep.methods.boundary.latents import SPACES, Latents
from fewstep.methods.boundary.plane import Plane, along
from fewstep.rng import generator
from fewstep.sampling.plan import Plan, plan_from_json

SCHEMA = "fewstep.boundary/1"
LEAST_ACCURACY = 0.6
"""Of held-out latents; below it there is no boundary at that step."""
BOTH = "both"
WHERE = (*SPACES, BOTH)
"""In which space to edit."""


@dataclass(frozen=True)
class Boundary:
    """The planes of an attribute.

    Attributes:
        attribute: what is on the side of the normals, in words.
        model: fingerprint of the weights.
        plan: from the mixing step to data; its inverse leads there.
        planes: of each space.
        accuracy: share of latents on their side that the planes were not fitted to, of each space.
        facts: what else there is to know of how it was made, as plain values.
    """

    attribute: str
    model: str
    plan: Plan
    planes: Mapping[str, Plane]
    accuracy: Mapping[str, float]
    facts: Mapping[str, Any]

    @property
    def t(self) -> float:
        """The mixing step, in the schedule's time."""
        return self.plan.nodes[0].t

    def require(self, model: Model) -> None:
        """Raise ConfigError where it is not for a model."""
        if model.fingerprint != self.model:
            raise ConfigError(
                f"The boundary {self.attribute} is for the model with fingerprint {self.model:.16}, but {model.name} "
                f"has {model.fingerprint or 'none'!s:.16}; fit one for this model (fewstep boundary fit)."
            )

    def require_accurate(self, where: str) -> None:
        """Raise ConfigError where a plane puts too few held-out latents on their side."""
        for space in spaces_of(where):
            if not self.accuracy[space] >= LEAST_ACCURACY:
                raise ConfigError(
                    f"There is no boundary for {self.attribute} in {space}-space at the step {self.t:g}: "
                    f"{self.accuracy[space]:.0%} of held-out images are on their side, at least {LEAST_ACCURACY:.0%} "
                    "must be; fit it at another step, edit in the other space, or use it anyway with --force."
                )

    def start(
        self, latents: Latents, where: str, zeta: float, *, random: int | None = None, times: float = 1.0
    ) -> Start:
        """Where to generate from for latents (N, ...) to be at a distance of zeta from the planes of a space.

        Args:
            latents: at the boundary's step.
            where: a name of `WHERE`.
            zeta: in units of the mean distance of the latents that the planes were fitted to.
            random: first seed of unit vectors, one for each, that they move along instead: the control.
            times: how often as far they move.

        Raises: DataError: latents of another shape.
        """
        moved: dict[str, Tensor] = {}
        for space in spaces_of(where):
            plane, x = self.planes[space], latents.of(space)
            if x.shape[1:] != plane.normal.shape:
                raise DataError(
                    f"Latents in {space}-space must have the shape of the boundary {self.attribute}, "
                    f"{tuple(plane.normal.shape)}; got {tuple(x.shape[1:])}."
                )
            direction = plane.normal[None] if random is None else _directions(x, random, space)
            moved[space] = along(x, direction, times * plane.moves(x, zeta))
        return Start(moved.get("eps", latents.eps), moved.get("h"))


def spaces_of(where: str) -> Sequence[str]:
    """The spaces of a name of `WHERE`.
    Raises: ConfigError: it is none.
    """
    if where not in WHERE:
        raise ConfigError(f"The space must be one of {', '.join(WHERE)}; got {where!r}.")
    return SPACES if where == BOTH else (where,)


def _directions(x: Tensor, seed: int, space: str) -> Tensor:
    """A random direction for each latent (N, ...), float64 of unit length."""
    rngs = (generator(seed + i, "direction", space) for i in range(len(x)))
    drawn = torch.stack([torch.randn(x.shape[1:], generator=rng, dtype=torch.float64) for rng in rngs])
    lengths: Tensor = drawn.flatten(1).norm(dim=1)
    unit: Tensor = drawn / lengths.reshape(-1, *[1] * (x.ndim - 1))
    return unit


def save_boundary(path: str | Path, boundary: Boundary) -> None:
    """Write a boundary by rename."""
    meta = {
        "schema": SCHEMA,
        "attribute": boundary.attribute,
        "model": boundary.model,
        "plan": boundary.plan.to_json(),
        "plan_hash": boundary.plan.hash,
        "t": boundary.t,
        "spaces": {
            space: {
                "shape": list(plane.normal.shape),
                "offset": plane.offset,
                "scale": plane.scale,
                "c": plane.c,
                "accuracy": boundary.accuracy[space],
            }
            for space, plane in boundary.planes.items()
        },
        "facts": dict(boundary.facts),
    }
    arrays: dict[str, Any] = {
        space: plane.normal.double().numpy() for space, plane in boundary.planes.items()
    }
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, meta=np.array(json.dumps(meta, sort_keys=True)), **arrays)


def load_boundary(path: str | Path) -> Boundary:
    """Read a boundary.
    Raises: DataError: the file is missing, damaged, or no boundary.
    """
    try:
        # a damaged file is closed, too
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            meta = json.loads(str(archive["meta"][()]))
            if meta["schema"] != SCHEMA:
                raise ValueError(f"the schema {meta['schema']!r}")
            arrays = {space: archive[space] for space in SPACES}
        plan = plan_from_json(meta["plan"])
        if plan.hash != meta["plan_hash"]:
            raise ValueError("a plan of another hash")
        planes = {space: _plane(arrays[space], meta["spaces"][space]) for space in SPACES}
        accuracy = {space: float(meta["spaces"][space]["accuracy"]) for space in SPACES}
        return Boundary(
            str(meta["attribute"]), str(meta["model"]), plan, planes, accuracy, dict(meta["facts"])
        )
    except FileNotFoundError:
        raise DataError(f"There is no boundary at {path}; fewstep boundary fit makes one.") from None
    except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{path} must be a boundary of fewstep boundary fit ({SCHEMA}), but it is not: "
            f"{' '.join(str(error).split()):.200}; fit it again."
        ) from None


def _plane(normal: Any, facts: Mapping[str, Any]) -> Plane:
    shape, length = tuple(facts["shape"]), float(np.linalg.norm(normal))
    numbers = [float(facts[name]) for name in ("offset", "scale", "c")]
    if normal.shape != shape or normal.dtype != np.float64 or not abs(length - 1) <= 1e-6:
        raise ValueError(
            f"a normal {normal.dtype} {normal.shape} of length {length:.6g}, not float64 {shape} of 1"
        )
    if not np.isfinite(numbers).all() or numbers[1] <= 0:
        raise ValueError(f"the numbers {numbers}")
    return Plane(torch.from_numpy(normal), *numbers)
