"""The comparison of all plans that were made for the model, by quality and time."""

from fewstep.app.settings import ComposeSettings
from fewstep.app.stages.compose.command import command
from fewstep.pipeline.stage import MODEL, REFERENCE, Every, Stage, extractor

STAGE = Stage(
    name="compose",
    command=command,
    makes="numbers",
    does="compare the plans made for the model",
    settings=ComposeSettings,
    inputs=lambda settings, nfe: {
        "model": MODEL,
        "plan": Every("plans", but=("plans", "onecall")),
        "reference": REFERENCE,
        "extractor": extractor(settings),
    },
    reads=("sample.guidance",),
    applies=lambda settings, before: any(stage.refines for stage in before),
    panel="fewstep.app.stages.compose.panel",
    record="fewstep.app.stages.compose.record",
    first=True,
)
