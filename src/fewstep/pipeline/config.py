"""The one configuration: what `params.yaml` may say, with defaults, bounds and meaning of every field.

`params.yaml` holds `defaults`, `runs.<run>` and `dvc_runs`. The effective settings of a run are `defaults`
deep-merged with `runs.<run>` (mappings merge, everything else is replaced) and validated by `Settings`. The
workflow, the command line and the JSON schema all read this module; it imports neither torch nor a workflow
tool, so that asking what is to be done stays fast.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic.config import JsonDict

from fewstep.checks import ConfigError

RUN_NAME = r"^[a-z0-9][a-z0-9-]*$"

Positive = Annotated[int, Field(ge=1)]
RunName = Annotated[str, StringConstraints(pattern=RUN_NAME)]
DatasetName = Annotated[str, StringConstraints(pattern=r"^(digits|cifar10|celeba|lsun-[a-z_]+|folder)$")]
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
GridName = Literal["uniform-t", "quadratic-t", "uniform-lambda", "karras"]
MetricName = Literal["fd", "kid", "pr", "dc", "is", "inf", "mem"]

_WITHOUT_SOURCE = ("digits", "cifar10")  # one comes with scikit-learn, the other is downloaded

_NOT_A_RESULT: JsonDict = {"changes_results": False}


class Section(BaseModel):
    """A group of settings: unknown fields are errors, numbers are never read from strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def result_settings(self) -> dict[str, Any]:
        """The fields that can change a result; the others (workers, saving intervals) stay out of keys."""
        kept = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == _NOT_A_RESULT:
                del kept[name]
        return kept


class DataSettings(Section):
    """Which images, and how they are packed."""

    dataset: DatasetName = Field(
        default="digits", description="digits, cifar10, celeba, lsun-<category> or folder"
    )
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
    workers: Positive = Field(default=2, json_schema_extra=_NOT_A_RESULT, description="decoding processes")

    @model_validator(mode="after")
    def _source_is_given(self) -> Self:
        if self.dataset not in _WITHOUT_SOURCE and self.source is None:
            raise ValueError(f"source: must name the file or folder that holds {self.dataset}, got nothing")
        return self


class ScheduleSettings(Section):
    """The noise schedule that the network is trained on."""

    type: Literal["ddpm", "vp-linear", "cosine", "edm", "flow"] = Field(
        default="ddpm", description="ddpm: the linear table of 1000 steps; the others are continuous in time"
    )


