"""Plans on times spaced by a power as a stage of the workflow."""

from fewstep.methods.powergrid.stage.command import command
from fewstep.methods.powergrid.stage.settings import PowerGridSettings
from fewstep.pipeline.stage import MODEL, Stage

STAGE = Stage(
    name="powergrid",
    command=command,
    makes="plans",
    does="space the times of {nfe} network calls by a power",
    settings=PowerGridSettings,
    inputs=lambda settings, nfe: {"model": MODEL},
    nfe=lambda settings: settings.powergrid.nfe,
    panel="fewstep.methods.powergrid.stage.panel",
)
