"""Images larger than those of training as a stage of the workflow, and the objective that it is for."""

from typing import Any

from fewstep.methods.patchdm.stage.command import command
from fewstep.methods.patchdm.stage.settings import EnlargeSettings
from fewstep.pipeline.stage import MODEL, REFERENCE, Every, Stage, extractor


def _requires(settings: Any) -> None:
    tile = settings.model.tile
    if (
        settings.model.zoo is not None
        or not str(settings.train.objective).startswith("patchdm")
        or tile is None
    ):
        raise ValueError(
            f"enlarge.images: must be 0 for a model that is not one of patches, got {settings.enlarge.images}; set "
            "train.objective to patchdm and model.tile"
        )
    latent = settings.autoencoder.factor is not None or settings.autoencoder.source is not None
    for size in () if latent else settings.enlarge.size:
        if any(int(side) % tile for side in size.split("x")):
            raise ValueError(f"enlarge.size: sides must be multiples of model.tile, {tile}, got {size}")


STAGE = Stage(
    name="enlarge",
    command=command,
    makes="numbers",
    does="draw images larger than those of training, and measure their seams",
    settings=EnlargeSettings,
    inputs=lambda settings, nfe: {
        "model": MODEL,
        "plan": Every("plans", but=("onecall", "quantize")),
        "data": "prepare",
        "reference": REFERENCE,
        "extractor": extractor(settings),
    },
    applies=lambda settings, before: settings.enlarge.images > 0,
    requires=_requires,
    rows="report",
    objectives=dict.fromkeys(("patchdm", "patchdm-pixels"), "fewstep.methods.patchdm.objective"),
    panel="fewstep.methods.patchdm.stage.panel",
    measures="fewstep.methods.patchdm.stage.measures",
)
