"""The generator of one network call as a stage of the workflow."""

from fewstep.app.stages.gan.command import command
from fewstep.pipeline.gan.settings import GanSettings
from fewstep.pipeline.stage import REFERENCE, Stage, extractor

STAGE = Stage(
    name="gan",
    command=command,
    makes="model",
    does="train the generator of one network call",
    settings=GanSettings,
    inputs=lambda settings, nfe: {
        "data": "prepare",
        "reference": REFERENCE,
        "extractor": extractor(settings),
    },
    uses=("track",),
    applies=lambda settings, before: settings.gan.network is not None,
    keeps="checkpoints",
    panel="fewstep.app.stages.gan.panel",
    record="fewstep.app.stages.curve",
    threads=lambda settings: settings.gan.threads,
    first=True,
)
