"""Pairs of images, and what models of pairs vary, as stages of the workflow."""

from typing import Any

from fewstep.methods.semantica.stage.command import command
from fewstep.methods.semantica.stage.pairs import command as pairs
from fewstep.methods.semantica.stage.settings import PairsSettings, SemanticaSettings
from fewstep.pipeline.settings import require_dropout
from fewstep.pipeline.stage import MODEL, Of, Stage, extractor


def _requires_pairs(settings: Any) -> None:
    if settings.encode.encoder is None:
        raise ValueError(
            f"pairs.mode: must be null without encode.encoder, whose tokens are paired with images, got "
            f"{settings.pairs.mode}"
        )
    if settings.model.class_conditional:
        raise ValueError("model.class_conditional: must be false for a model of pairs, got true")


def _requires(settings: Any) -> None:
    if settings.encode.encoder is None:
        raise ValueError(
            f"semantica.images: must be 0 without encode.encoder, got {settings.semantica.images}"
        )
    require_dropout(settings, "semantica", "guidances", unguided=[1.0])


PAIRS = Stage(
    name="pairs",
    command=pairs,
    makes="pairs",
    does="pair images with the images that they are conditioned on",
    settings=PairsSettings,
    inputs=lambda settings, nfe: {"data": "prepare", "tokens": Of("encode", file="train")},
    applies=lambda settings, before: settings.pairs.mode is not None and settings.model.zoo is None,
    requires=_requires_pairs,
    gpu=False,
)

STAGE = Stage(
    name="semantica",
    command=command,
    makes="numbers",
    does="measure variations of images",
    settings=SemanticaSettings,
    inputs=lambda settings, nfe: {
        "model": MODEL,
        "data": "prepare",
        "extractor": extractor(settings),
        "pairs": "pairs",
    },
    applies=lambda settings, before: settings.semantica.images > 0,
    requires=_requires,
    rows="report",
    panel="fewstep.methods.semantica.stage.panel",
    measures="fewstep.methods.semantica.stage.measures",
)
