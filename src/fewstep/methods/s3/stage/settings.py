"""The settings of the solver search."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fewstep.checks import ConfigError
from fewstep.pipeline.passwords import without_password
from fewstep.pipeline.stage.settings import NOT_A_RESULT, OwnSeeds, Positive

PROFILES: dict[str, dict[str, Any]] = {
    "images": {},
    # a call of the network takes seconds there: few noises, few trials, latents as they are
    "text": {
        "look_noises": 4,
        "noises": 16,
        "trial_noises": 16,
        "trials": 12,
        "polish_iterations": 40,
        "polish_noises": 8,
        "frechet_iterations": 0,
        "finalist_images": 64,
        "batch_size": 8,
    },
}
"""Defaults of the settings by what is sampled; those of images are the fields' own."""


class SearchSettings(OwnSeeds):
    """The search for the model's best plan, at each of some numbers of network calls."""

    nfe: list[Positive] = Field(default=[], description="numbers of network calls; none: no search")
    sampler: Literal["s3", "s3-ranked", "tpe", "random"] = Field(
        default="s3",
        description="what proposes plans; s3: evolution; s3-ranked: evolution with a learnt ranker; tpe; random",
    )
    trials: Positive = Field(default=24, description="plans tried at each number of calls")
    max_order: int = Field(default=3, ge=1, le=4, description="highest Taylor order of a step")
    analytic: bool = Field(default=True, description="also try a first step that needs no network call")
    noises: int = Field(default=128, ge=16, description="fine solutions, and as many to validate on")
    trial_noises: int = Field(default=64, ge=16, description="of these, how many a trial is scored on")
    teacher_nfe: int = Field(default=100, ge=10, description="network calls of a fine solution")
    polish_iterations: int = Field(
        default=120,
        ge=0,
        description="gradient steps on the distance to solutions, where there are no reference images",
    )
    polish_noises: int = Field(default=16, ge=1, description="noises of such a step")
    polish_lr: float = Field(default=0.03, gt=0, le=1, description="learning rate of these steps")
    frechet_iterations: int = Field(
        default=300, ge=0, description="gradient steps on the distance between sets"
    )
    frechet_lr: float = Field(default=0.005, gt=0, le=1, description="learning rate of these steps")
    frechet_images: int = Field(default=64, ge=16, description="images of such a step, new ones each time")
    frechet_memory: int = Field(
        default=256,
        ge=0,
        description="latest images that count in the distance of such a step, too, so that it needs few new ones",
    )
    finalists: Positive = Field(default=2, description="presets, and trials, that reach the final comparison")
    finalist_images: int = Field(default=1000, ge=16, description="images of each finalist")
    seed: int = Field(
        default=1_000_000_000, ge=0, description="first seed of the search's images, and seed of its choices"
    )
    # It moves the last bits of a gradient, and a descent makes more of them: a result depends on it.
    look_noises: int = Field(default=16, ge=1, description="noises of the first look at a known sampler")
    batch_size: int = Field(default=500, ge=1, le=65536, description="images per network call")

    storage: str | None = Field(
        default=None,
        min_length=1,
        json_schema_extra=NOT_A_RESULT,
        description="URL of a database in which workers on several machines share a search, without its password "
        "(PGPASSWORD or ~/.pgpass); null: a file beside what an interrupted search resumes from",
    )
    workers: Positive = Field(
        default=1, json_schema_extra=NOT_A_RESULT, description="processes that run the trials of a search"
    )

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.storage is not None and without_password(self.storage) != self.storage:
            raise ValueError(
                "storage: must hold no password, as settings stand beside results; give it by PGPASSWORD or ~/.pgpass, "
                f"got {without_password(self.storage)}"
            )
        if self.trial_noises > self.noises:
            raise ValueError(f"trial_noises: must be at most noises, {self.noises}; got {self.trial_noises}")
        if any(n < 2 for n in self.nfe) or len(set(self.nfe)) < len(self.nfe):
            raise ValueError(f"nfe: must be different numbers of 2 and more, got {self.nfe}")
        return self

    def in_profile(self, profile: str) -> "SearchSettings":
        """The settings with the defaults of a profile; what was given stays.
        Raises: ConfigError: there is none of that name.
        """
        if profile not in PROFILES:
            raise ConfigError(f"--profile must be one of {', '.join(PROFILES)}; got {profile!r}.")
        changes = {
            name: value for name, value in PROFILES[profile].items() if name not in self.model_fields_set
        }
        return SearchSettings.model_validate({**self.model_dump(), **changes})
