"""Conditions of latent flow matching, and what its models do with them, as stages of the workflow."""

from typing import Any

from fewstep.methods.lfm.stage.command import command
from fewstep.methods.lfm.stage.maps import command as maps
from fewstep.methods.lfm.stage.settings import LfmSettings, MapsSettings
from fewstep.pipeline.settings import require_dropout
from fewstep.pipeline.stage import MODEL, REFERENCE, Inputs, Stage, Value, extractor


def _autoencoder(settings: Any) -> Inputs:
    if settings.autoencoder.source is not None:
        return {"autoencoder": Value(settings.autoencoder.source)}
    return {"autoencoder": "autoencoder"}


def _requires_maps(settings: Any) -> None:
    if settings.train.flip:
        raise ValueError("train.flip: must be false where maps are latents of their images, got true")
    if settings.align.nfe and settings.align.reads_images:
        raise ValueError(
            f"align.objectives: must not need training images for a model of stored conditions, got "
            f"{settings.align.objectives}; take the objective trajectory alone"
        )
    if settings.maps.kind == "map" and settings.model.class_conditional:
        raise ValueError(
            "model.class_conditional: must be false for a model of maps, which name the class, got true"
        )


def _requires(settings: Any) -> None:
    if settings.model.zoo is not None:
        raise ValueError(
            f"lfm.images: must be 0 for a model of the zoo, whose images are not there; got {settings.lfm.images}"
        )
    require_dropout(settings, "lfm", "guidances", unguided=[1.0])


MAPS = Stage(
    name="maps",
    command=maps,
    makes="conditions",
    does="draw masks, or make maps, and encode what they leave of the images",
    settings=MapsSettings,
    inputs=lambda settings, nfe: {"data": "prepare", **_autoencoder(settings)},
    applies=lambda settings, before: settings.maps.kind is not None and settings.model.zoo is None,
    requires=_requires_maps,
)

STAGE = Stage(
    name="lfm",
    command=command,
    makes="numbers",
    does="measure steps, guidance, inpainting, maps and the pieces of the bound",
    settings=LfmSettings,
    inputs=lambda settings, nfe: {
        "model": MODEL,
        "data": "prepare",
        "latents": "latents",
        "reference": REFERENCE,
        "extractor": extractor(settings),
        "maps": "maps",
    },
    applies=lambda settings, before: settings.lfm.images > 0,
    requires=_requires,
    rows="report",
    panel="fewstep.methods.lfm.stage.panel",
    measures="fewstep.methods.lfm.stage.measures",
)
