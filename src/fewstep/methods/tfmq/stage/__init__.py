"""Quantisation as a stage of the workflow."""

from typing import Any

from fewstep.methods.tfmq.stage.command import command
from fewstep.methods.tfmq.stage.settings import QuantizeSettings
from fewstep.pipeline.stage import MODEL, First, Of, Stage, known_plan


def _requires(settings: Any) -> None:
    if absent := set(settings.quantize.nfe) - {*settings.search.nfe, *settings.plans.nfe}:
        raise ValueError(
            "quantize.nfe: must be among the numbers of calls in search.nfe or plans.nfe, whose plans it starts from; "
            f"got {sorted(absent)}"
        )


STAGE = Stage(
    name="quantize",
    command=command,
    measures="fewstep.methods.tfmq.stage.measures",
    makes="plans",
    does="quantise the best plan of {nfe} network calls",
    settings=QuantizeSettings,
    inputs=lambda settings, nfe: {
        "model": MODEL,
        "plan": (Of("compose", file="plans"), First(("search", known_plan(settings, nfe)))),
    },
    reads=("sample.guidance",),
    nfe=lambda settings: settings.quantize.nfe,
    requires=_requires,
    keeps="study",
    panel="fewstep.methods.tfmq.stage.panel",
    first=True,
)
