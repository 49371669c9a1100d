"""The one way to a model that the user names: of the zoo, a folder of this project, or one of diffusers."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.denoiser import Model
from fewstep.files import canonical_json, object_or_empty, sha256_text
from fewstep.interop.autoencoder import load_autoencoder
from fewstep.interop.bundle import is_bundle, load_bundle
from fewstep.interop.diffusers_model import INDEX, NETWORKS, is_diffusers, load_diffusers
from fewstep.interop.encoders import load_tokens
from fewstep.interop.text_model import is_text_pipeline, load_text_pipeline
from fewstep.interop.zoo import find, verify
from fewstep.nets import AUTOENCODER, CONFIG, ENCODER, folder

_DEEPEST, _MOST = 3, 6
"""Levels at which models are looked for, as in hub/models--ORG--NAME/snapshots/HASH; most that are named."""


def load_model(
    path: str | Path,
    *,
    call: str | Path | Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> Model:
    """Read a model folder, a bundle of `fewstep export`, or a pipeline or network that diffusers has saved.

    Args:
        path: Of the folder; NAME and zoo/NAME are models of the zoo. Where checksums stand beside the files, the files
            must keep to them.
        call: Of a text-to-image pipeline, the arguments that it is called with, or a YAML file of them.
        device: Where the weights will be.

    Returns:
        A model in evaluation mode whose weights need no gradient.

    Raises:
        DataError: A missing, truncated, changed or foreign file. ConfigError: a model of diffusers that cannot be
            sampled here, or a call for another kind of model.
    """
    found = find(path)
    if is_bundle(found):
        return load_bundle(found)
    verify(found)
    _require_model(found)
    if is_diffusers(found) and is_text_pipeline(found):
        return load_text_pipeline(found, call=call, device=device)
    if call is not None:
        raise ConfigError(
            f"--call is for text-to-image pipelines of diffusers; {found} is none, so leave it out."
        )
    if is_diffusers(found):
        return load_diffusers(found, device=device)
    model = folder.load_model(found, device=device)
    if (found / AUTOENCODER).is_dir():
        model = _latent(model, found / AUTOENCODER)
    if (found / ENCODER).is_dir():
        model = replace(model, encode=load_tokens(found / ENCODER, device=model.device).condition)
    return model


def _latent(model: Model, folder: Path) -> Model:
    """A model of latents with the decoder that its folder holds."""
    autoencoder = load_autoencoder(folder, device=model.device)
    if model.shape[:1] != (autoencoder.latent_channels,):
        raise DataError(
            f"{folder} must have latents of {model.shape[0]} channels, as the model has, but has "
            f"{autoencoder.latent_channels}; train the model again."
        )
    both = sha256_text(canonical_json([model.fingerprint, autoencoder.fingerprint, autoencoder.scale]))
    return replace(model, decode=autoencoder.decode, fingerprint=both)


def is_prompted(path: str | Path) -> bool:
    """Whether a path names a text-to-image pipeline of diffusers, without reading its weights."""
    place = Path(path)
    return (place / INDEX).exists() and is_text_pipeline(place)


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
