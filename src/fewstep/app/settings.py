"""The settings of the stages that every run has, with defaults, bounds and meaning of every field."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from fewstep.data.dataset_names import PATTERN, SAID
from fewstep.pipeline.settings import MARGIN, DrawSettings, MeasureSettings
from fewstep.pipeline.stage.settings import NOT_A_RESULT, OwnSeeds, Positive, Section

DatasetName = Annotated[str, StringConstraints(pattern=PATTERN)]
RUN_NAME = r"^[a-z0-9][a-z0-9-]*$"
RunName = Annotated[str, StringConstraints(pattern=RUN_NAME)]
PresetName = Literal[
    "ddim",
    "ddim-eta",
    "ddpm",
    "dpm-solver-2s",
    "dpm-solver-3s",
    "dpmpp-2m",
    "dpmpp-2m-taylor",
    "dpmpp-3m",
    "dpmpp-3m-exact",
    "unipc-1",
    "unipc-2",
    "unipc-3",
    "unipc-1-bh1",
    "unipc-2-bh1",
    "unipc-3-bh1",
    "unipc-1-noise",
    "unipc-2-noise",
    "unipc-3-noise",
    "unipc-1-bh1-noise",
    "unipc-2-bh1-noise",
    "unipc-3-bh1-noise",
    "deis-2",
    "deis-3",
    "ipndm-2",
    "ipndm-3",
    "ipndm-4",
    "heun",
]
GridName = Literal[
    "uniform-t",
    "quadratic-t",
    "uniform-lambda",
    "karras",
    "shifted",
    "ays-sd1",
    "ays-sdxl",
    "ays-svd",
    "gits-sd1",
]

WITHOUT_SOURCE = ("digits", "cifar10")  # one comes with scikit-learn, the other is downloaded


class ScheduleSettings(Section):
    """The noise schedule that the network is trained on."""

    type: Literal["ddpm", "vp-linear", "cosine", "edm", "flow"] = Field(
        default="ddpm", description="ddpm: the linear table of 1000 steps; the others are continuous in time"
    )


class ModelSettings(Section):
    """The network and what it predicts, or the model of the zoo that is used instead of training one."""

    zoo: str | None = Field(
        default=None, min_length=1, description="a model of fewstep zoo; null: train one as the rest says"
    )

    network: Literal["unet", "transformer"] = Field(
        default="unet", description="unet, or transformer: a DiT, of channels, depth and patch"
    )
    channels: int = Field(
        default=16,
        ge=8,
        le=2048,
        multiple_of=8,
        description="channels at full resolution; of a transformer, of its tokens",
    )
    multipliers: list[Positive] = Field(
        default=[1, 2],
        min_length=1,
        max_length=6,
        description="channel factor of each resolution level of a U-Net",
    )
    blocks: int = Field(default=1, ge=1, le=8, description="residual blocks per level of a U-Net")
    attention: list[Positive] = Field(
        default=[4], description="sides of the levels of a U-Net at which attention is used"
    )
    depth: int = Field(default=4, ge=1, le=64, description="blocks of a transformer")
    patch: Positive = Field(
        default=1, description="side of the squares of pixels that enter the network as the channels of one"
    )
    tile: Positive | None = Field(
        default=None,
        description="side of the patches, in pixels, that a U-Net sees of an image, which may then be of any number of "
        "patches (Patch-DM, train.objective patchdm); null: it sees whole images",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout in residual blocks")
    class_conditional: bool = Field(default=False, description="give the network the labels of the dataset")
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    prediction: Literal["eps", "x0", "v", "u", "edm"] = Field(
        default="eps", description="what the network outputs"
    )
    widths: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[1.0],
        min_length=1,
        description="shares of its channels that the network also learns to work with, 1 first",
    )

    @model_validator(mode="after")
    def _widths_and_tiles_are_of_a_unet(self) -> Self:
        if self.network != "unet" and len(self.widths) > 1:
            raise ValueError(
                f"widths: must be [1.0] for a transformer, as only U-Nets slim, got {self.widths}"
            )
        if self.tile is not None and (self.network != "unet" or len(self.widths) > 1):
            raise ValueError(
                f"tile: must be null but for a U-Net of one width, got {self.tile} for {self.network} of the widths "
                f"{self.widths}"
            )
        return self


class AutoencoderSettings(Section):
    """The autoencoder whose latents the diffusion model is of; neither factor nor source: a model of pixels."""

    factor: int | None = Field(
        default=None,
        ge=2,
        le=32,
        description="side of an image over that of its latent, a power of two; null: no autoencoder is trained",
    )
    source: str | None = Field(
        default=None,
        min_length=1,
        description="folder of an AutoencoderKL of diffusers, or of fewstep autoencoder, to use instead",
    )
    channels: int = Field(default=32, ge=4, le=1024, multiple_of=4, description="channels at full resolution")
    latent_channels: int = Field(default=4, ge=1, le=64, description="channels of a latent")
    blocks: int = Field(default=1, ge=1, le=8, description="residual blocks per resolution")
    kl_weight: float = Field(
        default=1e-2,
        ge=0,
        description="weight of the posterior's divergence, in nats, beside the squared error of an image",
    )
    steps: Positive = Field(default=800, description="optimiser steps")
    batch_size: int = Field(default=64, ge=1, le=65536, description="images per step")
    lr: float = Field(default=2e-3, gt=0, le=1, description="highest learning rate of Adam")
    flip: bool = Field(default=False, description="mirror half of the images, at random")
    seed: int = Field(default=0, ge=0, description="seed of weights, order and noise")

    @model_validator(mode="after")
    def _factor_is_a_power_of_two(self) -> Self:
        if self.factor is not None and self.factor & (self.factor - 1):
            raise ValueError(f"factor: must be a power of two, got {self.factor}")
        return self


class LatentsSettings(Section):
    """The latents of all images, drawn once."""

    seed: int = Field(default=0, ge=0, description="image i is encoded with the noise of seed + i")
    batch_size: int = Field(
        default=250, ge=1, le=65536, json_schema_extra=NOT_A_RESULT, description="images at once"
    )


class EncodeSettings(Section):
    """The frozen encoder whose tokens the diffusion model is conditioned on."""

    encoder: str | None = Field(
        default=None,
        min_length=1,
        description="classifier: one that is trained here, on the classes that are not held out; effnet-lite0; the "
        "folder of a classifier or of a vision transformer; null: no such conditions",
    )
    heldout_classes: list[Annotated[int, Field(ge=0)]] = Field(
        default=[], description="classes that neither a classifier trained here nor pairs may see"
    )
    steps: Positive = Field(default=600, description="optimiser steps of a classifier that is trained here")
    seed: int = Field(default=1, ge=0, description="seed of a classifier that is trained here")
    batch_size: int = Field(
        default=64, ge=1, le=65536, json_schema_extra=NOT_A_RESULT, description="images encoded at once"
    )


class PrepareSettings(Section):
    """Which images, and how they are packed."""

    dataset: DatasetName = Field(default="digits", description=SAID)
    name: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9_.-]*$",
        description="name in reports; null: the dataset's own",
    )
    source: str | None = Field(
        default=None,
        min_length=1,
        description="file or folder of raw data; digits need none, null downloads cifar10; track it with dvc add",
    )
    size: int | None = Field(
        default=None, ge=4, le=1024, description="side of the square images in pixels; null: as is"
    )
    limit: int | None = Field(default=None, ge=10, description="keep at most this many images; null: all")
    test_fraction: float = Field(
        default=0.2, ge=0, lt=1, description="share held out where the dataset has no test images of its own"
    )
    skip_corrupt: bool = Field(
        default=False, description="leave out unreadable files and list them in the manifest"
    )
    max_pixels: int | None = Field(
        default=None,
        ge=1,
        description="pixels of the largest image that is read; null: 179 million, Pillow's limit",
    )
    workers: Positive = Field(default=2, json_schema_extra=NOT_A_RESULT, description="decoding processes")

    @model_validator(mode="after")
    def _source_is_given(self) -> Self:
        if self.dataset not in WITHOUT_SOURCE and self.source is None:
            raise ValueError(f"source: must name the file or folder that holds {self.dataset}, got nothing")
        return self


class Training(Section):
    """A training of a diffusion model."""

    steps: Positive = Field(default=1500, description="optimiser steps")
    batch_size: int = Field(default=128, ge=1, le=65536, description="images per step over all devices")
    lr: float = Field(default=2e-3, gt=0, le=1, description="learning rate of Adam after the warm-up")
    warmup: int = Field(default=100, ge=0, description="steps of linear learning-rate warm-up")
    lr_schedule: Literal["constant", "cosine"] = Field(
        default="cosine",
        description="learning-rate schedule after the warm-up: constant, or a half cosine to 0",
    )
    cooldown: int = Field(
        default=0, ge=0, description="last steps, in which a constant learning rate falls to 0"
    )
    ema_decay: float = Field(default=0.998, ge=0, lt=1, description="decay per step of the averaged weights")
    clip: float | None = Field(default=1.0, gt=0, description="largest gradient norm; null: no clipping")
    weighting: Literal["uniform", "snr", "min-snr-5", "edm"] = Field(
        default="uniform", description="weight of the loss over noise levels"
    )
    label_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of labels hidden, for guidance")
    distil: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="with several widths: how much narrow ones learn from the full one",
    )
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="arithmetic of network calls")
    compile: bool = Field(default=False, description="torch.compile the network")
    flip: bool = Field(default=False, description="mirror half of the images, at random")
    checkpoint_seconds: float = Field(
        default=60.0, gt=0, json_schema_extra=NOT_A_RESULT, description="seconds between checkpoints"
    )
    threads: int = Field(
        default=0,
        ge=0,
        json_schema_extra=NOT_A_RESULT,
        description="cores of a process that trains; 0: all, which a small network has no use for",
    )
    processes: Positive = Field(
        default=1,
        json_schema_extra=NOT_A_RESULT,
        description="processes of this machine that share each batch, with a GPU each where there are any",
    )
    log_every: Positive = Field(default=10, description="steps between lines of metrics.jsonl")
    seed: int = Field(default=0, ge=0, description="seed of weights, order and noise")


class BaseSettings(Training):
    """The training of the model that the run's training starts from, on whole images."""

    steps: int = Field(
        default=0, ge=0, description="optimiser steps; 0: the training starts from random weights"
    )


