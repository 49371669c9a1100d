"""The settings of plans on times spaced by a power."""

from pydantic import Field

from fewstep.pipeline.stage.settings import Positive, Section


class PowerGridSettings(Section):
    """DDIM on times spaced by a power."""

    nfe: list[Positive] = Field(default=[], description="numbers of network calls; none: no such plans")
    power: float = Field(default=1.5, gt=0, description="exponent of the spacing; 1: uniform in time")
