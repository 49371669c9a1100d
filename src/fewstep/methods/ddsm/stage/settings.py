"""The settings of the search for the width of each network call."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fewstep.pipeline.stage.settings import OwnSeeds, Positive


class StepAwareSettings(OwnSeeds):
    """The search for the sub-network width of each call, for a model that has several."""

    nfe: list[Positive] = Field(
        default=[], description="numbers of network calls whose best plan is given widths; none: no search"
    )
    noises: int = Field(
        default=64, ge=16, description="images on which widths are compared with the full one"
    )
    population: int = Field(default=16, ge=4, description="plans of a generation of the evolution")
    generations: int = Field(default=4, ge=2, description="generations, the first among them")
    front_plans: Positive = Field(
        default=6, description="plans of the front that are kept, besides those of one width everywhere"
    )
    choice_images: int = Field(default=1000, ge=16, description="images of each, where there is a reference")
    cost: Literal["macs", "ms"] = Field(
        default="macs", description="what a call costs: multiply-adds, or measured milliseconds"
    )
    latency_batch: int = Field(
        default=64, ge=1, le=65536, description="images per call where time is measured"
    )
    seed: int = Field(
        default=1_600_000_000, ge=0, description="first seed of the search's images, and seed of its choices"
    )
    # Sizes of batches move the last bits of images, so that they can decide between two close plans.
    batch_size: int = Field(default=256, ge=1, le=65536, description="images per network call")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        self.require_distinct("nfe")
        return self
