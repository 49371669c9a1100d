"""The settings of a generator and its training."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fewstep.pipeline.stage.settings import NOT_A_RESULT, Positive, Section

NetworkName = Literal["dcgan", "resnet", "vitgan"]
Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class GanSettings(Section):
    """A generator of one network call, and its training against a discriminator."""

    network: NetworkName | None = Field(
        default=None,
        description="generator and discriminator: dcgan, resnet (that of WGAN-GP) or vitgan; null: there is none",
    )
    width: Positive = Field(default=32, description="channels at the full side; of transformers, of a token")
    latent: Positive = Field(default=64, description="numbers of the latent vector")
    depth: Positive = Field(default=2, description="blocks of each transformer")
    heads: Positive = Field(default=4, description="attention heads of each transformer")
    patch: Positive = Field(default=2, description="side of the patches of transformers, in pixels")
    attention: Literal["l2", "dot"] = Field(
        default="l2", description="of a transformer discriminator: by distances, or by dot products"
    )
    keeps_norms: bool = Field(
        default=True, description="keep the spectral norms of a transformer discriminator's layers"
    )
    overlap: bool = Field(default=True, description="let the patches of a transformer discriminator overlap")
    steps: Positive = Field(default=1500, description="optimiser steps of the generator")
    batch_size: int = Field(default=64, ge=1, le=65536, description="real images of a discriminator step")
    lr_g: float = Field(default=5e-4, gt=0, le=1, description="learning rate of the generator")
    lr_d: float = Field(default=1e-4, gt=0, le=1, description="learning rate of the discriminator")
    betas_g: list[Beta] = Field(
        default=[0.5, 0.999], min_length=2, max_length=2, description="of Adam, for the generator"
    )
    betas_d: list[Beta] = Field(
        default=[0.5, 0.999], min_length=2, max_length=2, description="of Adam, for the discriminator"
    )
    d_steps: Positive = Field(default=1, description="discriminator steps for each generator step")
    warmup: int = Field(default=0, ge=0, description="steps of linear learning-rate warm-up")
    knee: Positive | None = Field(
        default=None,
        description="steps after which both rates fall as power laws, the generator's faster; null: constant",
    )
    loss: Literal["non-saturating", "wasserstein", "relativistic"] = Field(
        default="non-saturating", description="what each side lowers; relativistic: of pairs, with r1 and r2"
    )
    r1: float = Field(default=0.0, ge=0, description="gradient penalty at real images, centred at 0")
    r2: float = Field(default=0.0, ge=0, description="the same at generated images")
    gp: float = Field(default=0.0, ge=0, description="gradient penalty of WGAN-GP between both, centred at 1")
    bcr: float = Field(
        default=0.0, ge=0, description="weight of consistency of the logits under augmentation"
    )
    augment: list[Literal["colour", "translation", "cutout"]] = Field(
        default=[], description="differentiable augmentation of what the discriminator sees"
    )
    augment_probability: Share = Field(default=0.8, description="of colour changes and of shifts, per image")
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="decay per step of the generator's averaged weights; 0: none"
    )
    flip: bool = Field(default=False, description="mirror half of the real images, at random")
    log_every: Positive = Field(default=10, description="steps between lines of metrics.jsonl")
    probe_every: Positive = Field(
        default=250, description="steps between measurements of samples, a multiple of log_every"
    )
    probe_images: int = Field(default=1000, ge=100, description="images of a measurement")
    checkpoint_seconds: float = Field(
        default=60.0, gt=0, json_schema_extra=NOT_A_RESULT, description="seconds between checkpoints"
    )
    threads: int = Field(
        default=0,
        ge=0,
        json_schema_extra=NOT_A_RESULT,
        description="cores of the job that trains; 0: all, which a small network has no use for",
    )
    seed: int = Field(default=0, ge=0, description="seed of weights, order, latent vectors and augmentation")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.probe_every % self.log_every:
            raise ValueError(
                f"probe_every: must be a multiple of log_every, {self.log_every}; got {self.probe_every}"
            )
        if self.gp and self.network == "dcgan":
            raise ValueError(
                f"gp: must be 0 with dcgan, whose batch normalisation couples images; got {self.gp}"
            )
        if self.batch_size < 2 and self.network in ("dcgan", "resnet"):
            raise ValueError(
                f"batch_size: must be 2 or more with {self.network}, which normalises over the batch; got "
                f"{self.batch_size}"
            )
        if self.bcr and not self.augment:
            raise ValueError(
                f"bcr: needs augment, as it compares images with augmented ones; got {self.bcr} without any"
            )
        if self.knee is not None and self.warmup:
            raise ValueError(f"knee: must be null with a warm-up, got {self.knee} and {self.warmup} steps")
        if self.network == "vitgan" and self.width % self.heads:
            raise ValueError(f"width: must be a multiple of heads, {self.heads}; got {self.width}")
        self.require_distinct("augment")
        return self
