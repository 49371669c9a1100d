"""The settings of images larger than those of training."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from fewstep.pipeline.stage.settings import NOT_A_RESULT, Positive, Section

Decode = Literal["collage", "shift", "plain"]
"""How patches are decoded: with features of their neighbours; alone, on a grid that moves by half a patch with each
call; alone, on one grid."""


class EnlargeSettings(Section):
    """Images of other sizes than those of training, and what is measured of their seams."""

    images: int = Field(
        default=0, ge=0, description="images that are measured of each way of decoding; 0: none are"
    )
    size: list[Annotated[str, StringConstraints(pattern=r"^[1-9]\d*x[1-9]\d*$")]] = Field(
        default=[], description="height x width of larger images in pixels, such as 16x64"
    )
    pictures: Positive = Field(default=8, description="images that are drawn of each size")
    match: list[str] = Field(
        default=["*"], min_length=1, description="names of the plans that are measured, * for anything"
    )
    decodes: list[Decode] = Field(
        default=["collage", "plain"],
        min_length=1,
        description="collage: as trained; shift: each patch alone, on a grid that moves by half a patch with each "
        "call, for models of the objective patchdm-pixels; plain: each patch alone, on one grid; larger pictures are "
        "of the first",
    )
    memory: list[Positive] = Field(
        default=[], description="sides of images at which the memory of a training step is counted"
    )
    rows: Positive | None = Field(
        default=None,
        json_schema_extra=NOT_A_RESULT,
        description="rows of patches that are decoded at once; 1: memory grows with the width of an image alone; "
        "null: all",
    )
    resamples: int = Field(
        default=100, ge=10, multiple_of=2, description="half samples behind the intervals; an even number"
    )
    seed: int = Field(default=2_400_000_000, ge=0, description="first random seed of the images")
    batch_size: int = Field(
        default=250, ge=1, le=65536, json_schema_extra=NOT_A_RESULT, description="images per network call"
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        self.require_distinct("size", "match", "decodes", "memory")
        return self
