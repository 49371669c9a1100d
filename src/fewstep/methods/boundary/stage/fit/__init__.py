"""Boundaries of attributes as a stage of the workflow."""

from typing import Any

from fewstep.methods.boundary.stage.fit.command import command
from fewstep.methods.boundary.stage.fit.settings import BoundarySettings
from fewstep.pipeline.stage import MODEL, Stage, extractor


def _requires(settings: Any) -> None:
    if settings.autoencoder.factor is not None or settings.autoencoder.source is not None:
        raise ValueError("boundary.attribute: must be none for a model of latents; leave the autoencoder out")
    if settings.model.tile is not None:
        raise ValueError(
            f"boundary.attribute: must be none for a network of patches, got model.tile {settings.model.tile}"
        )
    if settings.model.network != "unet":
        raise ValueError(
            f"boundary.attribute: must be none but for a U-Net, got model.network {settings.model.network}"
        )


STAGE = Stage(
    name="boundary",
    command=command,
    makes="numbers",
    does="find the planes between images with an attribute and others",
    settings=BoundarySettings,
    inputs=lambda settings, nfe: {"model": MODEL, "data": "prepare", "extractor": extractor(settings)},
    applies=lambda settings, before: bool(settings.boundary.attribute),
    requires=_requires,
    panel="fewstep.methods.boundary.stage.fit.panel",
    measures="fewstep.methods.boundary.stage.fit.measures",
)
