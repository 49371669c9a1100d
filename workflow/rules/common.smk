from pathlib import Path
from shutil import which

from fewstep.checks import ConfigError
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
