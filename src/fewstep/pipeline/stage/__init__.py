"""A stage: one unit of the workflow, declared once; command, rule, key, settings, report and MLflow run follow from it.

The list of all stages is in `fewstep.app.stages`; here is what every one of them is made of.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fewstep.pipeline.stage.settings import Section

Kind = Literal[
    "dataset", "autoencoder", "model", "extractor", "statistics", "solutions", "conditions", "pairs", "plans", "images",
    "certificates", "numbers", "report",
]  # fmt: skip
"""What a stage makes. Plans are sampled and images evaluated, whichever stage made them."""


@dataclass(frozen=True)
class Of:
    """Results of a stage, as an input of another one; left out in runs that do not have that stage.

    Attributes:
        stage: its name.
        nfe: numbers of calls whose results are meant; None: that of the reader, or all where the reader has none.
        file: a file of the result, instead of its folder.
        sampled: the images drawn from its plans, instead of the plans.
    """

    stage: str
    nfe: tuple[int, ...] | None = None
    file: str = ""
    sampled: bool = False


@dataclass(frozen=True)
class Every:
    """The results of all stages before the reader in the list that make something of a kind, but some."""

    kind: Kind
    but: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panels:
    """The results of all stages that have a panel in the report, each given as NAME=FOLDER."""


@dataclass(frozen=True)
class Runs:
    """The folders of other runs whose results are finished."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class First:
    """The first of some inputs that the run has for the reader's number of calls."""

    of: "tuple[Input, ...]"


@dataclass(frozen=True)
class Value:
    """A text that stands for itself, such as the name of a published extractor."""

    text: str


@dataclass(frozen=True)
class OfSource:
    """What the result that a stage is run over was given for an option, such as the model that plans are for."""

    option: str


Input = str | Of | Every | First | Panels | Runs | Value | OfSource
"""What an option of a command is given; the name alone stands for `Of(name)`."""

Inputs = Mapping[str, Input | Sequence[Input]]
"""Parameter of the command -> what it is given. A folder of another stage becomes an input of the rule."""

MODEL: Sequence[Input] = ("train", "zoo")
"""The model of the run: one of its own, or of the zoo."""
UNFITTED = "unfitted.npz"
"""The file, beside a model of the zoo, of statistics in the features that nothing is fitted to."""
REFERENCE: Sequence[Input] = ("stats", "zoo")
"""The statistics of the reference images, which come with a model of the zoo."""


def extractor(settings: Any) -> Input:
    """The extractor of the run: the classifier trained on its labels, or a published one by name."""
    name: str = settings.extractor.name
    return "extractor" if name == "classifier" else Value(name)


def reported_features(settings: Any) -> dict[str, Input | Sequence[Input]]:
    """What images of plans are measured by: features that nothing is fitted to, and those of `extractor` beside them.

    Runs without the former report what they fit in.
    """
    fitted: dict[str, Input | Sequence[Input]] = {"reference": REFERENCE, "extractor": extractor(settings)}
    name = settings.unfitted.of(settings.extractor.name)
    if name is None:
        return fitted
    return {
        "reference": ("unfitted", Of("zoo", file=UNFITTED)),
        "extractor": "unfitted" if name == "classifier" else Value(name),
        **{f"fitted_{option}": value for option, value in fitted.items()},
    }


def known_plan(settings: Any, nfe: int) -> Input:
    """The first known sampler of the run, on its first grid, of as many calls."""
    plans = settings.plans
    end = ".to-zero" if plans.to_zero else ""
    return Of("plans", file=f"{plans.presets[0]}.{plans.grids[0]}{end}.nfe{nfe}.json")


def _none(settings: Any, nfe: int | None) -> Inputs:
    return {}


@dataclass(frozen=True)
class Stage:
    """One unit of the workflow.

    Attributes:
        name: of the command, the rule, the section of params.yaml, and the folder `results/{run}/{name}[/nfe{nfe}]`.
        command: what runs; its module is the root of the code that results depend on.
        makes: what its results are.
        does: the same in words, for the terminal; `{nfe}` is the number of network calls.
        inputs: (settings of the run, number of calls or None) -> what the command is given.
        settings: its section; the field `nfe` of a stage with `nfe` is not in the keys, as each has its own folder.
        reads: fields (`section.field`) or sections that change its results, beside its own section.
        ignores: fields among these that do not.
        uses: sections that its command is given without a result depending on them.
        nfe: numbers of calls that it is run for, one result each; None: one result.
        applies: whether a run has it, given the stages before it in the run.
        requires: raises ValueError("section.field: sentence") where settings of several sections do not fit together.
        rows: which of the run's stored conditions its command is given, where it takes `conditions` and the run has a
            stage that makes some: those of the training images, those that plans are found by, or those to report on.
        over: one result for each result of this kind, whichever stage made it.
        across: runs whose finished results it reads. A run for which there are any makes nothing beside but its report
            and its place in MLflow; other runs do not have the stage.
        source: hash of what it reads from outside the workflow.
        keeps: option that names the folder from which an interrupted job resumes.
        panel: module with `panel(folders, results) -> Panel | None`, its part of the report.
        record: module with `records(folder, stamp) -> Iterator[Record]`, its runs in MLflow; without one, a stage that
            has a panel is recorded with its settings and files.
        objectives: objectives of training that its paper brings, by name, each a module with
            `objective(name, schedule, prediction, weighting, net) -> fewstep.train.recipe.Objective`.
        uses_code: further modules, by the settings of the run, whose code its results depend on.
        measures: module with what claims may name as their metric, functions `(run, **setting) -> [Measurement]`.
        threads: cores of a process of a job, by the settings of the run; 0: all.
        processes: that share a job, each with cores and a GPU of its own.
        gpu: whether a job uses an accelerator where there is one.
        first: whether its jobs start before others, as part of the longest chain.
        short: whether its jobs take seconds, so that a cluster runs them in one job with the images of their plans.
        root: folder of its results; "state" for a local view that is no result.
    """

    name: str
    command: Callable[..., None]
    makes: Kind
    does: str
    inputs: Callable[[Any, Any], Inputs] = _none
    settings: type[Section] | None = None
    reads: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    nfe: Callable[[Any], Sequence[int]] | None = None
    applies: Callable[[Any, Sequence["Stage"]], bool] = lambda settings, before: True
    requires: Callable[[Any], None] | None = None
    rows: Literal["train", "search", "report"] = "search"
    over: Kind | None = None
    across: Callable[[Any], Sequence[str]] | None = None
    source: Callable[[Any], str | None] | None = None
    keeps: str | None = None
    panel: str | None = None
    record: str | None = None
    objectives: Mapping[str, str] = field(default_factory=dict, hash=False)
    uses_code: Callable[[Any], Sequence[str]] = lambda settings: ()
    measures: str | None = None
    threads: Callable[[Any], int] = lambda settings: 1
    processes: Callable[[Any], int] = lambda settings: 1
    gpu: bool = True
    first: bool = False
    short: bool = False
    root: Literal["results", "state"] = "results"

    @property
    def refines(self) -> bool:
        """Whether it makes plans from plans."""
        return self.makes == "plans" and "plan" in self.parameters

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Those of its command, by name."""
        return inspect.signature(self.command).parameters

    @property
    def roots(self) -> tuple[str, ...]:
        """The modules whose code, with all they import, a result depends on."""
        return (self.command.__module__,)
