"""The settings of edits across boundaries."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fewstep.pipeline.stage.settings import NOT_A_RESULT, Section

Finite = Annotated[float, Field(allow_inf_nan=False)]


class EditSettings(Section):
    """How images are edited, and what is measured of it."""

    heldout: int = Field(
        default=0,
        ge=0,
        description="held-out images without the attribute that are edited, at most; 0: none are",
    )
    zeta: list[Finite] = Field(
        default=[0.5, 1.0, 2.0, 3.0],
        min_length=1,
        description="distances from the plane that images are moved to, in units of the mean distance; below 0: away",
    )
    space: Literal["eps", "h", "both"] = Field(
        default="both", description="of a user's own pictures: the state, the bottleneck, or both are moved"
    )
    eta: float = Field(
        default=0.0, ge=0, le=1, description="noise of the steps after the edit; 1: as of DDPM"
    )
    lagged: bool = Field(
        default=False,
        description="as the official code: each later call gets the bottleneck of the call before",
    )
    seed: int = Field(
        default=2_500_000_000, ge=0, description="first random seed: of noise, and of random directions"
    )
    batch_size: int = Field(
        default=250, ge=1, le=65536, json_schema_extra=NOT_A_RESULT, description="images per network call"
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        self.require_distinct("zeta")
        return self
