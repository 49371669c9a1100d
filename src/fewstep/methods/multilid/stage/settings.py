"""The settings of the detector."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fewstep.pipeline.stage.settings import Positive, Section


class DetectSettings(Section):
    """The detector: how well a simple classifier distinguishes generated images from real ones."""

    nfe: list[Positive] = Field(default=[], description="numbers of network calls; none: no detection")
    match: list[str] = Field(
        default=[], description="names of plans to look at, * for any text; none: all that have samples"
    )
    images: int = Field(
        default=500, ge=20, description="images of each plan, as many real ones, and as many for the control"
    )
    bank: int = Field(default=100, ge=3, description="real images that every image is compared with")
    k: int = Field(default=10, ge=2, description="nearest neighbours in the bank")
    scale: bool = Field(default=True, description="give the classifier distances, too, not only their ratios")
    same_levels: bool = Field(
        default=True,
        description="round generated images to the byte values that real ones take, whose coding would give them away",
    )
    published: bool = Field(
        default=True, description="also follow the published protocol, to measure its leak"
    )
    untrained: bool = Field(
        default=True, description="also look through an untrained ResNet-18, as published"
    )
    classifiers: list[Literal["logistic", "forest"]] = Field(
        default=["logistic", "forest"], min_length=1, description="classifiers of images; the first counts"
    )
    folds: int = Field(default=5, ge=2, description="folds of the cross-validation")
    repeats: Positive = Field(default=1, description="times that it is repeated with other folds")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="probability that an interval states")
    seed: int = Field(
        default=0, ge=0, description="seed of the choice of images, folds and untrained weights"
    )

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.k >= min(self.bank, self.images):
            raise ValueError(
                f"k: must be less than bank and images, {self.bank} and {self.images}; got {self.k}"
            )
        if self.folds > self.images:
            raise ValueError(f"folds: must be at most images, {self.images}; got {self.folds}")
        self.require_distinct("nfe", "match", "classifiers")
        return self
