"""The search for two learning rates, and their comparison with one, as a stage of the workflow."""

from typing import Any

from fewstep.methods.ttur.stage.rates.command import command
from fewstep.methods.ttur.stage.rates.settings import TturSettings
from fewstep.pipeline.stage import Stage, extractor


def _requires(settings: Any) -> None:
    if settings.model.zoo is not None:
        raise ValueError(
            f"ttur.network: must not need training images with model.zoo, got {settings.ttur.network}; set it to null"
        )


STAGE = Stage(
    name="ttur",
    command=command,
    makes="numbers",
    does="search two learning rates of a generator and its discriminator",
    settings=TturSettings,
    inputs=lambda settings, nfe: {
        "data": "prepare",
        "reference": "stats",
        "extractor": extractor(settings),
    },
    applies=lambda settings, before: settings.ttur.network is not None,
    requires=_requires,
    keeps="study",
    panel="fewstep.methods.ttur.stage.rates.panel",
    measures="fewstep.methods.ttur.stage.rates.measures",
    first=True,
)
