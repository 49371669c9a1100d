"""The settings of inpainting."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from fewstep.pipeline.stage.settings import NOT_A_RESULT, Positive, Section


class InpaintSettings(Section):
    """What is measured of inpainting."""

    heldout: int = Field(
        default=0, ge=0, description="held-out images that are inpainted with each mask, at most; 0: none are"
    )
    masks: list[Literal["box", "half", "lines", "strokes", "perlin"]] = Field(
        default=["box", "half", "lines", "strokes", "perlin"],
        min_length=1,
        description="a box in the middle, the right half, every second line, strokes, or half of all by Perlin noise",
    )
    match: list[str] = Field(
        default=["*"],
        min_length=1,
        description="names of the plans that inpaint with times per pixel, * for anything",
    )
    replacement: list[Positive] = Field(
        default=[20], description="calls of replacement by ancestral steps, the first baseline"
    )
    repaint: list[Annotated[str, StringConstraints(pattern=r"^[1-9]\d*x[1-9]\d*$")]] = Field(
        default=["20x5", "50x10"],
        description="steps of RePaint, the second baseline, and how often each stretch of them is made",
    )
    jump: Positive = Field(default=1, description="steps of a stretch of RePaint; 10 in its paper")
    resamples: int = Field(
        default=100, ge=10, multiple_of=2, description="half samples behind the intervals; an even number"
    )
    seed: int = Field(
        default=2_300_000_000, ge=0, description="first random seed of the images; also that of masks"
    )
    batch_size: int = Field(
        default=250, ge=1, le=65536, json_schema_extra=NOT_A_RESULT, description="images per network call"
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        self.require_distinct("masks", "match", "replacement", "repaint")
        return self
