"""Edits across boundaries as a stage of the workflow."""

from typing import Any

from fewstep.methods.boundary.stage.command import command
from fewstep.methods.boundary.stage.settings import EditSettings
from fewstep.pipeline.stage import MODEL, Stage, extractor


def _requires(settings: Any) -> None:
    if not settings.boundary.attribute:
        raise ValueError(
            f"edit.heldout: must be 0 without boundary.attribute, whose boundaries are edited across, got "
            f"{settings.edit.heldout}"
        )


STAGE = Stage(
    name="edit",
    command=command,
    makes="numbers",
    does="edit held-out images across boundaries, and measure it",
    settings=EditSettings,
    inputs=lambda settings, nfe: {
        "model": MODEL,
        "boundary": "boundary",
        "data": "prepare",
        "extractor": extractor(settings),
    },
    applies=lambda settings, before: settings.edit.heldout > 0,
    requires=_requires,
    panel="fewstep.methods.boundary.stage.panel",
    measures="fewstep.methods.boundary.stage.measures",
)
