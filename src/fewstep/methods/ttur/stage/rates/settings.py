"""The settings of the search for two learning rates."""

from typing import Literal

from pydantic import Field

from fewstep.pipeline.stage.settings import Positive, Section


class TturSettings(Section):
    """A search over both learning rates and the critic steps, and its comparison with single rates."""

    network: Literal["dcgan", "resnet"] | None = Field(
        default=None,
        description="generator and discriminator, resnet as in WGAN-GP; null: there is no search",
    )
    width: Positive = Field(default=16, description="channels of the networks at the full side")
    budget: int = Field(
        default=64_000, ge=100, description="real images that the discriminator of each training sees"
    )
    batch_size: int = Field(default=64, ge=1, le=65536, description="real images of a discriminator step")
    trials: int = Field(
        default=20, ge=10, description="trainings of the search: single rates and the published pair first"
    )
    probes: int = Field(
        default=8, ge=2, description="measurements of a training, by which hopeless ones are ended early"
    )
    images: int = Field(default=1000, ge=100, description="images of a measurement")
    seeds: int = Field(
        default=3, ge=2, description="trainings of each arm of the comparison, from fresh seeds"
    )
    seed: int = Field(default=0, ge=0, description="seed of the search; the comparison takes those after it")