class ModelSettings(Section):
    """The U-Net and what it predicts, or the model of the zoo that is used instead of training one."""

    zoo: str | None = Field(
        default=None, min_length=1, description="a model of fewstep zoo; null: train one as the rest says"
    )

    channels: int = Field(default=16, ge=8, le=1024, multiple_of=8, description="channels at full resolution")
    multipliers: list[Positive] = Field(
        default=[1, 2], min_length=1, max_length=6, description="channel factor of each resolution level"
    )
    blocks: int = Field(default=1, ge=1, le=8, description="residual blocks per level")
    attention: list[Positive] = Field(
        default=[4], description="sides of the levels at which attention is used"
    )
    patch: Positive = Field(
        default=1, description="side of the squares of pixels that enter the network as the channels of one"
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


class TrainSettings(Section):
    """The training of the diffusion model."""

    steps: Positive = Field(default=1500, description="optimiser steps")
    batch_size: int = Field(default=128, ge=1, le=65536, description="images per step over all devices")
    lr: float = Field(default=2e-3, gt=0, le=1, description="learning rate of Adam after the warm-up")
    warmup: int = Field(default=100, ge=0, description="steps of linear learning-rate warm-up")
    lr_course: Literal["constant", "cosine"] = Field(
        default="cosine", description="learning rate after the warm-up: constant, or falling to 0"
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
        default=60.0, gt=0, json_schema_extra=_NOT_A_RESULT, description="seconds between checkpoints"
    )
    log_every: Positive = Field(default=10, description="steps between lines of metrics.jsonl")
    seed: int = Field(default=0, ge=0, description="seed of weights, order and noise")


class ExtractorSettings(Section):
    """The network whose features images are compared in."""

    name: Literal["classifier", "effnet-lite0-p320", "inception2015"] = Field(
        default="classifier",
        description="classifier: trained here on the labels; inception2015: the one that FID means",
    )
    steps: Positive = Field(default=600, description="optimiser steps of the classifier")
    batch_size: int = Field(default=128, ge=1, le=65536, description="images per step of the classifier")
    lr: float = Field(default=1e-3, gt=0, le=1, description="learning rate of the classifier")
    seed: int = Field(default=0, ge=0, description="seed of the classifier's training")


class StatsSettings(Section):
    """The reference that samples are compared with."""

    split: Literal["train", "test"] = Field(
        default="train", description="split whose features are the reference"
    )


class PlanSettings(Section):
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
        for name in ("nfe", "presets", "grids"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: must not repeat a value, got {values}")
        return self


class SearchSettings(Section):
    """The search for a plan of its own for the model, at each of some numbers of calls."""

    nfe: list[Positive] = Field(default=[], description="numbers of network calls; none: no search")
    sampler: Literal["s3", "s3-ranked", "tpe", "random"] = Field(
        default="s3", description="what proposes plans; s3 is the evolution, s3-ranked has its predictor, too"
    )
    trials: Positive = Field(default=24, description="plans tried at each number of calls")
    max_order: int = Field(default=3, ge=1, le=4, description="highest Taylor order of a step")
    analytic: bool = Field(default=True, description="also try a first step that needs no network call")
    noises: int = Field(default=128, ge=16, description="fine solutions, and as many to choose by")
    trial_noises: int = Field(default=64, ge=16, description="of these, how many a trial is scored on")
    teacher_nfe: int = Field(default=100, ge=10, description="network calls of a fine solution")
    polish_iterations: int = Field(
        default=40, ge=0, description="gradient steps on the distance to solutions"
    )
    polish_noises: int = Field(default=48, ge=1, description="noises of such a step")
    polish_lr: float = Field(default=0.03, gt=0, le=1, description="learning rate of these steps")
    frechet_iterations: int = Field(
        default=60, ge=0, description="gradient steps on the distance between sets"
    )
    frechet_lr: float = Field(default=0.01, gt=0, le=1, description="learning rate of these steps")
    frechet_images: int = Field(default=320, ge=16, description="images of such a step, new ones each time")
    finalists: Positive = Field(default=2, description="presets, and trials, that reach the final comparison")
    finalist_images: int = Field(default=1000, ge=16, description="images of each finalist")
    seed: int = Field(
        default=1_000_000_000, ge=0, description="first seed of the search's images, and seed of its choices"
    )
    # It moves the last bits of a gradient, and a descent makes more of them: a result depends on it.
    batch_size: int = Field(default=500, ge=1, le=65536, description="images per network call")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.trial_noises > self.noises:
            raise ValueError(f"trial_noises: must be at most noises, {self.noises}; got {self.trial_noises}")
        if any(n < 2 for n in self.nfe) or len(set(self.nfe)) < len(self.nfe):
            raise ValueError(f"nfe: must be different numbers of 2 and more, got {self.nfe}")
        return self


class AlignSettings(Section):
    """The fit of the times that the network is told at each call of a plan, without other steps or weights."""

    nfe: list[Positive] = Field(default=[], description="numbers of network calls; none: no alignment")
    objectives: list[Literal["trajectory", "paper", "paper-sequential", "denoise", "local"]] = Field(
        default=["trajectory", "paper"],
        min_length=1,
        description="what times are fitted by; the best plan is chosen on images of its own",
    )
    magnitude: bool = Field(
        default=True, description="also try plans with a factor on the predicted noise of each call"
    )
    optimiser: Literal["search", "adam"] = Field(
        default="search", description="search: scan and golden section; adam: as published"
    )
    noises: int = Field(default=256, ge=16, description="noises of a fit")
    gate_noises: int = Field(default=256, ge=16, description="other noises, on which each change must hold")
    teacher_substeps: int = Field(
        default=8, ge=1, description="fine steps, of order 2, in each interval of the plan"
    )
    refine_iterations: int = Field(
        default=24, ge=0, description="gradient steps on all times together, from the best so far; 0: none"
    )
    refine_images: int = Field(
        default=256, ge=16, description="images of one such step towards a reference, and of its validation"
    )
    choice_images: int = Field(default=1000, ge=16, description="images by which the plan is chosen")
    seed: int = Field(default=1_500_000_000, ge=0, description="first seed of the alignment's images")
    # Sizes of batches move the last bits of images, so that they can decide between two close times.
    batch_size: int = Field(default=256, ge=1, le=65536, description="images per network call")

    @property
    def reads_images(self) -> bool:
        """Whether an alignment starts from training images: all objectives but trajectory do."""
        return bool(self.nfe) and self.objectives != ["trajectory"]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        for name in ("nfe", "objectives"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: must not repeat a value, got {values}")
        return self


class StepAwareSettings(Section):
    """The search for the width of each step, for a model that has several."""

    nfe: list[Positive] = Field(
        default=[], description="numbers of network calls whose best plan is narrowed; none: no search"
    )
    noises: int = Field(
        default=64, ge=16, description="images on which widths are compared with the full one"
    )
    population: int = Field(default=16, ge=4, description="plans of a generation of the evolution")
    generations: int = Field(default=4, ge=2, description="generations, the first among them")
    front_plans: Positive = Field(
        default=6, description="plans of the front that are kept, besides those of one width everywhere"
    )
    choice_images: int = Field(default=1000, ge=16, description="images of each, where there is a reference")
    cost: Literal["macs", "ms"] = Field(
        default="macs", description="what a narrow call saves: multiply-adds, or measured milliseconds"
    )
    latency_batch: int = Field(
        default=64, ge=1, le=65536, description="images per call where time is measured"
    )
    seed: int = Field(
        default=1_600_000_000, ge=0, description="first seed of the search's images, and seed of its choices"
    )
    # Sizes of batches move the last bits of images, so that they can decide between two close plans.
    batch_size: int = Field(default=256, ge=1, le=65536, description="images per network call")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if len(set(self.nfe)) < len(self.nfe):
            raise ValueError(f"nfe: must not repeat a value, got {self.nfe}")
        return self


class ComposeSettings(Section):
    """The final comparison of plans that were searched, narrowed and aligned, by quality and time."""

    images: int = Field(default=2000, ge=16, description="images of each plan")
    target_nfe: int = Field(
        default=50,
        ge=2,
        description="network calls of DDIM, whose quality is to be reached in the least time",
    )
    rounds: Positive = Field(default=3, description="times that each plan is timed; the median counts")
    seed: int = Field(default=1_700_000_000, ge=0, description="first seed of these images")
    batch_size: int = Field(default=250, ge=1, le=65536, description="images per network call, timed too")


class SampleSettings(Section):
    """The images drawn from every plan."""

    n: int = Field(default=1000, ge=10, description="images per plan")
    seed: int = Field(default=0, ge=0, description="image i is drawn from seed + i")
    guidance: float = Field(default=1.0, ge=0, description="classifier-free guidance scale; 1: none")
    batch_size: int = Field(
        default=250, ge=1, le=65536, json_schema_extra=_NOT_A_RESULT, description="images per network call"
    )
    shards: int = Field(
        default=1,
        ge=1,
        le=1000,
        json_schema_extra=_NOT_A_RESULT,
        description="jobs that share the images of a number of calls",
    )


class EvaluateSettings(Section):
    """The measurements made on samples."""

    metrics: list[MetricName] = Field(
        default=["fd", "kid", "pr"],
        min_length=1,
        description="fd: Fréchet distance; kid: kernel distance; pr: precision, recall; dc: density, coverage; "
        "is: classifier's score; inf: Fréchet distance at infinitely many images; mem: share of images nearer to "
        "training than to held-out ones",
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
    shards: int = Field(
        default=1,
        ge=1,
        le=1000,
        json_schema_extra=_NOT_A_RESULT,
        description="jobs that share the features of a number of calls",
    )


class DetectSettings(Section):
    """The detector: what a simple classifier can tell about generated images."""

    nfe: list[Positive] = Field(default=[], description="numbers of network calls; none: no detection")
    match: list[str] = Field(
        default=[], description="names of plans to look at, * for any text; none: all that have samples"
    )
    images: int = Field(
        default=500, ge=20, description="images of each plan, as many real ones, and as many for the control"
    )
    bank: int = Field(default=100, ge=3, description="real images that every image is compared with")
    k: int = Field(default=10, ge=2, description="nearest neighbours in the bank")
    scale: bool = Field(default=True, description="tell the classifier distances, too, not only their ratios")
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
        default=["logistic", "forest"], min_length=1, description="what tells images apart; the first counts"
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
        for name in ("nfe", "match", "classifiers"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: must not repeat a value, got {values}")
        return self


class TrackingSettings(Section):
    """Where finished results are shown."""

    uri: str = Field(
        default="sqlite:///mlflow.db",
        min_length=1,
        description="MLflow store; the environment variable MLFLOW_TRACKING_URI wins over it",
    )
    live: bool = Field(
        default=False,
        json_schema_extra=_NOT_A_RESULT,
        description="send the training curve to MLflow while it grows",
    )


class Settings(Section):
    """All settings of one run; the defaults are the digits study that runs on a CPU in minutes."""

    data: DataSettings = Field(default_factory=DataSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    extractor: ExtractorSettings = Field(default_factory=ExtractorSettings)
    stats: StatsSettings = Field(default_factory=StatsSettings)
    plans: PlanSettings = Field(default_factory=PlanSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    align: AlignSettings = Field(default_factory=AlignSettings)
    stepaware: StepAwareSettings = Field(default_factory=StepAwareSettings)
    compose: ComposeSettings = Field(default_factory=ComposeSettings)
    sample: SampleSettings = Field(default_factory=SampleSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    detect: DetectSettings = Field(default_factory=DetectSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)

    def _check_zoo(self) -> None:
        """What needs training images, which a model of the zoo comes without, must not be asked for."""
        if self.model.zoo is None:
            return
        asked = {
            "extractor.name": self.extractor.name == "classifier",
            "align.objectives": self.align.reads_images,
            "detect.nfe": bool(self.detect.nfe),
            "evaluate.metrics": bool(set(self.evaluate.metrics) - {"fd", "is", "inf"}),
        }
        for name, needs_images in asked.items():
            if needs_images:
                section, field = name.split(".")
                raise ValueError(
                    f"{name}: must not need training images with model.zoo, got "
                    f"{getattr(getattr(self, section), field)}; take a published extractor, the metric fd alone, "
                    "the objective trajectory, and leave the detector out"
                )

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.sample.guidance != 1.0 and not self.model.class_conditional:
            raise ValueError(
                f"sample.guidance: must be 1 for a model without classes, got {self.sample.guidance}; "
                "set model.class_conditional"
            )
        used = {
            "search": bool(self.search.nfe),
            "align": bool(self.align.nfe),
            "stepaware": bool(self.stepaware.nfe),
            "compose": bool(self.align.nfe or self.stepaware.nfe),
        }
        last = self.sample.seed + self.sample.n - 1
        for name, section in ((name, getattr(self, name)) for name, is_used in used.items() if is_used):
            if last >= section.seed:
                raise ValueError(
                    f"{name}.seed: must lie beyond the seeds that are reported on, {self.sample.seed} to {last}; "
                    f"got {section.seed}"
                )
        self._check_zoo()
        if unknown := sorted(set(self.detect.nfe) - set(self.plans.nfe)):
            raise ValueError(f"detect.nfe: must be among plans.nfe, {self.plans.nfe}; got {unknown}")
        if self.detect.nfe and self.extractor.name == "inception2015":
            raise ValueError(
                "detect.nfe: needs the extractor classifier or effnet-lite0-p320, got inception2015; leave it empty"
            )
        if self.stepaware.nfe and len(self.model.widths) < 2:
            raise ValueError(
                f"stepaware.nfe: needs a model of several widths, such as model.widths: [1.0, 0.5]; "
                f"got {self.stepaware.nfe} and widths {self.model.widths}"
            )
        for name, wanted in (("stepaware", self.stepaware.nfe), ("align", self.align.nfe)):
            if absent := set(wanted) - {*self.search.nfe, *self.plans.nfe}:
                raise ValueError(
                    f"{name}.nfe: must be among the numbers of calls in search.nfe or plans.nfe, whose plans it "
                    f"starts from; got {sorted(absent)}"
                )
        return self

    def result_settings(self) -> dict[str, Any]:
        """The settings that can change a result, section by section."""
        return {name: getattr(self, name).result_settings() for name in type(self).model_fields}


class Params(BaseModel):
    """The whole of `params.yaml`, its runs already merged and valid."""

    model_config = ConfigDict(frozen=True)

    dvc_runs: list[str]
    runs: dict[str, Settings]


def load_params(path: str | Path) -> Params:
    """Read and check a `params.yaml`.

    Raises:
        ConfigError: The file is missing or not YAML, or some run is invalid; one line per mistake.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: must be a readable file; {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: must be YAML; {' '.join(str(error).split())}") from error
    return parse_params(raw, name=path.name)


def parse_params(raw: object, *, name: str = "params.yaml") -> Params:
    """Check the content of a `params.yaml` that some YAML parser has read.

    Raises:
        ConfigError: One line per mistake, each `<name>: <path of the field>: <what must hold>`.
    """
    mistakes = list(_shape_mistakes(raw))
    runs: dict[str, Settings] = {}
    if isinstance(raw, Mapping) and not mistakes:
        for run in raw["runs"]:
            try:
                runs[run] = Settings.model_validate(merged(raw, run))
            except ValidationError as error:
                mistakes += _setting_mistakes(error, raw, run)
        mistakes += [
            f"dvc_runs: must be runs that train their model, got {run}; type make run RUN={run} for it alone"
            for run in raw["dvc_runs"]
            if run in runs and runs[run].model.zoo
        ]
    if mistakes:
        raise ConfigError("\n".join(f"{name}: {line}" for line in dict.fromkeys(mistakes)))
    assert isinstance(raw, Mapping)  # anything else is among the mistakes
    return Params(dvc_runs=raw["dvc_runs"], runs=runs)


def merged(raw: Mapping[str, Any], run: str) -> dict[str, Any]:
    """`defaults` overlaid with `runs.<run>`; neither is changed."""
    return _overlay(raw.get("defaults") or {}, raw["runs"][run] or {})


def settings(params: Params, run: str) -> Settings:
    """The settings of one run.

    Raises:
        ConfigError: There is no such run.
    """
    if run not in params.runs:
        raise ConfigError(f"run must be one of {', '.join(params.runs)} (params.yaml: runs), got {run!r}")
    return params.runs[run]


def params_schema() -> dict[str, Any]:
    """JSON schema of `params.yaml` for editors, generated from the models.

    It checks `defaults` and each `runs.<run>` alone; what concerns both together is checked by `load_params`.
    """
    schema = Settings.model_json_schema()
    sections = schema.pop("$defs")
    for section in sections.values():
        for field in section["properties"].values():
            field.pop("changes_results", None)
    sections["Settings"] = schema
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "params.yaml",
        "type": "object",
        "required": ["dvc_runs", "runs"],
        "additionalProperties": False,
        "properties": {
            "dvc_runs": {
                "description": "runs that `dvc repro` and a bare `snakemake` build",
                "type": "array",
                "items": {"type": "string", "pattern": RUN_NAME},
            },
            "defaults": {"description": "settings of every run", "$ref": "#/$defs/Settings"},
            "runs": {
                "description": "what each run changes",
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": RUN_NAME},
                "additionalProperties": {"$ref": "#/$defs/Settings"},
            },
        },
        "$defs": sections,
    }


def schema_text() -> str:
    """The schema as it is stored in `workflow/schemas/params.schema.json`."""
    return json.dumps(params_schema(), indent=1, ensure_ascii=False) + "\n"


def _overlay(base: Any, top: Any) -> dict[str, Any]:
    result = copy.deepcopy(dict(base))
    for key, value in top.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = _overlay(below, value) if both else copy.deepcopy(value)
    return result


def _shape_mistakes(raw: object) -> Iterator[str]:
    """What keeps the runs from being merged at all."""
    if not isinstance(raw, Mapping):
        yield "must be a mapping with dvc_runs, defaults and runs"
        return
    for key in raw.keys() - {"dvc_runs", "defaults", "runs"}:
        yield f"{key}: unknown field; allowed: dvc_runs, defaults, runs"
    if not isinstance(raw.get("defaults") or {}, Mapping):
        yield f"defaults: must be a mapping of sections, got {raw['defaults']!r}"
    runs = raw.get("runs")
    if not isinstance(runs, Mapping) or not runs:
        yield f"runs: must be a mapping with at least one run, got {runs!r}"
        return
    for run, overlay in runs.items():
        if not isinstance(run, str) or not re.match(RUN_NAME, run):
            yield f"runs.{run}: the name of a run must be small letters, digits and dashes"
        if not isinstance(overlay or {}, Mapping):
            yield f"runs.{run}: must be a mapping of sections, got {overlay!r}"
    chosen = raw.get("dvc_runs")
    if not isinstance(chosen, list):
        yield f"dvc_runs: must be a list of runs, got {chosen!r}"
        return
    for run in chosen:
        if not isinstance(run, str) or run not in runs:
            yield f"dvc_runs: {run!r} must be one of the runs: {', '.join(map(str, runs))}"


def _setting_mistakes(error: ValidationError, raw: Mapping[str, Any], run: str) -> Iterator[str]:
    """One sentence per pydantic error, led by the place in the file where the value stands."""
    for item in error.errors():
        loc = tuple(item["loc"])
        if item["type"] == "value_error":  # raised by a validator above: "field: sentence"
            field, _, sentence = str(item["ctx"]["error"]).partition(": ")
            yield f"runs.{run}.{'.'.join(map(str, (*loc, field)))}: {sentence}"
        elif item["type"] == "extra_forbidden":
            yield f"{_place(raw, run, loc)}: unknown field; allowed: {', '.join(_fields_at(loc[:-1]))}"
        elif item["type"] == "model_type":
            yield f"{_place(raw, run, loc)}: must be a mapping of settings, got {item['input']!r}"
        else:
            sentence = item["msg"].removeprefix("Input ").removeprefix("String ").replace("should", "must", 1)
            yield f"{_place(raw, run, loc)}: {sentence}, got {item['input']!r}"


def _place(raw: Mapping[str, Any], run: str, loc: Sequence[str | int]) -> str:
    """The dotted path of a setting: in the run's overlay if it stands there, else in the defaults."""
    path = ".".join(map(str, loc))
    in_defaults = _has(raw.get("defaults") or {}, loc) and not _has(raw["runs"][run] or {}, loc)
    return f"defaults.{path}" if in_defaults else f"runs.{run}.{path}"


def _has(tree: Any, loc: Sequence[str | int]) -> bool:
    for key in loc:
        if isinstance(tree, Mapping) and key in tree:
            tree = tree[key]
        else:
            return isinstance(tree, list)  # lists are replaced as a whole: the list stands here
    return True


def _fields_at(loc: Sequence[str | int]) -> list[str]:
    """The fields allowed at a place of the tree."""
    model: type[BaseModel] = Settings
    for key in loc:
        section = model.model_fields[str(key)].annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        model = section
    return list(model.model_fields)
