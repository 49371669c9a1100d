"""Settings that are shared: how images are drawn, and how they are measured."""

from typing import Any, Literal

from pydantic import Field

from fewstep.pipeline.stage.settings import NOT_A_RESULT, Section

MARGIN = 0.1
"""How much worse than its target a plan may be that is called as good, as a share of the target's distance."""

MetricName = Literal["fd", "kid", "cmmd", "pr", "dc", "is", "inf", "mem"]


def require_dropout(settings: Any, section: str, field: str, *, unguided: Any) -> None:
    """Raise ValueError where a run guides a model that was never trained without its conditions.

    Args:
        settings: of the run.
        section: that says how it guides.
        field: of it.
        unguided: the value that stands for no guidance.
    """
    value = getattr(getattr(settings, section), field)
    if value != unguided and settings.model.zoo is None and settings.train.label_dropout == 0:
        raise ValueError(
            f"{section}.{field}: must be {unguided} for a model that is not trained without its conditions, too, got "
            f"{value}; set train.label_dropout, such as 0.1"
        )


class DrawSettings(Section):
    """How images are drawn from a plan."""

    guidance: float = Field(default=1.0, ge=0, description="classifier-free guidance scale; 1: none")
    batch_size: int = Field(
        default=250, ge=1, le=65536, json_schema_extra=NOT_A_RESULT, description="images per network call"
    )


class MeasureSettings(Section):
    """How images are measured."""

    metrics: list[MetricName] = Field(
        default=["fd", "kid", "pr"],
        min_length=1,
        description="fd: Fréchet distance; kid: kernel distance; cmmd: the same of CLIP's features with a Gaussian "
        "kernel; pr: precision, recall; dc: density, coverage; "
        "is: Inception score, by the extractor's classifier; inf: Fréchet distance at infinitely many images; mem: "
        "share of images nearer to training than to held-out ones",
    )
    resamples: int = Field(
        default=100,
        ge=10,
        le=10000,
        multiple_of=2,
        description="half-samples behind each interval, two a cut",
    )
    level: float = Field(default=0.95, gt=0.5, lt=1, description="probability that an interval states")
    seed: int = Field(default=0, ge=0, description="seed of the half-samples")
