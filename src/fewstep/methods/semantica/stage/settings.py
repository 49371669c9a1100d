"""The settings of pairs, and of what is measured of models of pairs."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fewstep.pipeline.stage.settings import NOT_A_RESULT, Positive, Section

Share = Annotated[float, Field(ge=0, le=1)]


class PairsSettings(Section):
    """Which image an image is conditioned on in training."""

    mode: Literal["class", "neighbours", "image", "table"] | None = Field(
        default=None,
        description="class: another of the class; neighbours: mutual nearest ones by their tokens; image: itself; "
        "table: a pairs.csv of yours; null: no pairs",
    )
    source: str | None = Field(default=None, min_length=1, description="of mode table: the file")
    neighbours: Positive = Field(default=10, description="of mode neighbours: how many an image has")
    quantiles: list[Share] = Field(
        default=[0.0, 1.0],
        min_length=2,
        max_length=2,
        description="of mode neighbours: quantiles of the similarity between which pairs are kept",
    )
    limit: Positive = Field(default=30, description="of mode class: conditions of an image, at most")
    seed: int = Field(default=0, ge=0, description="seed of the choice among a class")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.mode == "table") != (self.source is not None):
            raise ValueError(f"source: must name a table for mode table alone, got {self.source}")
        if self.quantiles[0] >= self.quantiles[1]:
            raise ValueError(f"quantiles: must rise, got {self.quantiles}")
        return self


class SemanticaSettings(Section):
    """What is measured of a model that varies images."""

    images: int = Field(default=0, ge=0, description="images to show the model, at most; 0: none")
    variations: int = Field(default=8, ge=2, le=256, description="images that are made of each")
    nfe: Positive = Field(default=20, description="network evaluations of each, by DDIM")
    guidances: list[Annotated[float, Field(ge=0)]] = Field(
        default=[1.0, 2.0], min_length=1, description="guidance scales"
    )
    mixtures: int = Field(default=500, ge=0, description="images behind the test of a mixture; 0: none")
    seed: int = Field(default=1_900_000_000, ge=0, description="first random seed of these images")
    batch_size: int = Field(
        default=250, ge=1, le=65536, json_schema_extra=NOT_A_RESULT, description="images per network call"
    )
