"""The settings of boundaries."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from fewstep.pipeline.stage.settings import NOT_A_RESULT, Section

Inside = Annotated[float, Field(gt=0, lt=1)]


class BoundarySettings(Section):
    """Which boundaries are fitted, and how."""

    attribute: list[str] = Field(
        default=[],
        description="A/B: class B against class A; an attribute of the dataset; FILE.csv:COLUMN, with a column row; "
        "brightness, red, green, blue: the upper third of the images against the lower; none: no boundaries",
    )
    t: Inside | None = Field(
        default=None,
        description="mixing step, 0 data and 1 noise; null: the latest one with small gap and error",
    )
    further: list[Inside] = Field(
        default=[], description="further steps at which boundaries are fitted, to compare"
    )
    calls: int = Field(default=40, ge=2, description="network calls of an inversion, and of a generation")
    times: list[Inside] = Field(
        default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        min_length=1,
        description="steps among which the mixing step is found; for each, gap, error and accuracy are measured",
    )
    gap: float = Field(
        default=1.0,
        gt=0,
        description="of the mixing step: gap of the mean norms, in standard deviations, at most",
    )
    error: float = Field(
        default=0.01, gt=0, description="of the mixing step: mean squared error of reconstructions, at most"
    )
    per_side: int = Field(
        default=100, ge=10, description="images with and without the attribute that planes are fitted to"
    )
    choice: int = Field(
        default=40, ge=10, description="further images a side, by which C is chosen and accuracy is measured"
    )
    c: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default=[1e-3, 1e-2, 1e-1, 1.0],
        min_length=1,
        description="C of the support vector machine: several, of which the one is taken whose edits succeed most at "
        "equal change of content",
    )
    sweep: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default=[0.5, 1.0, 1.5, 2.0, 3.0],
        min_length=1,
        description="distances of the edits that C is chosen by",
    )
    curve_images: int = Field(
        default=200, ge=20, description="images behind the curves of each step, at most"
    )
    seed: int = Field(default=0, ge=0, description="seed of the choice of images, and of noise")
    batch_size: int = Field(
        default=250, ge=1, le=65536, json_schema_extra=NOT_A_RESULT, description="images per network call"
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        self.require_distinct("attribute", "further", "times", "c", "sweep")
        return self
