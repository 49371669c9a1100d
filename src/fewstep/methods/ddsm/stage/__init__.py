"""The search for the width of each network call as a stage of the workflow."""

from typing import Any

from fewstep.methods.ddsm.stage.command import command
from fewstep.methods.ddsm.stage.settings import StepAwareSettings
from fewstep.pipeline.stage import MODEL, REFERENCE, First, Stage, extractor, known_plan


def _requires(settings: Any) -> None:
    if len(settings.model.widths) < 2 and settings.model.zoo is None:
        raise ValueError(
            "stepaware.nfe: needs a model of several widths, such as model.widths: [1.0, 0.5]; got "
            f"{settings.stepaware.nfe} and widths {settings.model.widths}"
        )
    if absent := set(settings.stepaware.nfe) - {*settings.search.nfe, *settings.plans.nfe}:
        raise ValueError(
            "stepaware.nfe: must be among the numbers of calls in search.nfe or plans.nfe, whose plans it starts "
            f"from; got {sorted(absent)}"
        )


STAGE = Stage(
    name="stepaware",
    command=command,
    measures="fewstep.methods.ddsm.stage.measures",
    makes="plans",
    does="search the width of each of {nfe} network calls",
    settings=StepAwareSettings,
    inputs=lambda settings, nfe: {
        "model": MODEL,
        "plan": First(("search", known_plan(settings, nfe))),
        "reference": REFERENCE,
        "extractor": extractor(settings),
    },
    reads=("sample.guidance",),
    nfe=lambda settings: settings.stepaware.nfe,
    requires=_requires,
    keeps="study",
    first=True,
)
