"""The settings of the alignment of timesteps."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fewstep.pipeline.stage.settings import OwnSeeds, Positive


class AlignSettings(OwnSeeds):
    """The fit of the conditioning timestep of each call of a plan, without other steps or weights."""

    nfe: list[Positive] = Field(default=[], description="numbers of network calls; none: no alignment")
    objectives: list[Literal["trajectory", "paper", "paper-sequential", "denoise", "local"]] = Field(
        default=["trajectory", "paper"],
        min_length=1,
        description="what timesteps are fitted by; the best plan is chosen on images of its own",
    )
    magnitude: bool = Field(
        default=True, description="also try plans with a factor on the predicted noise of each call"
    )
    optimiser: Literal["search", "adam"] = Field(
        default="search", description="search: scan and golden section; adam: as published"
    )
    noises: int = Field(default=256, ge=16, description="noises of a fit")
    gate_noises: int = Field(default=256, ge=16, description="other noises, on which each change must hold")
    teacher_substeps: int = Field(
        default=8, ge=1, description="fine steps, of order 2, in each interval of the plan"
    )
    refine_iterations: int = Field(
        default=24,
        ge=0,
        description="gradient steps on all timesteps together, from the best so far; 0: none",
    )
    refine_images: int = Field(
        default=256, ge=16, description="images of one such step towards a reference, and of its validation"
    )
    choice_images: int = Field(default=1000, ge=16, description="images by which the plan is chosen")
    seed: int = Field(default=1_500_000_000, ge=0, description="first seed of the alignment's images")
    # Sizes of batches move the last bits of images, so that they can decide between two close times.
    batch_size: int = Field(default=256, ge=1, le=65536, description="images per network call")

    @property
    def reads_images(self) -> bool:
        """Whether an alignment starts from training images: all objectives but trajectory do."""
        return bool(self.nfe) and self.objectives != ["trajectory"]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        self.require_distinct("nfe", "objectives")
        return self