class TrainSettings(Training):
    """The training of the diffusion model."""

    objective: str | None = Field(
        default=None,
        min_length=1,
        description="objective of a paper, such as rad: a noise level for each pixel; null: denoise whole images",
    )
    lora_rank: Positive | None = Field(
        default=None,
        description="rank of what is learned beside the weights of the model that training starts from, and merged "
        "into them at the end; null: these learn themselves",
    )
    lora_roles: list[Literal["attn", "body", "first", "last", "shortcut"]] = Field(
        default=["attn", "body", "first", "last"],
        min_length=1,
        description="with a lora_rank, roles of the layers that it is for; those of the time learn in full",
    )


FeaturesName = Literal[
    "classifier",
    "effnet-lite0-p320",
    "effnet-lite1-p320",
    "inception2015",
    "dinov2-vitl14",
    "clip-vitl14-336",
]
UNFITTED_BESIDE = {
    "classifier": "classifier",
    "effnet-lite0-p320": "effnet-lite1-p320",
    "effnet-lite1-p320": "effnet-lite0-p320",
    "inception2015": "effnet-lite1-p320",
    "dinov2-vitl14": "effnet-lite1-p320",
    "clip-vitl14-336": "effnet-lite1-p320",
}
"""Features that plans are fitted in -> those that nothing is fitted to."""


