"""The one way to a model that the user names: of the zoo, a folder of this project, or one of diffusers."""

import os
from pathlib import Path

import torch

from fewstep.checks import DataError
from fewstep.diffusion.denoiser import Model
from fewstep.files import object_or_empty
from fewstep.interop.bundle import is_bundle, load_bundle
from fewstep.interop.diffusers_model import INDEX, NETWORKS, is_diffusers, load_diffusers
from fewstep.interop.zoo import find, verify
from fewstep.nets import CONFIG, folder

_DEEPEST, _MOST = 3, 6
"""Levels at which models are looked for, as in hub/models--ORG--NAME/snapshots/HASH; most that are named."""


def load_model(path: str | Path, *, device: str | torch.device = "cpu") -> Model:
    """Read a model folder, a bundle of `fewstep export`, or a pipeline or network that diffusers has saved.

    Args:
        path: Of the folder; NAME and zoo/NAME are models of the zoo. Where checksums stand beside the files, the files
            must keep to them.
        device: Where the weights will be.

    Returns:
        A model in evaluation mode whose weights need no gradient.

    Raises:
        DataError: A missing, truncated, changed or foreign file. ConfigError: a model of diffusers that cannot be
            sampled here.
    """
    found = find(path)
    if is_bundle(found):
        return load_bundle(found)
    verify(found)
    _require_model(found)
    return (load_diffusers if is_diffusers(found) else folder.load_model)(found, device=device)


def _require_model(found: Path) -> None:
    """Raise DataError where a folder is no model but holds some: a cache of the hub, or checkpoints of a training."""
    if not found.is_dir() or (found / CONFIG).exists() or (found / INDEX).exists():
        return
    inside = _models_in(found)
    if inside:
        more = "" if len(inside) <= _MOST else f" and {len(inside) - _MOST} more"
        raise DataError(
            f"{found} must be the folder of one model, with {CONFIG} or {INDEX}, but holds them further down; name "
            f"{'one of ' if len(inside) > 1 else ''}{', '.join(inside[:_MOST])}{more}."
        )


def _models_in(found: Path) -> list[str]:
    """The folders within one that can be named instead, by name."""
    models = []
    for place, folders, _ in os.walk(found, followlinks=True):
        here = Path(place)
        if here != found and _is_model(here):
            models.append(place)
            folders.clear()
        elif len(here.relative_to(found).parts) == _DEEPEST:
            folders.clear()
    return sorted(models)


def _is_model(place: Path) -> bool:
    if (place / INDEX).exists():
        return True
    config = object_or_empty(place / CONFIG)
    return config.get("schema") == folder.SCHEMA or str(config.get("_class_name")) in NETWORKS
