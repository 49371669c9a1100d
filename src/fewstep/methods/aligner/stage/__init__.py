"""The alignment of timesteps as a stage of the workflow."""

from typing import Any

from fewstep.methods.aligner.stage.command import command
from fewstep.methods.aligner.stage.settings import AlignSettings
from fewstep.pipeline.stage import MODEL, REFERENCE, First, Inputs, Stage, extractor, known_plan


def _inputs(settings: Any, nfe: int) -> Inputs:
    images = {"images": "prepare"} if settings.align.reads_images else {}
    return {
        "model": MODEL,
        "plan": (First(("search", known_plan(settings, nfe))), "stepaware"),
        **images,
        "reference": REFERENCE,
        "extractor": extractor(settings),
    }


def _requires(settings: Any) -> None:
    if absent := set(settings.align.nfe) - {*settings.search.nfe, *settings.plans.nfe}:
        raise ValueError(
            "align.nfe: must be among the numbers of calls in search.nfe or plans.nfe, whose plans it starts from; "
            f"got {sorted(absent)}"
        )
    if settings.model.zoo is not None and settings.align.reads_images:
        raise ValueError(
            f"align.objectives: must not need training images with model.zoo, got {settings.align.objectives}; take "
            "the objective trajectory alone"
        )


STAGE = Stage(
    name="align",
    command=command,
    measures="fewstep.methods.aligner.stage.measures",
    makes="plans",
    does="align the conditioning timesteps of {nfe} network calls",
    settings=AlignSettings,
    inputs=_inputs,
    reads=("sample.guidance",),
    nfe=lambda settings: settings.align.nfe,
    requires=_requires,
    first=True,
)