class ClassifierTraining(Section):
    """The training of a classifier."""

    steps: Positive = Field(default=600, description="optimiser steps of the classifier")
    batch_size: int = Field(default=128, ge=1, le=65536, description="images per step of the classifier")
    lr: float = Field(default=1e-3, gt=0, le=1, description="learning rate of the classifier")
    seed: int = Field(default=0, ge=0, description="seed of the classifier's training")


class ExtractorSettings(ClassifierTraining):
    """The network whose features plans are fitted in."""

    name: FeaturesName = Field(
        default="classifier",
        description="classifier: trained here on the labels; inception2015: the one that FID means",
    )


class UnfittedSettings(ClassifierTraining):
    """The network whose features nothing is fitted to, and by which plans are reported."""

    name: FeaturesName | Literal["auto", "none"] = Field(
        default="auto",
        description="auto: another one than extractor.name, EfficientNet-Lite1 beside published ones, and beside a "
        "classifier one of another architecture and seed; none: report the features that plans are fitted in",
    )
    steps: Positive = Field(default=300, description="optimiser steps of the classifier")
    seed: int = Field(default=1000, ge=0, description="seed of the classifier's training")

    def of(self, fitted: str) -> str | None:
        """The extractor beside one that plans are fitted in; None for none."""
        if self.name == "none":
            return None
        return UNFITTED_BESIDE[fitted] if self.name == "auto" else self.name


