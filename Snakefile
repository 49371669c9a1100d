from snakemake.utils import min_version

min_version("9.10")


# Jobs run in the environment that Snakemake runs in; the image is for machines without one (workflow/envs).
container: "fewstep.sif"


report: "workflow/report/workflow.rst"


wildcard_constraints:
    run="[a-z0-9][a-z0-9-]*",
    nfe=r"\d+",
    k=r"\d+",
    n=r"\d+",


include: "workflow/rules/common.smk"


rule all:
    default_target: True
    input:
        [targets_of(run) for run in PARAMS.dvc_runs],


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/zoo.smk"
include: "workflow/rules/plans.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/search.smk"
include: "workflow/rules/compose.smk"
include: "workflow/rules/detect.smk"
include: "workflow/rules/report.smk"


# Only the process that plans the jobs may renew specs: never one that a cluster started for a single job.
if workflow.is_main_process:
    RUN_LOCK, HOLDER = specs.acquire_lock()
    if RUN_LOCK:
        try:
            specs.sync_specs(PARAMS)
        except UserError as error:
            raise WorkflowError(str(error))


onstart:
    if not RUN_LOCK:
        raise WorkflowError(
            f"another workflow must not be running in this folder, but {HOLDER} is; wait for it or stop it"
        )
