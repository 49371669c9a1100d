"""The board: what the papers claim, and what the results of other runs say to it."""

from fewstep.app.settings import ClaimsSettings
from fewstep.app.stages.claims.command import command
from fewstep.pipeline.claims import claims_hash
from fewstep.pipeline.stage import Runs, Stage

STAGE = Stage(
    name="claims",
    command=command,
    makes="numbers",
    does="judge the claims of the papers",
    settings=ClaimsSettings,
    inputs=lambda settings, nfe: {"runs": Runs(tuple(settings.claims.runs))},
    across=lambda settings: settings.claims.runs,
    source=lambda settings: claims_hash(),
    panel="fewstep.app.stages.claims.panel",
    gpu=False,
)