class StatsSettings(Section):
    """The reference that samples are compared with."""

    split: Literal["train", "valid", "test"] = Field(
        default="train", description="split whose features are the reference"
    )


class PlansSettings(Section):
    """The sampling plans that are compared: every preset on every grid at every number of calls."""

    nfe: list[Positive] = Field(
        default=[4, 5, 6, 8, 10, 50], min_length=1, description="network calls per image"
    )
    presets: list[PresetName] = Field(
        default=["ddim", "dpmpp-2m", "unipc-2"],
        min_length=1,
        description="known samplers",
    )
    grids: list[GridName] = Field(
        default=["uniform-t", "uniform-lambda", "quadratic-t"], min_length=1, description="spacings of times"
    )
    to_zero: bool = Field(
        default=True, description="end at clean data, by a last step of order 1, not at the schedule's t_min"
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        self.require_distinct("nfe", "presets", "grids")
        return self


class ComposeSettings(OwnSeeds):
    """The final comparison of plans that were searched, narrowed and aligned, by quality and time."""

    images: int = Field(default=2000, ge=16, description="images of each plan")
    target_nfe: int = Field(
        default=50,
        ge=2,
        description="network calls of DDIM, the target: plans are to be as good, in less time",
    )
    margin: float = Field(
        default=MARGIN,
        gt=0,
        le=1,
        description="a plan is as good as the target where the interval of its FD less the target's, corrected for the "
        "number of plans, ends below this share of the target's FD; the report confirms it on other seeds",
    )
    rounds: Positive = Field(
        default=6,
        description="rounds in which all plans are timed in turns; a plan is faster than another if it is so in every "
        "round, and the range of a ratio holds its median with probability 1 - 2^(1 - rounds)",
    )
    seed: int = Field(default=1_700_000_000, ge=0, description="first seed of these images")
    batch_size: int = Field(default=250, ge=1, le=65536, description="images per network call, timed too")


class SampleSettings(DrawSettings):
    """The images drawn from every plan."""

    n: int = Field(default=1000, ge=10, description="images per plan")
    seed: int = Field(default=0, ge=0, description="image i is drawn from seed + i")
    shards: int = Field(
        default=1,
        ge=1,
        le=1000,
        json_schema_extra=NOT_A_RESULT,
        description="jobs that share the images of a result",
    )


class EvaluateSettings(MeasureSettings):
    """The measurements made on samples."""

    max_pixels: int | None = Field(
        default=None,
        ge=1,
        json_schema_extra=NOT_A_RESULT,
        description="pixels of the largest image file that is read; null: 179 million, Pillow's limit",
    )
    shards: int = Field(
        default=1,
        ge=1,
        le=1000,
        json_schema_extra=NOT_A_RESULT,
        description="jobs that share the features of a result",
    )


class ClaimsSettings(Section):
    """The board of claims: a run with it makes nothing else."""

    runs: list[RunName] = Field(
        default=[], description="runs whose results the claims of the papers are judged by; [] in other runs"
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        self.require_distinct("runs")
        return self


class TrackSettings(Section):
    """Where finished results are shown."""

    uri: str = Field(
        default="sqlite:///mlflow.db",
        min_length=1,
        description="MLflow store; the environment variable MLFLOW_TRACKING_URI wins over it",
    )
    live: bool = Field(
        default=False,
        json_schema_extra=NOT_A_RESULT,
        description="send the training curve to MLflow while it grows",
    )
