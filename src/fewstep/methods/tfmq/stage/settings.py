"""The settings of quantisation."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from fewstep.pipeline.stage.settings import OwnSeeds, Positive

BITS = r"^w([2-8])a(4|8|32)$"


class QuantizeSettings(OwnSeeds):
    """Weights and activations in few bits, without training; what the network knows of the time is kept apart."""

    nfe: list[Positive] = Field(
        default=[], description="numbers of network calls whose best plan is quantised; none: no quantisation"
    )
    bits: list[str] = Field(
        default=["w8a8"],
        min_length=1,
        description="bits of weights, 2 to 8, and of activations, 4, 8 or 32 (floats): w8a8, w4a8, w4a32, ...",
    )
    methods: list[Literal["naive", "block", "tfmq", "table"]] = Field(
        default=["tfmq"],
        min_length=1,
        description="naive: nearest integers; block: reconstruction block by block; tfmq: the layers of the time "
        "first, ranges of each call; table: the same, with the features of the plan's times in floats",
    )
    fsc_scope: Literal["all", "tib", "none"] = Field(
        default="all",
        description="layers whose activations have ranges for each call: all, those of the time alone, none",
    )
    weight_scheme: Literal["auto", "symmetric", "affine"] = Field(
        default="auto", description="zero points of weights; auto: none at 8 bits, one a channel below"
    )
    range_search: Literal["mse", "minmax"] = Field(
        default="mse", description="how scales of weights are chosen"
    )
    keep: list[Literal["time_mlp", "time_proj", "first", "last", "shortcut", "resample", "attn", "body"]] = (
        Field(default=["first", "last"], description="roles of layers that stay floats")
    )
    noises: int = Field(default=64, ge=1, description="trajectories of the calibration")
    iterations: int = Field(default=300, ge=0, description="steps of a block's reconstruction")
    temporal_iterations: int = Field(
        default=500, ge=0, description="steps of the reconstruction of the layers of the time"
    )
    lr: float = Field(default=1e-2, gt=0, le=1, description="learning rate of the roundings")
    block_batch: Positive = Field(default=32, description="rows of a step of a block's reconstruction")
    polish_iterations: int = Field(
        default=24, ge=0, description="gradient steps on the plan's coefficients afterwards; 0: none"
    )
    polish_noises: int = Field(default=32, ge=8, description="images of such a step")
    polish_lr: float = Field(default=3e-3, gt=0, le=1, description="learning rate of these steps")
    gate_noises: int = Field(
        default=128, ge=16, description="other images, on which the coefficients must be better"
    )
    seed: int = Field(
        default=2_200_000_000, ge=0, description="first seed of these images, and seed of the roundings"
    )
    # Sizes of batches move the last bits of states, so that they can decide between two close roundings.
    batch_size: int = Field(default=64, ge=1, le=65536, description="images per network call")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        self.require_distinct("nfe", "bits", "methods", "keep")
        if odd := [bits for bits in self.bits if re.fullmatch(BITS, bits) is None]:
            raise ValueError(
                f"bits: must be of the form w8a8, with 2 to 8 bits of weights and 4, 8 or 32 of activations, got "
                f"{odd[0]!r}"
            )
        if self.weight_scheme == "affine" and any(re.fullmatch(r"w8a[48]", bits) for bits in self.bits):
            raise ValueError(
                "weight_scheme: must be symmetric or auto with w8a8 and w8a4, as integer kernels multiply 8 bits with "
                "sign, got affine"
            )
        return self
