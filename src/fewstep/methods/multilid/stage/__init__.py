"""The detector of generated images as a stage of the workflow."""

from typing import Any

from fewstep.methods.multilid.stage.command import command
from fewstep.methods.multilid.stage.settings import DetectSettings
from fewstep.pipeline.stage import Inputs, Of, Stage, Value


def _inputs(settings: Any, nfe: None) -> Inputs:
    numbers = tuple(settings.detect.nfe)
    classifier = settings.extractor.name == "classifier"
    return {
        "samples": [Of(name, nfe=numbers, sampled=True) for name in ("plans", "search", "onecall")],
        "data": "prepare",
        "features": "extractor" if classifier else Value("effnet-lite0"),
    }


def _requires(settings: Any) -> None:
    if settings.model.zoo is not None:
        raise ValueError(
            f"detect.nfe: must not need training images with model.zoo, got {settings.detect.nfe}; leave it empty"
        )
    if unknown := sorted(set(settings.detect.nfe) - set(settings.plans.nfe)):
        raise ValueError(f"detect.nfe: must be among plans.nfe, {settings.plans.nfe}; got {unknown}")
    if settings.extractor.name == "inception2015":
        raise ValueError(
            "detect.nfe: needs the extractor classifier or effnet-lite0-p320, got inception2015; leave it empty"
        )


STAGE = Stage(
    name="detect",
    command=command,
    measures="fewstep.methods.multilid.stage.measures",
    makes="numbers",
    does="detect generated images among real ones",
    settings=DetectSettings,
    inputs=_inputs,
    applies=lambda settings, before: bool(settings.detect.nfe),
    requires=_requires,
    panel="fewstep.methods.multilid.stage.panel",
)
