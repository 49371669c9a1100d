"""The settings of distances of disturbed images."""

from pydantic import Field

from fewstep.pipeline.stage.settings import Section


class DisturbSettings(Section):
    """Distances of real images that are disturbed, at rising levels."""

    images: int = Field(default=0, ge=0, description="held-out real images to disturb, at most; 0: none are")
    resamples: int = Field(
        default=100, ge=4, multiple_of=2, description="half samples behind the intervals; an even number"
    )
    seed: int = Field(default=0, ge=0, description="seed of the disturbances")
