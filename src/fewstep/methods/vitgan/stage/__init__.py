"""The ablations of ViTGAN as a stage of the workflow."""

from typing import Any

from fewstep.methods.vitgan.stage.command import command
from fewstep.methods.vitgan.stage.settings import VitganSettings
from fewstep.pipeline.stage import REFERENCE, Stage, extractor


def _requires(settings: Any) -> None:
    if settings.gan.network != "vitgan":
        raise ValueError(
            f"vitgan.variants: are those of gan.network vitgan, which is {settings.gan.network}; leave them empty"
        )


STAGE = Stage(
    name="vitgan",
    command=command,
    makes="numbers",
    does="train ViTGAN without one of its parts at a time",
    settings=VitganSettings,
    inputs=lambda settings, nfe: {
        "data": "prepare",
        "reference": REFERENCE,
        "extractor": extractor(settings),
    },
    reads=("gan",),
    applies=lambda settings, before: bool(settings.vitgan.variants),
    requires=_requires,
    keeps="study",
    panel="fewstep.methods.vitgan.stage.panel",
    measures="fewstep.methods.vitgan.stage.measures",
    first=True,
)
