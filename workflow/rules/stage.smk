# The rules of the stages, one each. An input is the stamp of another stage's result; its option is the stamp's folder.
from fewstep.app import keys
from fewstep.app.params import settings
from fewstep.pipeline.stage.spec import STAMP


def result_of(stage, wildcards):
    """The result that a job makes, and the settings of its run."""
    try:
        chosen = settings(PARAMS, wildcards.run)
    except UserError as error:
        raise WorkflowError(str(error))
    origin = wildcards.get("source", None)
    if origin is None:
        nfe = wildcards.get("nfe", None)
        origin = stage.name if nfe is None else f"{stage.name}/nfe{nfe}"
    found = keys.STAGES.named(stage, origin, chosen)
    if found is None:
        raise WorkflowError(
            f"run {wildcards.run} must have what is asked for, but its settings do not ask for {origin} of stage "
            f"{stage.name}; change params.yaml"
        )
    return found, chosen


def inputs(stage):
    """Input function: the stamps of the results that a job reads, by parameter of its command."""

    def stamps(wildcards):
        result, chosen = result_of(stage, wildcards)
        return keys.STAGES.stamps(result, wildcards.run, chosen)

    return stamps


def options(stage):
    """Params function: the command line of a job, but its spec."""

    def words(wildcards):
        result, chosen = result_of(stage, wildcards)
        return keys.STAGES.words(result, wildcards.run, chosen)

    return words


def cores(stage):
    """Threads function: the cores of a job; 0 stands for all of this machine, elsewhere for what the profile says."""

    def number(wildcards):
        _, chosen = result_of(stage, wildcards)
        of_each = stage.threads(chosen) * stage.processes(chosen)
        return of_each or (workflow.cores if workflow.local_exec else 1)

    return number


def gpus(stage):
    """Resources function: the GPUs of a job, one for each of its processes."""
    return lambda wildcards: (
        int(stage.gpu) * stage.processes(result_of(stage, wildcards)[1])
    )


def group(stage):
    """Group function: short jobs that follow each other are one job of a cluster; none where work is shared."""

    def name(wildcards):
        result, chosen = result_of(stage, wildcards)
        shared = any(
            getattr(chosen, one.name).shards > 1 for one in keys.STAGES if one.over
        )
        return None if shared else leftover_jobs.group_of(result, wildcards.run)

    return name


def place(stage):
    """The folder of a stage's results below that of the run, with wildcards."""
    if stage.over is not None:
        return f"{stage.name}/{{source}}"
    return stage.name if stage.nfe is None else f"{stage.name}/nfe{{nfe}}"


def message(stage):
    """What a job does, and where its progress is."""
    which = " of {wildcards.source}" if stage.over is not None else ""
    does = stage.does.replace("{nfe}", "{wildcards.nfe}")
    return f"{{wildcards.run}}: {does}{which} (progress in {{log}})"


for stage in keys.STAGES:
    if stage.over is None and stage.makes != "report":

        rule:
            name:
                stage.name
            input:
                unpack(inputs(stage)),
                spec=f"state/{{run}}/spec/{place(stage)}.json",
            output:
                spec=f"{stage.root}/{{run}}/{place(stage)}/{STAMP}",
            log:
                f"logs/{{run}}/{place(stage)}.log",
            priority: int(stage.first)
            group:
                group(stage) if stage.short else None
            threads: cores(stage)
            resources:
                gpu=gpus(stage),
            params:
                options=options(stage),
            message:
                message(stage)
            shell:
                "fewstep {params.options:q} --spec {input.spec} 2> {log}"
