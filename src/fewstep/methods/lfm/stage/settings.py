"""The settings of latent flow matching: its conditions, and what is measured of its models."""

from typing import Annotated, Literal

from pydantic import Field

from fewstep.pipeline.stage.settings import NOT_A_RESULT, Positive, Section


class MapsSettings(Section):
    """What a model is conditioned on beside classes: a masked image, or a semantic map."""

    kind: Literal["mask", "map"] | None = Field(
        default=None,
        description="mask: for inpainting; map: of the bright parts of each image, by its class; null: neither",
    )
    per_image: int = Field(
        default=4, ge=1, le=64, description="masks of each training image, one of which it has in a step"
    )
    shapes: list[Literal["strokes", "boxes", "perlin"]] = Field(
        default=["strokes", "boxes"], min_length=1, description="shapes of masks, each with equal chance"
    )
    encoder: Literal["learned", "frozen"] = Field(
        default="learned",
        description="learned: the network's first layer sees the classes of a map; frozen: a random projection of them "
        "to 4 channels, as published",
    )
    seed: int = Field(
        default=0, ge=0, description="seed of masks, of posteriors and of the frozen projection"
    )
    batch_size: int = Field(
        default=250, ge=1, le=65536, json_schema_extra=NOT_A_RESULT, description="images encoded at once"
    )


class LfmSettings(Section):
    """What is measured of a model of latent flow matching."""

    images: int = Field(default=0, ge=0, description="images of each measurement; 0: none is made")
    nfe: list[Positive] = Field(
        default=[1, 2, 3, 5, 10, 20, 50], min_length=1, description="numbers of network evaluations of Euler"
    )
    guidances: list[Annotated[float, Field(ge=0)]] = Field(
        default=[1.0], min_length=1, description="guidance scales, each at guided_nfe evaluations"
    )
    guided_nfe: Positive = Field(
        default=20, description="evaluations of Euler behind guidance and conditions"
    )
    dopri5: bool = Field(default=True, description="also measure the adaptive solver of the paper")
    bound_images: int = Field(
        default=0,
        ge=0,
        le=2000,
        description="images behind the pieces of the bound of a latent model; 0: none",
    )
    resamples: int = Field(
        default=100, ge=10, multiple_of=2, description="half samples behind the intervals; an even number"
    )
    seed: int = Field(default=1_800_000_000, ge=0, description="first random seed of these images")
    batch_size: int = Field(
        default=250, ge=1, le=65536, json_schema_extra=NOT_A_RESULT, description="images per network call"
    )
