from pathlib import Path
from shutil import which

from fewstep.checks import ConfigError, UserError
from fewstep.pipeline import specs
from fewstep.pipeline.config import load_params, settings

if config:
    raise WorkflowError(
        "settings must stand in params.yaml, where DVC sees them, but --config or --configfile was given"
    )
try:
    PARAMS = load_params("params.yaml")
except ConfigError as error:
    raise WorkflowError(str(error))

# Runs that take their model from the zoo, as a pattern; no run's name is empty.
ZOO_RUNS = (
    "|".join(run for run, values in PARAMS.runs.items() if values.model.zoo) or "none^"
)

# Jobs that use the accelerator ask for it only where there is one; elsewhere they run side by side on cores.
GPU = int(which("nvidia-smi") is not None)


def settings_of(wildcards):
    try:
        return settings(PARAMS, wildcards.run)
    except ConfigError as error:
        raise WorkflowError(str(error))


def spec(rule):
    """The spec of a rule, as the input that its jobs take their settings from."""
    return f"state/{{run}}/spec/{rule}.json"


def for_each_nfe(path):
    """Input function: the path with {nfe} replaced by every number of calls in the settings of the run."""
    return lambda wildcards: [
        path.format(run=wildcards.run, nfe=nfe)
        for nfe in settings_of(wildcards).plans.nfe
    ]


def shards(rule):
    """Input function: the marks of the jobs that share the work of a rule, where there are several."""

    def marks(wildcards):
        n = getattr(settings_of(wildcards), rule).shards
        name = f"state/{wildcards.run}/shards/{rule}/nfe{wildcards.nfe}"
        return [f"{name}.{k}of{n}" for k in range(1, n + 1)] if n > 1 else []

    return marks


def searched(path):
    """Input function: the path, in runs that search for plans."""
    return lambda wildcards: (
        [path.format(run=wildcards.run)] if settings_of(wildcards).search.nfe else []
    )


def searched_plans(wildcards):
    """Input function: what was found for every number of calls that the run searches for."""
    return [
        f"results/{wildcards.run}/plans/searched/nfe{nfe}/searched.nfe{nfe}.json"
        for nfe in settings_of(wildcards).search.nfe
    ]


def searches(wildcards):
    """Params function: the folder of every search, as options of the report."""
    return [
        f"--search results/{wildcards.run}/plans/searched/nfe{nfe}"
        for nfe in settings_of(wildcards).search.nfe
    ]


def base_plan(wildcards):
    """Input function: what is narrowed and aligned, the searched plan; where there is none, known plans."""
    if int(wildcards.nfe) in settings_of(wildcards).search.nfe:
        return f"results/{wildcards.run}/plans/searched/nfe{wildcards.nfe}/searched.nfe{wildcards.nfe}.json"
    return f"results/{wildcards.run}/plans/nfe{wildcards.nfe}/{specs.STAMP}"


def base_plan_file(wildcards, input):
    """Params function: the file of that plan; of the known ones the first sampler on the first grid."""
    if Path(input.base).name != specs.STAMP:
        return input.base
    plans = settings_of(wildcards).plans
    end = ".to-zero" if plans.to_zero else ""
    name = f"{plans.presets[0]}.{plans.grids[0]}{end}.nfe{wildcards.nfe}.json"
    return str(Path(input.base).with_name(name))


def narrowed(wildcards):
    """Input function: the narrowed plans of as many calls, in runs that make them."""
    if int(wildcards.nfe) in settings_of(wildcards).stepaware.nfe:
        return [
            f"results/{wildcards.run}/plans/stepaware/nfe{wildcards.nfe}/{specs.STAMP}"
        ]
    return []


def narrowed_plans(wildcards, input):
    """Params function: the folder of those plans as an option."""
    return [f"--plan {Path(stamp).parent}" for stamp in input.narrowed]


def images_to_align(wildcards):
    """Input function: the packed images, where an objective starts from images."""
    if settings_of(wildcards).align.reads_images:
        return f"results/{wildcards.run}/data/spec.json"
    return []


def aligned_images(wildcards, input):
    """Params function: the folder of those images as an option."""
    return f"--images {Path(input.data).parent}" if input.data else ""


def plans_to_compose(wildcards):
    """Input function: all that was narrowed or aligned, by its stamps, and the plans that it was made from."""
    settings = settings_of(wildcards)
    folder = f"results/{wildcards.run}/plans"
    return (
        [f"{folder}/searched/nfe{n}/{specs.STAMP}" for n in settings.search.nfe]
        + [f"{folder}/stepaware/nfe{n}/{specs.STAMP}" for n in settings.stepaware.nfe]
        + [f"{folder}/aligned/nfe{n}/{specs.STAMP}" for n in settings.align.nfe]
    )


def plan_paths(wildcards, input):
    """Params function: plan files, or the folder of those that are named by their stamp."""
    plans = [input.plans] if isinstance(input.plans, str) else input.plans
    return [
        str(path.parent if path.name == specs.STAMP else path)
        for path in map(Path, plans)
    ]


def composed_options(wildcards, input):
    """Params function: the folders of the plans to compare, as options."""
    return [f"--plan {Path(stamp).parent}" for stamp in input.plans]


def composed(path):
    """Input function: the path, in runs that narrow or align."""
    return lambda wildcards: (
        [path.format(run=wildcards.run)]
        if specs.applies("compose", settings_of(wildcards))
        else []
    )


def detected(path):
    """Input function: the path, in runs that put samples to the detector."""
    return lambda wildcards: (
        [path.format(run=wildcards.run)] if settings_of(wildcards).detect.nfe else []
    )


def samples_to_detect(wildcards):
    """Input function: the samples of the known plans of these numbers of calls, and of the searched ones."""
    settings = settings_of(wildcards)
    folder = f"results/{wildcards.run}/samples"
    known = [f"{folder}/nfe{n}/{specs.STAMP}" for n in settings.detect.nfe]
    searched = set(settings.detect.nfe) & set(settings.search.nfe)
    return known + ([f"{folder}/searched/{specs.STAMP}"] if searched else [])


def files_to_detect(wildcards, input):
    """Params function: folders and files of those samples."""
    settings = settings_of(wildcards)
    folder = f"results/{wildcards.run}/samples"
    return [f"{folder}/nfe{n}" for n in settings.detect.nfe] + [
        f"{folder}/searched/searched.nfe{n}.npz"
        for n in settings.detect.nfe
        if n in settings.search.nfe
    ]


def detector_features(wildcards):
    """Params function: whose layers the detector looks through."""
    trained = trained_extractor(wildcards)
    return str(Path(trained[0]).parent) if trained else "effnet-lite0"


def folder_of(name):
    """Params function: the folder in which the input files of that name stand."""
    return lambda wildcards, input: str(Path(getattr(input, name)[0]).parent)


def trained_extractor(wildcards):
    """Input function: the trained extractor of the run, or nothing where a published one is used."""
    if specs.applies("extractor", settings_of(wildcards)):
        return [f"results/{wildcards.run}/reference/extractor/{specs.STAMP}"]
    return []


def extractor_argument(wildcards):
    trained = trained_extractor(wildcards)
    return (
        str(Path(trained[0]).parent)
        if trained
        else settings_of(wildcards).extractor.name
    )


def targets_of(run):
    pages = [
        f"results/{run}/report/{name}"
        for name in ("index.html", "metrics.json", "leaderboard.csv")
    ]
    return [*pages, f"state/{run}/tracked.json"]
