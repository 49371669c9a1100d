"""The settings of ViTGAN's ablations."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fewstep.methods.vitgan.variants import VARIANTS
from fewstep.pipeline.stage.settings import Positive, Section

VariantName = Literal[
    "full",
    "dot products",
    "free norms",
    "plain transformer",
    "no overlap",
    "no augmentation",
    "consistency",
    "relativistic",
]
assert set(VARIANTS) == set(VariantName.__args__)  # type: ignore[attr-defined]


class VitganSettings(Section):
    """Trainings of the run's generator with one part left out or exchanged at a time."""

    variants: list[VariantName] = Field(default=[], description="what is trained; none: nothing is")
    variant_steps: Positive = Field(default=400, description="generator steps of each training")
    variant_seeds: int = Field(default=3, ge=2, description="trainings of each variant")
    variant_images: int = Field(default=1000, ge=100, description="images of a measurement")

    @model_validator(mode="after")
    def _with_all_parts(self) -> Self:
        self.require_distinct("variants")
        if self.variants and "full" not in self.variants:
            raise ValueError(
                f"variants: must have full, which the others are compared with, got {self.variants}"
            )
        return self
