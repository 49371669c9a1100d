"""Distances of disturbed images as a stage of the workflow."""

from fewstep.methods.ttur.stage.command import command
from fewstep.methods.ttur.stage.settings import DisturbSettings
from fewstep.pipeline.stage import REFERENCE, Stage, extractor

STAGE = Stage(
    name="disturb",
    command=command,
    makes="numbers",
    does="measure disturbed images",
    settings=DisturbSettings,
    inputs=lambda settings, nfe: {
        "data": "prepare",
        "reference": REFERENCE,
        "extractor": extractor(settings),
    },
    applies=lambda settings, before: settings.disturb.images > 0,
    panel="fewstep.methods.ttur.stage.panel",
    measures="fewstep.methods.ttur.stage.measures",
)
