"""Inpainting as a stage of the workflow, and the objective of training that it is for."""

from typing import Any

from fewstep.methods.rad.stage.command import command
from fewstep.methods.rad.stage.settings import InpaintSettings
from fewstep.pipeline.stage import MODEL, REFERENCE, Every, Stage, extractor


def _requires(settings: Any) -> None:
    if settings.model.zoo is not None or not str(settings.train.objective).startswith("rad"):
        raise ValueError(
            f"inpaint.heldout: must be 0 for a model without times per pixel, got {settings.inpaint.heldout}; set "
            "train.objective to rad"
        )


STAGE = Stage(
    name="inpaint",
    command=command,
    makes="numbers",
    does="fill holes of held-out images, by each plan and by the baselines",
    settings=InpaintSettings,
    inputs=lambda settings, nfe: {
        "model": MODEL,
        "plan": Every("plans", but=("onecall", "quantize")),
        "data": "prepare",
        "base": "base",
        "reference": REFERENCE,
        "extractor": extractor(settings),
    },
    applies=lambda settings, before: settings.inpaint.heldout > 0,
    requires=_requires,
    objectives=dict.fromkeys(("rad", "rad-all-pixels"), "fewstep.methods.rad.objective"),
    panel="fewstep.methods.rad.stage.panel",
    measures="fewstep.methods.rad.stage.measures",
)
